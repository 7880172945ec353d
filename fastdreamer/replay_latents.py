"""The states of a ring on the disk: training renews them, so a save writes those that changed since the one before.

Where half of a chunk has changed since its file was written, the chunk is written anew and its changes are forgotten.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdreamer.replay_files import Due, File, RingFiles, Staged, read_tensors, require

MOST_CHANGES = 32
"""Files of changes before the chunks that they are about are written anew."""
ENV, RECORD = "env", "record"
"""Whose state a row of changes is, (R,) int64 each."""


class Base(NamedTuple):
    """A file that holds the states of records first .. end - 1, all of one chunk, as a save found them."""

    file: File
    first: int
    end: int
    save: int


class Changes(NamedTuple):
    """A file that holds single states as a save found them; how many of each chunk."""

    file: File
    save: int
    counts: dict[int, int]


class LatentFiles(RingFiles):
    """Which states are on the disk, and which of them are outdated."""

    def __init__(self, ring: Mapping[str, Tensor]) -> None:
        super().__init__(ring)
        self._outdated = np.zeros((self.num_envs, self.rows), bool)
        self._bases: dict[int, Base] = {}
        self._changes: list[Changes] = []

    def changed(self, env: np.ndarray | slice, records: np.ndarray | int) -> None:
        """Notes states that are new or were renewed: environments and record numbers, broadcast."""
        self._outdated[env, records % self.rows] = True

    def stage(self, folder: Path, first: int, end: int) -> Staged:
        """A save of the states of records first .. end - 1."""
        save = self._latest_save() + 1
        bases: dict[int, Base] = {}
        whole: list[tuple[int, int]] = []
        single = [np.zeros((0, 2), np.int64)]
        for number in range(first // self.length, -(-end // self.length)):
            begin, stop = max(first, number * self.length), min(end, (number + 1) * self.length)
            outdated, base = self._outdated[:, begin % self.rows :][:, : stop - begin], self._bases.get(number)
            if base is None or base.first > begin or self._is_due(folder, base, outdated):
                whole.append((begin, stop))
            else:
                bases[number] = base
                single.append(np.argwhere(outdated) + np.array([0, begin]))
        rows, taken = np.concatenate(single), self._outdated.copy()
        self._outdated[:] = False
        kept = [each for each in self._changes if any(n in bases and each.save > bases[n].save for n in each.counts)]
        due = [Due(f"latents-{begin:010}-{stop:010}-{save:06}", self.span(begin, stop)) for begin, stop in whole]
        if len(rows):
            due.append(self._single(save, rows))

        def keep(written: list[File]) -> None:
            new = [Base(file, *span, save) for file, span in zip(written, whole, strict=False)]
            self._bases = bases | {base.first // self.length: base for base in new}
            self._changes = [*kept, *([Changes(written[-1], save, self._counts(rows[:, 1]))] if len(rows) else [])]

        def drop() -> None:
            self._outdated |= taken

        return Staged([base.file for base in bases.values()] + [each.file for each in kept], due, keep, drop)

    def load(self, folder: Path, names: Mapping[str, int], first: int, end: int) -> None:
        """Puts the states of records first .. end - 1 back into a new ring; `names`, errors: as for `RecordFiles`."""
        covered = np.zeros((self.num_envs, end - first), bool)
        later = []
        for name, crc in names.items():
            if match := re.fullmatch(r"latents-(\d+)-(\d+)-(\d+)-\w+\.safetensors", name):
                base = Base(File(name, crc), *map(int, match.groups()))
                if first < base.end <= end and base.first < base.end <= (base.first // self.length + 1) * self.length:
                    self.read(folder / name, base.first, base.end, max(first, base.first))
                    covered[:, max(first, base.first) - first : base.end - first] = True
                    self._bases[base.first // self.length] = base
            elif match := re.fullmatch(r"changes-(\d+)-\w+\.safetensors", name):
                later.append((int(match[1]), File(name, crc)))
        for save, file in sorted(later):
            rows = self._read_single(folder / file.name, save, first, end)
            covered[rows[:, 0], rows[:, 1] - first] = True
            self._changes.append(Changes(file, save, self._counts(rows[:, 1])))
        if not covered.all():
            raise ValueError(f"{folder}: no file of latents holds record {first + np.argwhere(~covered)[:, 1].min()}")

    def _latest_save(self) -> int:
        saves = [base.save for base in self._bases.values()] + [each.save for each in self._changes]
        return max(saves, default=0)

    def _is_due(self, folder: Path, base: Base, outdated: np.ndarray) -> bool:
        """Whether a chunk must be written as a whole again."""
        number = base.first // self.length
        later = [each for each in self._changes if each.save > base.save and number in each.counts]
        rows = sum(each.counts[number] for each in later) + int(outdated.sum())
        if 2 * rows >= outdated.size or (later and len(self._changes) >= MOST_CHANGES):
            return True
        return not all((folder / file.name).is_file() for file in (base.file, *(each.file for each in later)))

    def _counts(self, records: np.ndarray) -> dict[int, int]:
        return dict(Counter((records // self.length).tolist()))

    def _single(self, save: int, rows: np.ndarray) -> Due:
        env, record = torch.from_numpy(rows).T.contiguous()
        tensors = {ENV: env, RECORD: record}
        for key, ring in self.ring.items():
            tensors[key] = ring[env.to(ring.device), (record % self.rows).to(ring.device)]
        return Due(f"changes-{save:06}", tensors)

    def _read_single(self, path: Path, save: int, first: int, end: int) -> np.ndarray:
        """Applies the changes of records first .. end - 1 that are newer than their base; (R, 2) of all of them."""
        tensors = dict(read_tensors(path))
        if missing := sorted({ENV, RECORD, *self.ring} - tensors.keys()):
            raise ValueError(f"{path}: no {missing[0]}")
        places = [tensors.pop(key) for key in (ENV, RECORD)]
        if any(place.dtype != torch.int64 or place.shape != places[0].shape or place.ndim != 1 for place in places):
            raise ValueError(f"{path}: {ENV} and {RECORD} must be int64 of one length")
        rows = torch.stack(places, 1).numpy()
        if ((rows < 0) | (rows >= [self.num_envs, end])).any():
            raise ValueError(f"{path}: states of records that are not in the ring")
        bases = {number: base.save for number, base in self._bases.items()}
        newer = np.array([save > bases.get(number, -1) for number in (rows[:, 1] // self.length).tolist()], bool)
        wanted = newer & (rows[:, 1] >= first)
        env, record = torch.from_numpy(rows[wanted]).T
        for key, value in tensors.items():
            require(path, key, value, self.ring.get(key), (len(rows),))
            ring = self.ring[key]
            ring[env.to(ring.device), (record % self.rows).to(ring.device)] = value[torch.from_numpy(wanted)].to(
                ring.device
            )
        return rows[rows[:, 1] >= first]
