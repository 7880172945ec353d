"""R5, R6: a save survives what a machine does to it: the order of what reaches the disk, and a full disk."""

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import assert_same, make_tensors, save_full
from test_loop import SHORT, tiny_config

from fastdreamer import checkpoint, guard, run, train
from fastdreamer.checkpoint import latest, save
from fastdreamer.loop import Training
from fastdreamer.metrics import read_jsonl

Bar = Callable[[str, bool], None]


class Trace:
    """What happened to names and files, in order: (what, path)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, Path]] = []
        self.fsync, self.rename, self.rmtree, self.unlink = os.fsync, os.rename, shutil.rmtree, Path.unlink
        monkeypatch.setattr(os, "fsync", self._fsync)
        monkeypatch.setattr(os, "rename", self._rename)
        monkeypatch.setattr(shutil, "rmtree", self._rmtree)
        monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: self._unlink(path, missing_ok))

    def _fsync(self, file: int) -> None:
        self.events.append(("fsync", Path(os.readlink(f"/proc/self/fd/{file}"))))
        self.fsync(file)

    def _rename(self, source: Path, target: Path) -> None:
        self.events.append(("rename", Path(source)))
        self.events.append(("named", Path(target)))
        self.rename(source, target)

    def _rmtree(self, path: Path) -> None:
        self.events.append(("delete", Path(path)))
        self.rmtree(path)

    def _unlink(self, path: Path, missing_ok: bool = False) -> None:
        self.events.append(("delete", path))
        self.unlink(path, missing_ok)

    def at(self, what: str, path: Path, after: int = 0) -> int:
        """When it happened first."""
        return self.events.index((what, path), after)


def test_everything_is_on_the_disk_before_it_gets_its_name_and_that_before_anything_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bar: Bar
) -> None:
    for step in range(20):
        with monkeypatch.context() as patch:
            trace = Trace(patch)
            target = save_full(tmp_path, step)
        named = trace.at("named", target)
        temporary = trace.events[named - 1][1]
        files = [path.relative_to(target) for path in target.rglob("*")]
        assert len(files) == 7, "six files and the folder of one"
        manifest = trace.at("fsync", temporary / "MANIFEST.json")
        synced = all(trace.at("fsync", temporary / name) < named for name in (*files, Path()))
        manifest_last = all(trace.at("fsync", temporary / name) <= manifest for name in files)
        parent = trace.at("fsync", target.parent, named)
        deleted = [at for at, (what, _) in enumerate(trace.events) if what == "delete"]
        held = synced and manifest_last and min(deleted, default=parent + 1) > parent
        bar("R6 order of fsync and rename", held)
        assert held, trace.events
        assert bool(deleted) == (step >= 2)


def test_chunks_are_on_the_disk_before_the_checkpoint_that_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tiny_config(tmp_path), None)
    while training.env_steps < 100:
        training.advance()
    trace = Trace(monkeypatch)
    training.save(tmp_path)
    training.env.close()
    folder = tmp_path / "replay"
    chunks = [path for what, path in trace.events if what == "named" and path.parent == folder]
    assert chunks
    for chunk in chunks:
        named = trace.at("named", chunk)
        assert trace.at("fsync", trace.events[named - 1][1]) < named
    (step,) = (path for what, path in trace.events if what == "named" and path.parent.name == "checkpoints")
    last = max(trace.at("named", chunk) for chunk in chunks)
    assert last < trace.at("fsync", folder, last) < trace.at("named", step)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to write beyond this size, as a full disk would; Python ignores its signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("offset", [round(3000 * at / 20) for at in range(20)])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, bar: Bar, offset: int) -> None:
    """Files of this save are 2 to some 4,000 bytes long; the first two offsets are within the smallest."""
    save_full(tmp_path, 1)
    tensors = make_tensors(2) | {"large": {"x": torch.ones(1000)}}
    with largest_file(offset), pytest.raises(OSError, match=r"File too large|os error 27"):
        save(tmp_path, 2, tensors, {"step": 2})
    held = latest(tmp_path).state == {"step": 1}
    bar("R5 full disk", held)
    assert held
    assert_same(latest(tmp_path).tensors, make_tensors(1))
    save(tmp_path, 3, tensors, {"step": 3})
    assert latest(tmp_path).state == {"step": 3}
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-000000001", "step-000000003"], "what was begun is swept away"


def test_what_does_not_read_back_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that lies: the last byte of a file is another one once its folder has been renamed."""
    save_full(tmp_path, 1)
    rename = os.rename

    def lying(source: Path, target: Path) -> None:
        rename(source, target)
        data = bytearray((Path(target) / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (Path(target) / "model.safetensors").write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lying)
        with pytest.raises(OSError, match=r"what was written does not read back: .*sha256"):
            save_full(tmp_path, 2)
    assert latest(tmp_path).state == {"step": 1}


def test_a_run_whose_disk_is_full_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(tmp_path / "run")
    config = replace(config, run=replace(config.run, save_every=0.01))
    save_checkpoint, calls = checkpoint.save, iter(range(1000))

    def full_now_and_then(*args: object, **options: object) -> Path:
        if next(calls) % 2:
            raise OSError(28, "No space left on device")
        return save_checkpoint(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save", full_now_and_then)
    with caplog.at_level("WARNING"):
        assert run.run(config, resume=False, started=0.0) == 0
    said = [message for message in caplog.messages if "was not written" in message]
    assert len(said) >= 2
    assert said[0].endswith("was not written: No space left on device; those before it are kept")
    assert latest(tmp_path / "run").value("env_steps", int) > 0
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == config.run.steps


@pytest.mark.parametrize(
    "error, code, line",
    [
        (
            guard.DivergedError("for the third time: training has diverged"),
            3,
            "for the third time: training has diverged",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
            4,
            f"{train.KNOBS}: CUDA out of memory. Tried",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8"), 4, f"{train.KNOBS}: DefaultCPUAllocator"),
        (MemoryError("numpy"), 4, f"{train.KNOBS}: numpy"),
    ],
)
def test_exit_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    error: Exception, code: int, line: str,
) -> None:  # fmt: skip
    def fails(*_: object) -> int:
        raise error

    monkeypatch.setattr(run, "run", fails)
    with pytest.raises(SystemExit) as caught:
        train.main(["cartpole", *SHORT, f"--run.dir={tmp_path / 'run'}"])
    said = capsys.readouterr().err
    assert caught.value.code == code and said.startswith(f"fastdreamer: error: {line}") and said.count("\n") == 1


def test_another_runtime_error_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise RuntimeError("of the program")

    monkeypatch.setattr(run, "run", fails)
    with pytest.raises(RuntimeError, match=r"^of the program$"):
        train.main(["cartpole", *SHORT, f"--run.dir={tmp_path / 'run'}"])
