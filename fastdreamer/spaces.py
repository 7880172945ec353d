"""What an environment shows and takes: one `Space` per observation key and per action key."""

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from fastdreamer.tables import Kind, read_table

KIND = Literal["image", "vector", "discrete"]
LARGEST_LENGTH = 2**24
"""Elements of one observation, in a file: what asks for more is damage."""


@dataclass(frozen=True)
class Space:
    """One observation or action key.

    image     uint8 (H, W, C)
    vector    float32 of any shape; `low`, `high` bound an action elementwise (same for observations: unset)
    discrete  int32 of any shape, every element in 0..classes-1
    """

    kind: KIND
    shape: tuple[int, ...] = ()
    classes: int = 0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def dtype(self) -> Literal["uint8", "float32", "int32"]:
        """The numpy and torch name of the element type."""
        match self.kind:
            case "image":
                return "uint8"
            case "vector":
                return "float32"
            case "discrete":
                return "int32"

    @property
    def elements(self) -> int:
        """How many values one record holds."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def width(self) -> int:
        """How many floats the flattened value needs: a discrete element is one-hot."""
        return self.elements * self.classes if self.kind == "discrete" else self.elements

    def in_words(self) -> str:
        """Such as `64 x 64 x 3 pixels`, `4 numbers` or `one of 2`, for a user."""
        match self.kind:
            case "image":
                return f"{' x '.join(map(str, self.shape))} pixels"
            case "vector":
                return "a number" if self.elements == 1 else f"{self.elements} numbers"
            case "discrete":
                return (
                    f"one of {self.classes}" if self.elements == 1 else f"{self.elements} times one of {self.classes}"
                )


Spaces = dict[str, Space]

KINDS: dict[str, Kind] = {
    "kind": "text",
    "shape": "a list of numbers",
    "classes": "a count",
    "low": "a list of numbers",
    "high": "a list of numbers",
}


def spaces_to_json(spaces: Spaces) -> dict[str, dict[str, object]]:
    """Plain data for a checkpoint."""
    return {key: asdict(space) for key, space in spaces.items()}


def spaces_from_json(data: object, where: str) -> Spaces:
    """Spaces from `spaces_to_json`'s data. Raises ValueError that names the first entry which is none."""
    if not isinstance(data, dict) or not data:
        raise ValueError(f"{where}: expected a table of spaces, got {repr(data)[:60]}")
    return {key: _from_json(table, f"{where}: {key}") for key, table in data.items()}


def _from_json(data: object, where: str) -> Space:
    read = read_table(data, KINDS, where)
    shape = tuple(int(length) for length in read["shape"])
    space = Space(read["kind"], shape, read["classes"], tuple(read["low"]), tuple(read["high"]))
    bounds = {len(space.low), len(space.high)}
    fits = (
        space.kind in get_args(KIND)
        and list(shape) == read["shape"]
        and all(1 <= length <= LARGEST_LENGTH for length in shape)
        and space.elements <= LARGEST_LENGTH
        and (space.kind != "image" or len(shape) == 3)
        and (space.kind != "discrete" or 1 <= space.classes <= LARGEST_LENGTH)
        and bounds in ({0}, {space.elements})
    )
    if not fits:
        raise ValueError(f"{where}: no space: {repr(data)[:80]}")
    return space
