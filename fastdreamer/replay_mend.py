"""A ring rid of values that are not finite: one of them would spoil every batch and every file that it gets into.

No environment can put one there; a defect of a kernel or of the memory can.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

ABSENT = -torch.inf
"""An observation that is not there, to the encoder and to the losses."""


def mend(rings: Mapping[str, Tensor], first: int, end: int) -> np.ndarray:
    """Makes observations that are not finite absent and other values 0; the numbers (R,) of the records that had some.

    rings: key -> (N, rows, ...), where record r lies in row r % rows; only records first .. end - 1 are looked at.
    Waits for their devices.
    """
    rows = next(iter(rings.values())).shape[1]
    assert end - first <= rows, (first, end, rows)
    turn = end // rows * rows  # the record in row 0
    found = [np.zeros(0, np.int64)]
    for begin, stop in ((first, turn), (turn, end)) if first < turn else ((first, end),):
        for key, ring in rings.items():
            part = ring[:, begin % rows :][:, : stop - begin]
            if part.is_floating_point():
                found.append(begin + _mend(part, ABSENT if key.startswith("obs/") else 0.0))
    return np.unique(np.concatenate(found))


def _mend(part: Tensor, fill: float) -> np.ndarray:
    """Of (N, R, ...), the numbers of the rows that were not finite; values that are `fill` may stay."""
    if part.sum().isfinite():  # no copy: it must be quick where nothing is wrong
        return np.zeros(0, np.int64)
    spoiled = ~part.isfinite() & (part != fill)
    part.masked_fill_(spoiled, fill)
    return spoiled.transpose(0, 1).flatten(1).any(1).nonzero()[:, 0].cpu().numpy()
