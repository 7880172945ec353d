"""The records of a ring on the disk: each is written once, by the first save after it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from fastdreamer.replay_files import Due, File, Staged, chunk_length, read_tensors, require

MOST_PARTS = 8
"""Files of one chunk before they are written as one."""


class Part(NamedTuple):
    """A file that holds records first .. end - 1 of every environment, all of one chunk."""

    file: File
    first: int
    end: int


class RecordFiles:
    """Which records are on the disk.

    ring: key -> (N, rows, ...), where record r lies in row r % rows; the number of rows is a multiple of the chunk
    length, so that no chunk wraps around.
    """

    def __init__(self, ring: Mapping[str, Tensor]) -> None:
        self.ring = ring
        self.num_envs, self.rows = next(iter(ring.values())).shape[:2]
        self.length = chunk_length(self.num_envs)
        assert self.rows % self.length == 0, (self.rows, self.length)
        self._parts: dict[int, list[Part]] = {}

    def changed(self, records: np.ndarray) -> None:
        """These were written anew, against the rule: their chunks go to the disk again."""
        for number in np.unique(records // self.length).tolist():
            self._parts.pop(number, None)

    def stage(self, folder: Path, first: int, end: int) -> Staged:
        """A save of records first .. end - 1."""
        kept: list[Part] = []
        spans: list[tuple[int, int]] = []
        for number in range(first // self.length, -(-end // self.length)):
            begin, stop = max(first, number * self.length), min(end, (number + 1) * self.length)
            parts = [part for part in self._parts.get(number, []) if part.end > first]
            gone = not all((folder / part.file.name).is_file() for part in parts)
            if gone or (len(parts) == MOST_PARTS and parts[-1].end < stop):
                parts = []
            kept += parts
            done = parts[-1].end if parts else begin
            if done < stop:
                spans.append((done, stop))
        due = [
            Due(
                f"records-{begin:010}-{stop:010}",
                {key: ring[:, self._rows(begin, stop)] for key, ring in self.ring.items()},
            )
            for begin, stop in spans
        ]

        def keep(written: list[File]) -> None:
            self._remember([*kept, *(Part(file, *span) for file, span in zip(written, spans, strict=True))])

        return Staged([part.file for part in kept], due, keep, lambda: None)

    def load(self, folder: Path, names: Mapping[str, int], first: int, end: int) -> None:
        """Puts records first .. end - 1 back into a new ring; `names` are those of a save up to the same `end`.

        Raises ValueError where a file is unreadable, does not fit the ring, or is not among the names.
        """
        parts = []
        for name, crc in names.items():
            if match := re.fullmatch(r"records-(\d+)-(\d+)-\w+\.safetensors", name):
                part = Part(File(name, crc), int(match[1]), int(match[2]))
                if first < part.end <= end and part.first < part.end <= (part.first // self.length + 1) * self.length:
                    parts.append(part)
        parts.sort(key=lambda part: part.first)
        reached = first
        for part in parts:
            if part.first > reached:
                break
            self._read(folder / part.file.name, part, first)
            reached = part.end
        if reached < end:
            raise ValueError(f"{folder}: no file of records holds record {reached}")
        self._remember(parts)

    def _remember(self, parts: list[Part]) -> None:
        self._parts = {}
        for part in sorted(parts, key=lambda part: part.first):
            self._parts.setdefault(part.first // self.length, []).append(part)

    def _rows(self, first: int, end: int) -> slice:
        start = first % self.rows
        return slice(start, start + end - first)

    def _read(self, path: Path, part: Part, first: int) -> None:
        begin, missing = max(first, part.first), set(self.ring)
        for key, value in read_tensors(path):
            require(path, key, value, self.ring.get(key), (self.num_envs, part.end - part.first))
            self.ring[key][:, self._rows(begin, part.end)].copy_(value[:, begin - part.first :])
            missing.remove(key)
        if missing:
            raise ValueError(f"{path}: no {min(missing)}")
