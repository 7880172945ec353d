"""How far a run is: the counters and times that its log, its checkpoints and its summary share."""

from dataclasses import asdict, dataclass, field

from fastdreamer.tables import Kind, read_table

SCORED = 20
"""Training episodes in the mean return."""
KINDS: dict[str, Kind] = {
    "updates": "a count",
    "episodes": "a count",
    "train_seconds": "a number",
    "update_seconds": "a number",
    "first_update_seconds": "a number or none",
    "solved_seconds": "a number or none",
    "scores": "a list of numbers",
}


@dataclass
class Progress:
    """Counts of one run, and seconds of training: waiting for environments included, start-up and evaluation not."""

    updates: int = 0
    episodes: int = 0
    train_seconds: float = 0.0
    update_seconds: float = 0.0
    first_update_seconds: float | None = None
    """From the start of the process to the end of the first update."""
    solved_seconds: float | None = None
    """Training time when the mean return first reached run.solved."""
    scores: list[float] = field(default_factory=list)
    """Returns of the last training episodes, oldest first, at most 20."""

    def add_score(self, score: float) -> None:
        """Counts a finished episode."""
        self.episodes += 1
        self.scores = [*self.scores, score][-SCORED:]

    def mean_score(self) -> float | None:
        """Mean return of the last episodes; None before the first has ended."""
        return sum(self.scores) / len(self.scores) if self.scores else None

    def reaches(self, threshold: float) -> bool:
        """Whether the mean over a full 20 episodes is at least this."""
        mean = self.mean_score()
        return len(self.scores) == SCORED and mean is not None and mean >= threshold

    def to_json(self) -> dict[str, object]:
        """Plain data for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, object]) -> "Progress":
        """Progress from `to_json`'s data. Raises ValueError where a field is missing, unknown or no number."""
        return cls(**read_table(data, KINDS, "progress"))
