"""The records of a ring on the disk: each is written once, by the first save after it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from fastdreamer.replay_files import Due, File, RingFiles, Staged

MOST_PARTS = 8
"""Files of one chunk before they are written as one."""


class Part(NamedTuple):
    """A file that holds records first .. end - 1 of every environment, all of one chunk."""

    file: File
    first: int
    end: int


class RecordFiles(RingFiles):
    """Which records are on the disk."""

    def __init__(self, ring: Mapping[str, Tensor]) -> None:
        super().__init__(ring)
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
        due = [Due(f"records-{begin:010}-{stop:010}", self.span(begin, stop)) for begin, stop in spans]

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
            self.read(folder / part.file.name, part.first, part.end, max(first, part.first))
            reached = part.end
        if reached < end:
            raise ValueError(f"{folder}: no file of records holds record {reached}")
        self._remember(parts)

    def _remember(self, parts: list[Part]) -> None:
        self._parts = {}
        for part in sorted(parts, key=lambda part: part.first):
            self._parts.setdefault(part.first // self.length, []).append(part)
