"""`python -m fastdreamer.doctor` says what is here."""

import platform

import numpy
import pytest
import torch

from fastdreamer import doctor
from fastdreamer.doctor import diagnosis, main


def test_it_says_what_is_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "OPTIONAL", {"numpy": "everything"})
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert platform.python_version() in lines[0] and torch.__version__ in lines[0]
    assert lines[2].startswith("kernels: ")
    assert f"numpy {numpy.__version__}" in lines[4]
    assert lines[5] == "everything optional is installed"
    assert lines[6].startswith("try: python -m fastdreamer.train ")
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-package": "nothing"})
    assert diagnosis()[5] == "not installed: no-such-package (for nothing)"


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for words, kernels, message in (
        (["x"], "", "unrecognized arguments: x"),
        ([], "fast", "FASTDREAMER_KERNELS must be"),
    ):
        monkeypatch.setenv("FASTDREAMER_KERNELS", kernels)
        with pytest.raises(SystemExit) as end:
            main(words)
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.startswith(f"fastdreamer: error: {message}") and error.count("\n") == 1
