"""`python -m fastdreamer.train [PRESET] [--field VALUE ...]`: trains an agent. Parses first, imports torch after."""

import logging
import os
import sys
import time
from typing import TextIO

DIVERGED, OUT_OF_MEMORY = 3, 4
KNOBS = "out of memory, try a smaller replay.capacity, replay.batch_size or model.size"


class Lines(logging.StreamHandler[TextIO]):
    """To sys.stdout as it is at that moment: the panel of a run puts its own in the place of it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # as logging's own handler of last resort does it
        """Where lines go."""
        return sys.stdout


def main(argv: list[str]) -> int:
    """The exit code: 0 done, 2 a user's mistake, 3 diverged, 4 out of memory; 128 + n after signal n."""
    started = time.perf_counter()
    # Waiting threads that spin starve the environments' threads; read by OpenMP when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from fastdreamer import cli

    job = cli.parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[Lines()])
    from fastdreamer.guard import DivergedError
    from fastdreamer.run import run

    try:
        return run(job.config, job.resume, started)
    except DivergedError as error:
        cli.fail(error, DIVERGED)
    except ValueError as error:
        if not is_ours(error):
            raise
        cli.fail(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        cli.fail(f"{KNOBS}: {str(error)[:200]}", OUT_OF_MEMORY)


def program() -> int:
    """`fastdreamer-train`."""
    return main(sys.argv[1:])


def is_out_of_memory(error: Exception) -> bool:
    """Whether it was the host's or the GPU's memory that ran out: torch has an error of its own for the GPU alone."""
    names = (type(error).__name__, str(error))
    return isinstance(error, MemoryError) or "OutOfMemoryError" in names[0] or "can't allocate memory" in names[1]


def is_ours(error: ValueError) -> bool:
    """Whether our code raised it, for a user to read. Any other is a defect, also of an environment: show where."""
    traceback = error.__traceback__
    assert traceback is not None, "it was raised"
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    raised_in = traceback.tb_frame.f_globals["__name__"]
    return any(module.startswith("fastdreamer") for module in (type(error).__module__, raised_in))


if __name__ == "__main__":
    sys.exit(program())
