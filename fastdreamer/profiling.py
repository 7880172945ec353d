"""Names the parts of the loop in a profile: `nsys profile -t cuda,nvtx python -m fastdreamer.train`.

Without a profiler attached nvtx hands out a domain that does nothing, and a range costs about 0.2 us; so ranges need
no switch. NVTX_DISABLE=1 (nvtx's own variable) leaves them out of a profile.
"""

from types import TracebackType
from typing import Literal, get_args

import nvtx

RangeName = Literal["env", "act", "plan", "stage", "train", "save", "log"]

COLORS: dict[RangeName, str] = {
    "env": "green",
    "act": "blue",
    "plan": "yellow",
    "stage": "orange",
    "train": "red",
    "save": "purple",
    "log": "brown",
}


class Range:
    """A context manager that can be entered again and again, nested too; it holds no state but its name."""

    __slots__ = ("_attributes", "_pop", "_push")

    def __init__(self, domain: nvtx.Domain, name: RangeName) -> None:
        # registered once: a push then passes a handle instead of building a message
        self._attributes = domain.get_event_attributes(message=name, color=COLORS[name])
        self._push, self._pop = domain.push_range, domain.pop_range

    def __enter__(self) -> None:
        self._push(self._attributes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pop()


def make_ranges(domain: nvtx.Domain) -> dict[RangeName, Range]:
    """One range per name, registered in `domain`."""
    return {name: Range(domain, name) for name in get_args(RangeName)}


_RANGES = make_ranges(nvtx.get_domain("fastdreamer"))


def range_(name: RangeName) -> Range:
    """The range of that name, for `with range_("train"):`. Never inside a captured or compiled function."""
    return _RANGES[name]
