"""What an environment shows and takes: one `Space` per observation key and per action key."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Space:
    """One observation or action key.

    image     uint8 (H, W, C)
    vector    float32 of any shape; `low`, `high` bound an action elementwise (same for observations: unset)
    discrete  int32 of any shape, every element in 0..classes-1
    """

    kind: Literal["image", "vector", "discrete"]
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


Spaces = dict[str, Space]
