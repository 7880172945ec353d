"""Checkpoints are data: safetensors and JSON in a folder with a sha256 manifest. Nothing here unpickles anything.

    RUN/checkpoints/step-000123000/    written as .tmp-<pid>-<random>/, then renamed
      model.safetensors ...            one file per group of tensors
      state.json                       counters and other plain data
      replay/index.json                what the ring needs to read its chunks: {"chunks": {name: crc32}, ...}
      MANIFEST.json                    written last: bytes, sha256 and tensors of every other file

So a checkpoint is there as a whole or not at all, and a damaged one is recognised. Also after a power failure: every
file is on the disk before its folder is renamed, and the renaming before anything older is deleted. The chunks of the
ring lie in RUN/replay/, are never rewritten, and may belong to several checkpoints: the ring writes and reads them,
this module checks them and deletes those that no checkpoint needs. A run folder has one writer.
"""

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fastdreamer.disk import crc32, sync, write_tensors

logger = logging.getLogger(__name__)

FORMAT = 1
KEEP = 2  # the newest may be damaged when a machine goes down: one more to fall back on
MANIFEST, STATE, INDEX = "MANIFEST.json", "state.json", "replay/index.json"
TENSORS, TEMPORARY = ".safetensors", ".tmp-"
T = TypeVar("T")


class CheckpointError(ValueError):
    """A checkpoint that is absent, damaged, or does not fit; one line that says which and how."""


class Checkpoint(NamedTuple):
    """What a verified checkpoint holds."""

    path: Path
    tensors: dict[str, dict[str, Tensor]]
    """Group, such as model -> name -> tensor on the CPU."""
    state: dict[str, object]
    replay: dict[str, object] | None
    """The ring's index; None where none was saved or asked for."""

    def value(self, name: str, kind: type[T]) -> T:
        """An entry of state.json. Raises CheckpointError where it is missing or of another type."""
        found = self.state.get(name)
        if type(found) is not kind:  # isinstance would take True for an int
            got = repr(found)[:60] if name in self.state else "nothing"
            raise CheckpointError(f"{self.path / STATE}: {name}: expected {kind.__name__}, got {got}")
        return found


def save(
    run: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, object],
    index: Mapping[str, object] | None = None,
) -> Path:
    """Writes the checkpoint of an agent step and deletes all but the newest two, and the chunks that neither needs.

    tensors: group -> name -> tensor on any device. state: JSON data; tuples come back as lists. index: JSON data whose
    "chunks" maps the names of files in RUN/replay/, complete by now, to their crc32; None saves no replay. A checkpoint
    of the same step is replaced, and one of a later step is deleted: it belongs to a future that the run has left.
    Returns the folder. Raises ValueError for data that is not JSON or a chunk that is not there, OSError where writing
    fails or what was written does not read back; the older checkpoints are untouched then.
    """
    for name in _chunks(run, index):
        if not (run / "replay" / name).is_file():
            raise ValueError(f"replay index: chunk {name} is not in {run / 'replay'}")
    target = run / "checkpoints" / f"step-{step:09}"
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    temporary = _temporary(target.parent)
    temporary.mkdir()
    shapes = {}
    for group, named in tensors.items():
        packed = _pack(named)
        write_tensors(temporary / (group + TENSORS), packed)
        shapes[group + TENSORS] = _describe(packed)
    _write_json(temporary / STATE, state)
    if index is not None:
        _write_json(temporary / INDEX, index)
        sync(temporary / INDEX.partition("/")[0])
    files = {name: _entry(temporary / name, shapes.get(name)) for name in _files(temporary)}
    _write_json(temporary / MANIFEST, {"format": FORMAT, "files": files})
    sync(temporary)
    if target.exists():
        os.rename(target, _temporary(target.parent))
    os.rename(temporary, target)
    sync(target.parent)
    try:
        for name, entry in _read_manifest(target).items():
            _verify(target, name, entry)
    except CheckpointError as error:
        raise OSError(errno.EIO, f"what was written does not read back: {error}", str(target)) from error
    _prune(run, step)
    return target


def load(path: Path, with_replay: bool = True) -> Checkpoint:
    """Reads the checkpoint in `path` after checking every byte of it against the manifest.

    with_replay: check the chunks of the ring too and return its index. Raises CheckpointError naming the first file
    that is missing, unexpected, damaged or unreadable, and for a format that is not ours.
    """
    try:
        files = _read_manifest(path)
        for name, entry in files.items():
            _verify(path, name, entry)
        tensors = {}
        for name in files:
            if name.endswith(TENSORS):
                tensors[name.removesuffix(TENSORS)] = safetensors.torch.load_file(path / name)
                if _describe(tensors[name.removesuffix(TENSORS)]) != files[name].get("tensors"):
                    raise CheckpointError(f"{path / name}: its tensors are not those of the manifest")
        index = _read_json(path / INDEX) if with_replay and INDEX in files else None
        for name, crc in _chunks(path, index).items():
            if crc32(path.parents[1] / "replay" / name) != crc:
                raise CheckpointError(f"{path.parents[1] / 'replay' / name}: crc32 does not match {path / INDEX}")
        return Checkpoint(path, tensors, _read_json(path / STATE), index)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error


def latest(run: Path, with_replay: bool = True, back: int = 0) -> Checkpoint:
    """The newest checkpoint of a run that can be trusted; logs one warning per newer one that cannot.

    back: how many older it shall be, as far as there are so many. Raises CheckpointError where there is none.
    """
    for folder in (run / "checkpoints", run / "replay"):
        if folder.is_symlink():  # what no checkpoint needs is deleted there
            raise CheckpointError(f"{folder}: a link, not a folder of this run")
    paths, trusted = _steps(run), None
    for path in reversed(paths.values()):
        try:
            trusted = load(path, with_replay)
        except CheckpointError as error:
            logger.warning("checkpoint rejected: %s", error)
            continue
        if not back:
            break
        back -= 1
    if trusted is not None:
        return trusted
    found = f"none of {len(paths)} checkpoints can be used" if paths else "no checkpoint"
    raise CheckpointError(f"{run}: {found} in {run / 'checkpoints'}")


def load_into(target: Mapping[str, Tensor], source: Mapping[str, Tensor], name: str) -> None:
    """Copies `source` into the tensors of `target`, in place: all of them or, where they do not fit, none.

    name: where `source` comes from. Raises CheckpointError naming the first tensor whose name, dtype or shape differs.
    """
    for key in [*target, *(key for key in source if key not in target)]:
        expected, got = (_kind(tensors.get(key)) for tensors in (target, source))
        if expected != got:
            raise CheckpointError(f"{name}: tensor {key}: expected {expected}, got {got}")
    with torch.no_grad():
        for key, tensor in target.items():
            tensor.copy_(source[key])


def _pack(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    packed: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in named.items():
        tensor = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that overlap in memory, such as tied ones
        packed[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in storages else tensor
        storages.add(tensor.untyped_storage().data_ptr())
    return packed


def _describe(tensors: Mapping[str, Tensor]) -> dict[str, list[object]]:
    return {name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in tensors.items()}


def _kind(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _entry(path: Path, tensors: dict[str, list[object]] | None) -> dict[str, object]:
    with path.open("rb") as file:
        entry = {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    return entry if tensors is None else entry | {"tensors": tensors}


def _verify(path: Path, name: str, entry: dict[str, object]) -> None:
    size = (path / name).stat().st_size
    if size != entry.get("bytes"):
        raise CheckpointError(f"{path / name}: {size} bytes, expected {entry.get('bytes')}")
    if _entry(path / name, None)["sha256"] != entry.get("sha256"):
        raise CheckpointError(f"{path / name}: sha256 does not match {MANIFEST}")


def _files(path: Path) -> list[str]:
    files = (file for file in path.rglob("*") if file.is_symlink() or not file.is_dir())
    return sorted(file.relative_to(path).as_posix() for file in files)


def _write_json(path: Path, data: Mapping[str, object]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data, default=_refuse, separators=(",", ":")))
    sync(path)


def _refuse(value: object) -> None:
    raise ValueError(f"a checkpoint cannot hold {type(value).__name__} {value!r}: not JSON")


def _read_json(path: Path) -> dict[str, object]:
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return data


def _read_manifest(path: Path) -> dict[str, dict[str, object]]:
    manifest = _read_json(path / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path / MANIFEST}: format {manifest.get('format')!r}, this version reads {FORMAT}")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise CheckpointError(f"{path / MANIFEST}: no table of files")
    present = set(_files(path)) - {MANIFEST}
    if missing := sorted({STATE, *files} - present):
        raise CheckpointError(f"{path}: {missing[0]!r}: missing")
    if extra := sorted(present - files.keys()):
        raise CheckpointError(f"{path}: {extra[0]!r}: not in {MANIFEST}")
    return files


def _chunks(where: Path, index: Mapping[str, object] | None) -> dict[str, int]:
    chunks = {} if index is None else index.get("chunks")
    # a plain file name: an index must not lead out of the replay folder
    if not isinstance(chunks, dict) or not all(
        re.fullmatch(r"\w[\w.-]*", name) and type(crc) is int for name, crc in chunks.items()
    ):
        raise CheckpointError(f"{where}: the replay index needs chunks: a table of plain file names and their crc32")
    return chunks


def _temporary(parent: Path) -> Path:
    return parent / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"


def _steps(run: Path) -> dict[int, Path]:
    """Step -> folder, oldest first."""
    paths = {path.name.removeprefix("step-"): path for path in (run / "checkpoints").glob("step-*")}
    return {int(step): paths[step] for step in sorted((s for s in paths if s.isdecimal()), key=int)}


def _sweep(parent: Path) -> None:
    """Deletes what a save that was cut short left behind."""
    for path in parent.glob(TEMPORARY + "*"):
        shutil.rmtree(path)


def _prune(run: Path, step: int) -> None:
    paths = _steps(run)
    kept = [path for number, path in paths.items() if number <= step][-KEEP:]
    for path in paths.values():
        if path not in kept:  # renamed first: a folder half deleted must not look like a checkpoint
            os.rename(path, _temporary(path.parent))
    _sweep(run / "checkpoints")
    try:
        indices = [_read_json(path / INDEX) for path in kept if (path / INDEX).exists()]
        needed = {name for index in indices for name in _chunks(run, index)}
    except CheckpointError as error:
        logger.warning("replay chunks are not pruned: %s", error)
        return
    for chunk in (run / "replay").glob("*" + TENSORS):
        if chunk.name not in needed:
            chunk.unlink()
