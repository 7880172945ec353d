"""When to learn, and when to do what is done now and then."""

from collections.abc import Mapping

from fastdreamer.tables import read_table


class TrainRatio:
    """How many updates are due: `train_ratio` replayed steps per agent step, the fraction carried over.

    Follows the official arithmetic to the bit. The first call gives one update, whatever the step. Source: SPEC 1.2.
    Raises ValueError unless train_ratio is positive: a run must not silently train on nothing.
    """

    def __init__(self, train_ratio: float, batch_size: int, batch_length: int) -> None:
        if not train_ratio > 0:
            raise ValueError(f"run.train_ratio must be positive, got {train_ratio}")
        self.updates_per_step = train_ratio / (batch_size * batch_length)
        self._previous: float | None = None

    def due(self, step: int) -> int:
        """Updates to make at this agent step, counted over all environments."""
        if self._previous is None:
            self._previous = float(step)
            return 1
        updates = int((step - self._previous) * self.updates_per_step)
        self._previous += updates / self.updates_per_step
        return updates

    def state_dict(self) -> dict[str, float | None]:
        """What must be saved to go on as if never interrupted; JSON holds it exactly."""
        return {"previous": self._previous}

    def load_state_dict(self, state: Mapping[str, object], step: int) -> None:
        """Goes on from a `state_dict` of this agent step. Raises ValueError for what is none."""
        previous = read_table(state, {"previous": "a number or none"}, "train_ratio")["previous"]
        if previous is not None and not step - 2 / self.updates_per_step <= previous <= step:
            raise ValueError(f"train_ratio: previous: expected a step at which updates were due, got {previous}")
        self._previous = previous


class Every:
    """Due once per interval, at the first call in each: 1000 means steps or seconds 1000.., 2000.., as counted.

    start: where the count begins, such as the step of a resumed run. interval 0 is never due. An interval that was
    missed is not made up for. Raises ValueError for a negative interval.
    """

    def __init__(self, interval: float, start: float = 0.0) -> None:
        if not interval >= 0:
            raise ValueError(f"interval must be 0 or more, got {interval}")
        self.interval = interval
        self._period = self._period_of(start)

    def due(self, now: float) -> bool:
        """True at the first call of an interval."""
        period = self._period_of(now)
        due = period > self._period
        self._period = max(period, self._period)
        return due

    def _period_of(self, now: float) -> int:
        return int(now // self.interval) if self.interval else 0
