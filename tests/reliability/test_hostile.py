"""R8: loading a run runs no code, and files that were made to do harm end in one line and do none."""

import builtins
import importlib
import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from altered_runs import AlteredRun, make_run

from fastdreamer import checkpoint
from fastdreamer.config import Config
from fastdreamer.loop import Training
from fastdreamer.train import main

Bar = Callable[[str, bool], None]
STATE, INDEX, MANIFEST = "state.json", "replay/index.json", "MANIFEST.json"
TESTS = Path(__file__).parents[1]


class Bomb:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch exploded",)


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


NESTED = "[" * 100_000
CONTENTS = {
    "a pickle": pickle.dumps(Bomb()),
    "a pickle of torch": b"PK\x03\x04" + pickle.dumps(Bomb()),
    "nothing": b"",
    "a huge header": struct.pack("<Q", 2**62) + b"{}",
    "a header of 90 MB": struct.pack("<Q", 90_000_000) + b"{}",
    "a huge tensor": safetensors({"x": entry([10**9, 10**9], 0, 4)}, b"0000"),
    "negative offsets": safetensors({"x": entry([1], -4, 0)}, b"0000"),
    "offsets out of range": safetensors({"x": entry([1], 400, 404)}, b"0000"),
    "overlapping tensors": safetensors({"x": entry([1], 0, 4), "y": entry([1], 0, 4)}, b"0000"),
    "a nested header": safetensors(NESTED.encode()),
    "a name that leads out": safetensors({"../../../exploded": entry([1], 0, 4)}, b"0000"),
}
"""Of a file of tensors."""
TEXTS = {
    "a pickle": pickle.dumps(Bomb()),
    "nested JSON": NESTED.encode(),
    "a number of a million digits": b"1" * 10**6,
    "NaN": b'{"env_steps": NaN}',
    "not a table": b"[]",
    "no JSON": b"\xff\xfe{}",
}
"""Of a JSON file."""


def content(run: AlteredRun, name: str, data: bytes) -> None:
    path = run.folder / name if name == "config.json" else run.path / name
    path.write_bytes(data)
    if name != MANIFEST:
        run.seal()


def chunk(run: AlteredRun, data: bytes) -> None:
    """In the place of a file of the ring, which the index vouches for."""
    run.chunk("records", lambda tensors: None)
    name = min(path.name for path in (run.folder / "replay").iterdir() if path.name.startswith("records"))
    (run.folder / "replay" / name).write_bytes(data)
    run.table(INDEX, lambda table: table["chunks"].update({name: checkpoint.crc32(run.folder / "replay" / name)}))


def rename_chunk(run: AlteredRun, name: str) -> None:
    def change(table: dict[str, dict[str, int]]) -> None:
        first = min(table["chunks"])
        table["chunks"][name] = table["chunks"].pop(first)

    run.table(INDEX, change)


def manifest(run: AlteredRun, change: Callable[[dict[str, dict[str, object]]], object]) -> None:
    table = json.loads((run.path / MANIFEST).read_text())
    change(table)
    (run.path / MANIFEST).write_text(json.dumps(table))


def link(run: AlteredRun, target: str) -> None:
    """A file that is a link out of the folder."""
    (run.path / "extra.safetensors").symlink_to(target)


def link_folder(run: AlteredRun, name: str) -> None:
    """A folder of the run that is a link to somebody else's, with the same files and one of theirs."""
    outside = run.folder.parent / f"their-{name}"
    (run.folder / name).rename(outside)
    (outside / "theirs.safetensors").write_bytes(b"mine")
    (run.folder / name).symlink_to(outside)


Attack = Callable[[AlteredRun], object]
ATTACKS: dict[str, Attack] = {
    **{
        f"{name}: {kind}": lambda run, name=name, data=data: content(run, name, data)
        for name in ("model.safetensors", "acting.safetensors")
        for kind, data in CONTENTS.items()
    },
    **{
        f"{name}: {kind}": lambda run, name=name, data=data: content(run, name, data)
        for name in (STATE, INDEX, MANIFEST, "config.json")
        for kind, data in TEXTS.items()
    },
    **{f"chunk: {kind}": lambda run, data=data: chunk(run, data) for kind, data in CONTENTS.items()},
    "a chunk that leads out": lambda run: rename_chunk(run, "../../outside"),
    "an absolute chunk": lambda run: rename_chunk(run, "/etc/passwd"),
    "a file of the manifest that leads out": lambda run: manifest(run, lambda t: t["files"].update({"../../x": {}})),
    "an absolute file of the manifest": lambda run: manifest(run, lambda t: t["files"].update({"/etc/passwd": {}})),
    "files of another kind": lambda run: manifest(run, lambda t: t.update(files=[])),
    "sizes of another kind": lambda run: manifest(run, lambda t: t["files"][STATE].update(bytes="many")),
    "a negative size": lambda run: manifest(run, lambda t: t["files"][STATE].update(bytes=-1)),
    "a hash of another kind": lambda run: manifest(run, lambda t: t["files"][STATE].update(sha256=None)),
    "tensors of another kind": lambda run: manifest(
        run, lambda t: t["files"]["model.safetensors"].update(tensors={"x": 3})
    ),
    "a replay folder that is a link": lambda run: link_folder(run, "replay"),
    "a folder of checkpoints that is a link": lambda run: link_folder(run, "checkpoints"),
    "a link to a folder": lambda run: link(run, "/etc"),
    "a link to nothing": lambda run: link(run, "/nowhere"),
    "an endless length": lambda run: run.table(INDEX, lambda table: table.update(length=10**18)),
    "endless records": lambda run: run.table(STATE, lambda table: table["envs"].update(records=2**61)),
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "run"
    make_run(folder)
    return folder


def outside(folder: Path) -> dict[str, bytes]:
    """Everything beside the run."""
    paths = [path for path in folder.parent.rglob("*") if folder not in (path, *path.parents) and path.is_file()]
    return {str(path): path.read_bytes() for path in paths}


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_ends_in_one_line_and_does_no_harm(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    source: Path,
    bar: Bar,
    attack: str,
) -> None:
    run = AlteredRun(source, tmp_path / "runs" / "run")
    (tmp_path / "canary").write_text("alive")
    (tmp_path / "runs" / "outside").write_text("alive")
    monkeypatch.chdir(tmp_path)
    ATTACKS[attack](run)
    before = outside(run.folder)
    with pytest.raises(SystemExit) as caught:
        main(["--resume", str(run.folder)])
    said = capsys.readouterr().err
    held = caught.value.code == 2 and said.startswith("fastdreamer: error: ") and said.count("\n") == 1
    held = held and len(said) < 1000 and outside(run.folder) == before
    bar("R8 hostile files", held)
    assert held, said


def test_metrics_that_are_none_are_refused(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = AlteredRun(source, tmp_path / "run")
    (run.folder / "metrics.jsonl").write_bytes(pickle.dumps(Bomb()) + b"\n")
    with pytest.raises(SystemExit) as caught:
        main(["--resume", str(run.folder)])
    assert caught.value.code == 2 and "not JSON" in capsys.readouterr().err


def test_there_are_twenty_and_more() -> None:
    assert len(ATTACKS) >= 20


def test_nothing_is_unpickled_evaluated_or_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Path, bar: Bar
) -> None:
    """By reading a checkpoint and by restoring it; the environment is imported before."""
    run = AlteredRun(source, tmp_path / "run")
    config = Config.from_json(json.loads((run.folder / "config.json").read_text()))
    training = Training(config, None)
    training.env.close()

    def forbidden(*_: object, **__: object) -> object:
        raise AssertionError("runs code")

    for owner, name in (
        (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load"), (builtins, "eval"),
        (builtins, "exec"), (importlib, "import_module"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, forbidden)
    training.learner.restore(checkpoint.latest(run.folder))
    training.begin_save(tmp_path / "again")
    bar("R8 nothing is run", True)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["model.safetensors: a pickle", "state.json: nested JSON"])
def test_a_process_prints_that_line_alone(tmp_path: Path, source: Path, bar: Bar, attack: str) -> None:
    run = AlteredRun(source, tmp_path / "run")
    ATTACKS[attack](run)
    paths = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "fastdreamer.train", "--resume", str(run.folder)],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    held = done.returncode == 2 and done.stderr.count("\n") == 1 and not (tmp_path / "exploded").exists()
    bar("R8 hostile files in a process", held)
    assert held, done
