"""Tables of numbers as JSON holds them: what comes from a file is looked at before it is believed."""

import math
from collections.abc import Mapping
from typing import Any, Literal

LARGEST = 2**62
"""Beyond any count; int64 holds it."""

Kind = Literal["a count", "a number", "a number or none", "a list of numbers", "text"]


def read_table(data: object, kinds: Mapping[str, Kind], where: str) -> dict[str, Any]:
    """`data`, if it is a table of just these names and kinds; numbers are finite, counts from 0 on.

    Raises ValueError that names the first entry which is not.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected a table, got {repr(data)[:60]}")
    if wrong := sorted(map(str, data.keys() ^ kinds.keys())):
        raise ValueError(f"{where}: {wrong[0][:60]} is {'unknown' if wrong[0] in data else 'missing'}")
    for name, kind in kinds.items():
        if not _is(data[name], kind):
            raise ValueError(f"{where}: {name}: expected {kind}, got {repr(data[name])[:60]}")
    return data


def _is(value: Any, kind: Kind) -> bool:
    match kind:
        case "a count":
            return type(value) is int and 0 <= value < LARGEST
        case "a number":
            return type(value) in (int, float) and abs(value) < LARGEST and math.isfinite(value)
        case "a number or none":
            return value is None or _is(value, "a number")
        case "a list of numbers":
            return isinstance(value, list) and all(_is(item, "a number") for item in value)
        case "text":
            return isinstance(value, str)
