"""The replay ring as files: named after what they hold, and what is written is never written again.

RUN/replay/ holds, each with the crc32 of its content at the end of its name:

    records-0000001024-0000001536-....safetensors         records 1024 .. 1535, key -> (N, records, ...)
    latents-0000001024-0000002048-000012-....safetensors  states of records 1024 .. 2047 as save 12 found them
    changes-000013-....safetensors                        states that were renewed or added until save 13

A save adds records and changed states, and merges what has become many small files. It is taken at once, and can be
written while the ring goes on.
"""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastdreamer.disk import crc32, sync, write_tensors

CHUNK = 1024
"""Most records per environment in one file, as in the official code."""
CHUNK_TOTAL = 16384
"""Most records in one file, 200 MB of 64x64 images: its copy in memory stays small with many environments too."""
LARGEST_COPY = 1 << 32
"""Bytes of a save that are copied, to be written later; what is more is written at once, while training waits."""


def chunk_length(num_envs: int) -> int:
    """Records per environment in one file. It does not depend on the capacity, which a resumed run may change."""
    return max(1, min(CHUNK, CHUNK_TOTAL // num_envs))


class File(NamedTuple):
    """A file in RUN/replay/."""

    name: str
    crc32: int


class Due(NamedTuple):
    """A file that is to be written: its name without checksum, and its tensors."""

    stem: str
    tensors: Mapping[str, Tensor]

    def copied(self) -> "Due":
        """The same, of tensors that nobody writes to."""
        return Due(self.stem, {key: value.to("cpu", copy=True).contiguous() for key, value in self.tensors.items()})

    def bytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.tensors.values())

    def write(self, folder: Path) -> File:
        """Raises OSError where that fails; a file of the name is there as a whole or not at all."""
        temporary = folder / f".tmp-{os.getpid()}-{secrets.token_hex(4)}.safetensors"
        write_tensors(temporary, {key: value.cpu().contiguous() for key, value in self.tensors.items()})
        crc = crc32(temporary)
        file = File(f"{self.stem}-{crc:08x}.safetensors", crc)
        os.rename(temporary, folder / file.name)
        return file


class Staged(NamedTuple):
    """One half of a save: files that are there, files that are due, and what to do once those are written, or not."""

    kept: list[File]
    due: list[Due]
    keep: Callable[[list[File]], None]
    drop: Callable[[], None]


class RingSave:
    """A save of the ring that is under way. facts: the rest of its index."""

    def __init__(self, folder: Path, halves: tuple[Staged, ...], facts: Mapping[str, object]) -> None:
        self._folder, self._halves, self._facts = folder, halves, facts
        self._written: list[list[File]] = []
        due = [[*half.due] for half in halves]
        self.copied = sum(each.bytes() for half in due for each in half) <= LARGEST_COPY
        """Whether it may be written later, by any thread; otherwise before anything else happens to the ring."""
        self._due = [[each.copied() for each in half] for half in due] if self.copied else due

    def write(self) -> dict[str, object]:
        """Writes what is due; the index that `Replay.load` takes, JSON data. Raises OSError where that fails."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._written = [[each.write(self._folder) for each in due] for due in self._due]
        sync(self._folder)
        files = [file for half in self._halves for file in half.kept] + [
            file for half in self._written for file in half
        ]
        return {"chunks": {file.name: file.crc32 for file in files}, **self._facts}

    def keep(self) -> None:
        """It has been written: later saves build on it."""
        for half, written in zip(self._halves, self._written, strict=True):
            half.keep(written)

    def drop(self) -> None:
        """It has not: later saves write it again."""
        for half in self._halves:
            half.drop()


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, one in memory at a time. Raises ValueError where it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                yield key, file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


class RingFiles:
    """A part of a ring that lies on the disk in chunks.

    ring: key -> (N, rows, ...), where record r lies in row r % rows; the number of rows is a multiple of the chunk
    length, so that no chunk wraps around.
    """

    def __init__(self, ring: Mapping[str, Tensor]) -> None:
        self.ring = ring
        self.num_envs, self.rows = next(iter(ring.values())).shape[:2]
        self.length = chunk_length(self.num_envs)
        assert self.rows % self.length == 0, (self.rows, self.length)

    def span(self, first: int, end: int) -> dict[str, Tensor]:
        """Records first .. end - 1, of one chunk: key -> (N, end - first, ...), the ring's own memory."""
        start = first % self.rows
        return {key: ring[:, start : start + end - first] for key, ring in self.ring.items()}

    def read(self, path: Path, first: int, end: int, begin: int) -> None:
        """Puts records begin .. end - 1 of a file that holds those from `first` on back. Raises ValueError."""
        target = self.span(begin, end)
        missing = set(target)
        for key, value in read_tensors(path):
            require(path, key, value, self.ring.get(key), (self.num_envs, end - first))
            target[key].copy_(value[:, begin - first :])
            missing.remove(key)
        if missing:
            raise ValueError(f"{path}: no {min(missing)}")


def require(path: Path, key: str, value: Tensor, like: Tensor | None, lead: tuple[int, ...]) -> Tensor:
    """`value`, if it is (*lead, ...) of a ring's tensor (N, rows, ...). Raises ValueError where it is not."""
    if like is None:
        raise ValueError(f"{path}: the ring has no {key}")
    expected = (*lead, *like.shape[2:])
    if value.dtype != like.dtype or value.shape != expected:
        raise ValueError(f"{path}: {key}: expected {like.dtype} {expected}, got {value.dtype} {tuple(value.shape)}")
    return value
