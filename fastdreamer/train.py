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
    from fastdreamer.loop import run

    try:
        return run(job.config, job.resume, started)
    except ValueError as error:
        cli.fail(str(error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
