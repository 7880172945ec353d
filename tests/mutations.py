"""What one planted mistake is, and how it gets into a file. The tables are in mutations_*.py."""

from pathlib import Path
from typing import NamedTuple


class Mutation(NamedTuple):
    """A plausible mistake of one line, and the test that must fail because of it."""

    file: str
    """Relative to the root of the repository."""
    old: str
    """Occurs exactly once in the file."""
    new: str
    test: str
    """A pytest node below tests/."""
    raises: bool = False
    """Whether the mistake raises where the test calls it, instead of giving another value."""

    def mutate(self, root: Path) -> str:
        """The file below `root` with the mistake. Fails where `old` does not occur exactly once any more."""
        text = (root / self.file).read_text()
        count = text.count(self.old)
        assert count == 1, f"{self.file} must hold {self.old!r} once for its mutation, holds it {count} times"
        return text.replace(self.old, self.new)
