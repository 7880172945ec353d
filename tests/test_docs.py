"""The pages of docs/ say what the code does: their commands are run, in the order in which they stand.

In a page, ```sh is run in an empty folder where the page's files are (```python blocks that begin with a name);
```sh repository in the repository; ```sh gpu only has to be understood.
"""

import contextlib
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastdreamer import cli
from fastdreamer.agent import Agent
from fastdreamer.config import WIDTHS, LossConfig, ModelConfig
from fastdreamer.spaces import Space

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)
SECONDS = 300
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"
}  # fmt: skip


def blocks(page: Path, language: str) -> Iterator[tuple[str, str]]:
    """(the word after the language, text) of each."""
    for found, where, text in BLOCK.findall(page.read_text()):
        if found == language:
            yield where, text


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command of ours: module and arguments."""
    for _, text in blocks(page, "sh"):
        for command in re.findall(r"python -m (fastdreamer\.[^;|&\n]*)", text):
            yield shlex.split(command)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_every_command_is_understood(page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A training's words parse; of other commands every flag is in their help."""
    for module, *words in commands(page):
        if module == "fastdreamer.train" and "--resume" not in words:
            with contextlib.suppress(SystemExit):  # of --help
                assert cli.parse(words).config
            error = capsys.readouterr().err
        else:
            with pytest.raises(SystemExit):
                importlib.import_module(module).main(["--help"])
            known = capsys.readouterr().out
            error = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
        assert not error, (module, words)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_runs(page: Path, tmp_path: Path) -> None:
    for _, text in blocks(page, "python"):
        if named := re.match(r"# (\w+\.py)\n", text):
            (tmp_path / named[1]).write_text(text)
    for where, text in blocks(page, "sh"):
        if where == "gpu":
            continue
        folder = ROOT if where == "repository" else tmp_path
        done = subprocess.run(
            ["bash", "-euxc", text], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True,
            timeout=SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_links_lead_somewhere() -> None:
    for page in (*PAGES, ROOT / "README.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_the_table_of_sizes_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "presets.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `size")]
    found = []
    for size in WIDTHS:
        model, counts = ModelConfig(size=size), []
        for space in (Space("image", (64, 64, 3)), Space("vector", (24,))):
            with torch.device("meta"):
                agent = Agent({"obs": space}, {"act": Space("discrete", (), 6)}, model, LossConfig(), torch.float32)
            counts.append(sum(each.numel() for each in agent.official_parameters().values()) / 1e6)
        dims = model.dims()
        assert dims.hidden == dims.units
        numbers = [str(each) for each in (dims.deter, dims.units, dims.classes, dims.depth)]
        found.append([f"`{size}`", *numbers, *(f"{count:.1f} M" for count in counts)])
    assert rows == found


def test_what_may_change_is_what_the_page_says() -> None:
    text = (ROOT / "docs" / "resuming.md").read_text().split("## What may change")[1].split("## On a cluster")[0]
    assert re.findall(r"`((?:env|run)\.\w+)`", text) == list(cli.RESUMABLE)
