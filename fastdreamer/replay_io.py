"""The replay ring as files of successive records, named after their content: what is written is never written again.

RUN/replay/records-0000001024-1a2b3c4d.safetensors holds record 1024 and on, key -> (N, records, ...). A file begins at
a multiple of the chunk length, or later where the ring had dropped the records before by then.
"""

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastdreamer.checkpoint import crc32, sync, write_tensors

CHUNK = 1024
"""Most records per environment in one file, as in the official code."""
CHUNK_TOTAL = 16384
"""Most records in one file, 200 MB of 64x64 images: its copy in memory stays small with many environments too."""


def chunk_length(num_envs: int) -> int:
    """Records per environment in one file. It does not depend on the capacity, which a resumed run may change."""
    return max(1, min(CHUNK, CHUNK_TOTAL // num_envs))


class Chunk(NamedTuple):
    """A file that holds records first .. end - 1 of every environment."""

    name: str
    crc32: int
    first: int
    end: int


class ChunkFiles:
    """The files of one part of the ring, and which records they hold as they are now.

    kind: how the names begin. ring: key -> (N, rows, ...), where record r lies in row r % rows; the number of rows is a
    multiple of the chunk length.
    """

    def __init__(self, kind: str, ring: Mapping[str, Tensor]) -> None:
        self.kind, self.ring = kind, ring
        self.num_envs, self.rows = next(iter(ring.values())).shape[:2]
        self.length = chunk_length(self.num_envs)
        assert self.rows % self.length == 0, (self.rows, self.length)
        self._written: dict[int, Chunk] = {}

    def changed(self, records: np.ndarray) -> None:
        """Notes that these records were written anew: the files that hold them are outdated."""
        for number in np.unique(records // self.length).tolist():
            self._written.pop(number, None)

    def save(self, folder: Path, first: int, end: int) -> dict[str, int]:
        """Writes records first .. end - 1 but for those that a file in `folder` holds already; name -> crc32 of all.

        Raises OSError where writing fails.
        """
        chunks = {}
        for number in self._numbers(first, end):
            begin, stop = max(first, number * self.length), min(end, (number + 1) * self.length)
            chunk = self._written.get(number)
            if chunk is None or chunk.end != stop or not (folder / chunk.name).is_file():
                chunk = self._write(folder, begin, stop)
            chunks[number] = chunk
        sync(folder)
        self._written = chunks
        return {chunk.name: chunk.crc32 for chunk in chunks.values()}

    def load(self, folder: Path, names: Mapping[str, int], first: int, end: int) -> None:
        """Puts records first .. end - 1 back into a new ring; `names` are those of a save up to the same `end`.

        Raises ValueError where a file is unreadable, does not fit the ring, or is not among the names.
        """
        for name, crc in names.items():
            if match := re.fullmatch(rf"{self.kind}-(\d+)-\w+\.safetensors", name):
                begin = int(match[1])
                chunk = Chunk(name, crc, begin, min(end, (begin // self.length + 1) * self.length))
                if first < chunk.end:
                    self._read(folder, chunk, first)
                    self._written[begin // self.length] = chunk
        for number in self._numbers(first, end):
            needed = max(first, number * self.length)
            if number not in self._written or self._written[number].first > needed:
                raise ValueError(f"{folder}: no file of {self.kind} holds record {needed}")

    def _numbers(self, first: int, end: int) -> range:
        return range(first // self.length, -(-end // self.length))

    def _rows(self, first: int, end: int) -> slice:
        """Where the records of one file lie: the rows of the ring are whole files, so none wraps around."""
        start = first % self.rows
        return slice(start, start + end - first)

    def _write(self, folder: Path, first: int, end: int) -> Chunk:
        temporary = folder / f".tmp-{os.getpid()}-{secrets.token_hex(4)}.safetensors"
        rows = self._rows(first, end)
        write_tensors(temporary, {key: ring[:, rows].cpu().contiguous() for key, ring in self.ring.items()})
        crc = crc32(temporary)
        chunk = Chunk(f"{self.kind}-{first:010}-{crc:08x}.safetensors", crc, first, end)
        os.rename(temporary, folder / chunk.name)  # so a file of this name is there as a whole or not at all
        return chunk

    def _read(self, folder: Path, chunk: Chunk, first: int) -> None:
        begin, path = max(first, chunk.first), folder / chunk.name
        rows, missing = self._rows(begin, chunk.end), set(self.ring)
        for key, value in _tensors(path):
            ring = self.ring.get(key)
            if ring is None:
                raise ValueError(f"{path}: the ring has no {key}")
            expected = (self.num_envs, chunk.end - chunk.first, *ring.shape[2:])
            if value.dtype != ring.dtype or value.shape != expected:
                got = f"{value.dtype} {tuple(value.shape)}"
                raise ValueError(f"{path}: {key}: expected {ring.dtype} {expected}, got {got}")
            ring[:, rows].copy_(value[:, begin - chunk.first :])
            missing.remove(key)
        if missing:
            raise ValueError(f"{path}: no {min(missing)}")


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, one in memory at a time."""
    try:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                yield key, file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
