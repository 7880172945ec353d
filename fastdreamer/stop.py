"""The signals that end a run in good order."""

import signal
from types import FrameType

STOPPING = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1


class Stop:
    """Set by the first Ctrl-C, SIGTERM or SIGUSR1: the run saves and ends. The second one ends it at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in STOPPING:
            signal.signal(number, self._receive)

    def requested(self) -> bool:
        """Whether one came."""
        return self.signal is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for each in STOPPING:
            signal.signal(each, signal.SIG_DFL)
