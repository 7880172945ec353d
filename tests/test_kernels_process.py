"""What the native library promises beside values: threads, forks, concurrent callers, instruction sets, memory."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import kernel_cases
import kernel_model_cases
import pytest
import torch
from kernel_cases import Case
from kernel_checks import assert_near, assert_no_leak, bytes_of, named, needs_native, results
from safetensors.torch import load_file, save_file

from fastdreamer_kernels import _native

RAGGED = [*kernel_cases.ragged(), *kernel_model_cases.ragged()]
LARGE = [*kernel_cases.large(), *kernel_model_cases.large()]
EVERY = RAGGED + LARGE
QUICK = list(kernel_cases.large())
"""With work for several tasks, but milliseconds of it."""


@needs_native
@pytest.mark.parametrize("case", named(LARGE))
def test_results_do_not_depend_on_the_number_of_threads(case: Case, threads: Callable[[int], None]) -> None:
    """Observing gives each thread rows of its own, as many as there are for it."""
    runs = []
    for count in (1, 2, 3, 7, 2):
        threads(count)
        runs.append(bytes_of(tuple(results(case))))
    assert runs[0] and all(run == runs[0] for run in runs[1:])


@needs_native
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs fork and /proc")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_has_threads_of_its_own(threads: Callable[[int], None]) -> None:
    case = QUICK[2]
    threads(2)
    expected = bytes_of(case.call("native", *case.inputs))
    child = os.fork()
    if child == 0:  # if it waits for a thread of its parent, the alarm ends it
        signal.alarm(20)
        right = bytes_of(case.call("native", *case.inputs)) == expected
        os._exit(0 if right and len(os.listdir("/proc/self/task")) == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bytes_of(case.call("native", *case.inputs)) == expected


@needs_native
def test_concurrent_callers_get_their_own_results(threads: Callable[[int], None]) -> None:
    threads(2)
    expected = [bytes_of(case.call("native", *case.inputs)) for case in QUICK]
    wrong: list[str] = []

    def work(first: int) -> None:
        for i in range(3 * len(QUICK)):
            case, value = QUICK[(first + i) % len(QUICK)], expected[(first + i) % len(QUICK)]
            if bytes_of(case.call("native", *case.inputs)) != value:
                wrong.append(case.name)

    workers = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def other_instruction_sets() -> list[str]:
    if _native.library is None:
        return []
    best = ctypes.c_char_p(_native.library.fd_isa()).value or b""
    known = ["base", "v3", "v4"]
    return [each for each in known[: known.index(best.decode()) + 1] if each != _native.isa]


@needs_native
@pytest.mark.parametrize("isa", other_instruction_sets())
def test_instruction_sets_agree(isa: str, tmp_path: Path) -> None:
    """Indices and copies exactly; floats but for fused multiply-adds, which base does not have. Every native op."""
    script = f"import test_kernels_process as t; t.save_results({str(tmp_path / 'results')!r})"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"FASTDREAMER_ISA": isa, "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)
    other = load_file(tmp_path / "results")
    for case in EVERY:
        for i, mine in enumerate(results(case)):
            theirs = other[f"{case.name}/{i}"]
            if case.op == "replay_gather":
                assert torch.equal(mine, theirs)
            else:
                assert_near(mine, theirs, case.absolute)


def save_results(path: str) -> None:
    save_file({f"{case.name}/{i}": x.contiguous() for case in EVERY for i, x in enumerate(results(case))}, path)


@needs_native
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("op", sorted({case.op for case in RAGGED}))
def test_calls_do_not_leak(op: str) -> None:
    small, big = (next(case for case in cases if case.op == op) for cases in (RAGGED, LARGE))
    assert_no_leak(small, big)
