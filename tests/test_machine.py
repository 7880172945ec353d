"""What a run folder says about the machine."""

import os
import platform

import pytest
import torch

from fastdreamer import machine
from fastdreamer.machine import describe, installed


def test_it_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = describe()
    assert facts["cpu"].startswith(f"{len(os.sched_getaffinity(0))} cores of ")
    assert facts["python"] == platform.python_version() and facts["torch"] == torch.__version__
    assert installed("no-such-package") is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 30, 80 << 30))
    assert machine.gpu() == f"A GPU, 80 GiB, CUDA {torch.version.cuda}"
