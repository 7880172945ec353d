"""What an environment may do wrong without ending the run: a bounded number of times, each said in one line."""

import logging
import time

from fastdreamer.env_step import EnvError

logger = logging.getLogger(__name__)

MOST, WITHIN = 3, 600.0
"""Times that one environment is made anew within so many seconds; one more and it is called broken."""


class Fault(Exception):
    """An environment gave no record: its process died or did not answer in time."""


class Rebuilds:
    """How often environments were made anew."""

    def __init__(self) -> None:
        self.count = 0
        self._times: dict[str, list[float]] = {}

    def note(self, who: str, why: str) -> None:
        """Counts one and logs it. Raises EnvError where `who` fails again and again."""
        now = time.monotonic()
        recent = [at for at in self._times.get(who, []) if now - at < WITHIN]
        if len(recent) == MOST:
            raise EnvError(f"{who}: {why}; {MOST + 1} failures within {WITHIN / 60:.0f} minutes")
        self._times[who] = [*recent, now]
        self.count += 1
        logger.warning("%s: %s; it is made anew and begins new episodes", who, why)
