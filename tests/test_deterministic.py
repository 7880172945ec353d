"""What --deterministic does to a process."""

import os
import subprocess
import sys

import pytest

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
