"""Which updates were skipped, counted on the device as part of the update: nobody waits for it, a graph can hold it."""

import torch
from torch import Tensor

RECENT = 100
"""Updates that a count is about."""


class Skips:
    """The latest updates: which of them were skipped, most of them at once so far, and the plan of the last one.

    batch: windows per update. Every tensor stays where it is.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.most = torch.zeros((), device=device)
        """The most skipped updates that any RECENT in a row had since the last `clear`, ()."""
        self.plan = torch.full((2, batch), -1, dtype=torch.int64, device=device)
        """Environment and context record of the windows of the last skipped update, (2, B); -1 before it."""
        self._recent = torch.zeros(RECENT, device=device)
        self._turn = torch.zeros(1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, skipped: Tensor, plan: Tensor) -> None:
        """One more update: skipped () float is 1 where it was; plan (2, B)."""
        self._recent.index_copy_(0, self._turn, skipped.view(1))
        self._turn.add_(1).remainder_(RECENT)
        self.most.copy_(torch.maximum(self.most, self._recent.sum()))
        self.plan.copy_(torch.where(skipped == 0, self.plan, plan))

    def clear(self) -> None:
        """Forgets what was skipped."""
        self.most.zero_(), self._recent.zero_()

    def state(self) -> list[Tensor]:
        """What `add` changes."""
        return [self.most, self.plan, self._recent, self._turn]
