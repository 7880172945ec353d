"""What --deterministic does to a process, and that nothing is chosen by timing then."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_loop import tiny_config

from fastdreamer import loop
from fastdreamer.loop import Training

PROGRAM = """
import os, resource, torch
from fastdreamer.deterministic import make_deterministic
make_deterministic()
assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
memory = torch.empty(1 << 28, dtype=torch.uint8)
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16, "KiB of 256 MiB"
print(os.environ["CUBLAS_WORKSPACE_CONFIG"])
"""


@pytest.mark.parametrize("given, used", [(None, ":4096:8"), (":16:8", ":16:8")])
def test_what_is_set_and_that_memory_is_not_touched(given: str | None, used: str) -> None:
    """By itself torch would fill it with NaN."""
    environment = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    environment |= {} if given is None else {"CUBLAS_WORKSPACE_CONFIG": given}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == used


@pytest.mark.parametrize("deterministic", [False, True])
def test_no_library_is_chosen_by_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool) -> None:
    timed = []

    def pick() -> str:
        timed.append("both")
        return "MKL"

    monkeypatch.setattr(loop, "pick_matmul", pick)
    config = tiny_config(tmp_path)
    Training(replace(config, run=replace(config.run, deterministic=deterministic)), None).env.close()
    assert timed == ([] if deterministic else ["both"])
