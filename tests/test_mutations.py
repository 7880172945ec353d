"""The tests can fail: every planted mistake is caught by the test that is named for it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import Mutation
from mutations_data import CLOCKWORK, ENVIRONMENT, RING
from mutations_guard import NOT_FINITE
from mutations_learning import ACTING, ACTOR_CRITIC, OPTIMIZER, WORLD_MODEL
from mutations_model import DISTRIBUTIONS, LAYERS, RECURRENT
from mutations_reliability import CURSORS, FAULTY, SAVES
from mutations_sight import DREAMS, FILMS, USED, WATCHED

ROOT = Path(__file__).parents[1]
GROUPS = (
    LAYERS, RECURRENT, DISTRIBUTIONS, WORLD_MODEL, ACTOR_CRITIC, ACTING, OPTIMIZER, ENVIRONMENT, RING, CLOCKWORK,
    CURSORS, FAULTY, SAVES, NOT_FINITE, WATCHED, FILMS, DREAMS, USED,
)  # fmt: skip
MUTATIONS = [mutation for group in GROUPS for mutation in group.values()]
NAMES = [name for group in GROUPS for name in group]
TESTS_FAILED = 1
"""The exit code of pytest for that; a file that cannot be collected gives another one."""
LIMIT, LIMIT_OF_ALL = 120, 1800
"""Seconds for one mutation, and for all tests that catch one."""
WRONG_VALUE = re.compile(r"^tests/\S+:\d+: (AssertionError|Failed)$", re.MULTILINE)


def copy_source(target: Path) -> Path:
    """The packages and their tests without the official arrays, which stay where they are."""
    leave_out = shutil.ignore_patterns("__pycache__", "golden")
    for name in ("fastdreamer", "kernels", "tests"):
        shutil.copytree(ROOT / name, target / name, ignore=leave_out)
    shutil.copy(ROOT / "pyproject.toml", target)
    (target / "tests/golden").symlink_to(ROOT / "tests/golden")
    return target


def run_python(root: Path, *arguments: str, limit: float = LIMIT) -> tuple[int, str]:
    """Exit code and output of a Python process that imports the packages below `root`."""
    paths = os.pathsep.join([str(root), str(root / "kernels")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a third of the time of a test
    environment["FASTDREAMER_KERNELS"] = "reference"  # which is what has the mistakes
    result = subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, timeout=limit, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return result.returncode, result.stdout


def run_tests(root: Path, *nodes: str, limit: float = LIMIT) -> tuple[int, str]:
    """Exit code and output of pytest on nodes below tests/, up to the first failure."""
    options = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider")
    return run_python(root, *options, *(f"tests/{node}" for node in nodes), limit=limit)


@pytest.fixture(scope="session")
def unmutated_tests_pass(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The tests that are to fail pass without a mistake, and what they import is the copy."""
    root = copy_source(tmp_path_factory.mktemp("unmutated"))
    code, output = run_python(
        root, "-c", "import fastdreamer as a, fastdreamer_kernels as b; print(a.__file__, b.__file__)"
    )
    assert code == 0, output
    assert all(Path(file).is_relative_to(root) for file in output.split()), output
    code, output = run_tests(root, *sorted({mutation.test for mutation in MUTATIONS}), limit=LIMIT_OF_ALL)
    assert code == 0, output


@pytest.mark.parametrize("mutation", MUTATIONS, ids=NAMES)
def test_mistake_fits_the_source(mutation: Mutation) -> None:
    """Whoever changes a line that has a mistake planted in it changes the table too."""
    compile(mutation.mutate(ROOT), mutation.file, "exec")
    file, _, function = mutation.test.partition("::")
    assert f"def {function}(" in (ROOT / "tests" / file).read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("unmutated_tests_pass")
@pytest.mark.parametrize("mutation", MUTATIONS, ids=NAMES)
def test_mistake_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    root = copy_source(tmp_path)
    (root / mutation.file).write_text(mutation.mutate(root))
    code, output = run_tests(root, mutation.test)
    assert code == TESTS_FAILED, f"{mutation.test} did not catch it:\n{output}"
    assert mutation.raises or WRONG_VALUE.search(output), f"it raised instead of giving another value:\n{output}"
