"""`python -m fastdreamer.train [PRESET] [--field VALUE ...]`: trains an agent. Parses first, imports torch after."""

import logging
import os
import sys
import time


def main(argv: list[str]) -> int:
    """The exit code: 0, 2 for a user's mistake (one line), 128 + n after signal n."""
    started = time.perf_counter()
    # Waiting threads that spin starve the environments' threads; read by OpenMP when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from fastdreamer import cli

    job = cli.parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    from fastdreamer.run import run

    try:
        return run(job.config, job.resume, started)
    except ValueError as error:
        if not is_ours(error):
            raise
        cli.fail(str(error))


def is_ours(error: ValueError) -> bool:
    """Whether our code raised it, for a user to read. Any other is a defect, also of an environment: show where."""
    traceback = error.__traceback__
    assert traceback is not None, "it was raised"
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    raised_in = traceback.tb_frame.f_globals["__name__"]
    return any(module.startswith("fastdreamer") for module in (type(error).__module__, raised_in))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
