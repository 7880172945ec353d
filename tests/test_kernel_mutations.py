"""The tests of the kernels can fail: every mistake in a native or Triton kernel is caught by the test named for it."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mutations import Mutation
from mutations_kernels import NATIVE, TRITON
from test_mutations import ROOT, TESTS_FAILED, WRONG_VALUE, copy_source, run_tests

from fastdreamer_kernels import _dispatch, _native

NODES = [{mutation.test for mutation in table.values()} for table in (NATIVE, TRITON)]
needs_compiler = pytest.mark.skipif(
    _native.library is None or not shutil.which("cmake") or not shutil.which("ninja"),
    reason="needs cmake and ninja to build the native library again",
)
needs_interpreter = pytest.mark.skipif(not _dispatch.INTERPRETED, reason="needs TRITON_INTERPRET=1")


def named(table: dict[str, Mutation]) -> list[object]:
    return [pytest.param(mutation, id=name) for name, mutation in table.items()]


def build(root: Path) -> None:
    """The native library of a copied tree: what changed, for this processor alone, with the quick optimizations."""
    folder = root / "build"
    steps = [["cmake", "--build", str(folder)]]
    if not folder.exists():
        options = [f"-DFASTDREAMER_ISAS={_native.isa}", "-DCMAKE_BUILD_TYPE=Quick", "-DCMAKE_CXX_FLAGS=-O1 -g0"]
        steps.insert(0, ["cmake", "-S", str(root), "-B", str(folder), "-G", "Ninja", *options])
    for step in steps:
        done = subprocess.run(step, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
    shutil.copy(folder / "libfastdreamer.so", root / "kernels/fastdreamer_kernels")


def assert_passes(root: Path, nodes: set[str]) -> None:
    """The tests that are to fail pass without a mistake."""
    for file in sorted({node.partition("::")[0] for node in nodes}):
        code, output = run_tests(root, *sorted(node for node in nodes if node.startswith(file)))
        assert code == 0, output


@pytest.fixture(scope="session")
def native_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with a library of its own, which every mutation changes and restores."""
    root = copy_source(tmp_path_factory.mktemp("native"))
    shutil.copy(ROOT / "CMakeLists.txt", root)
    build(root)
    assert_passes(root, NODES[0])
    return root


@pytest.fixture(scope="session")
def triton_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = copy_source(tmp_path_factory.mktemp("triton"))
    assert_passes(root, NODES[1])
    return root


@contextmanager
def planted(mutation: Mutation, root: Path) -> Iterator[None]:
    file = root / mutation.file
    right = file.read_text()
    file.write_text(mutation.mutate(root))
    try:
        yield
    finally:
        file.write_text(right)


def assert_caught(mutation: Mutation, root: Path) -> None:
    code, output = run_tests(root, mutation.test)
    assert code == TESTS_FAILED, f"{mutation.test} did not catch it:\n{output}"
    assert mutation.raises or WRONG_VALUE.search(output), f"it raised instead of giving another value:\n{output}"


@pytest.mark.parametrize("mutation", named(NATIVE | TRITON))
def test_mistake_fits_the_source(mutation: Mutation) -> None:
    """Whoever changes a line that has a mistake planted in it changes the table too."""
    assert mutation.mutate(ROOT) != (ROOT / mutation.file).read_text()
    file, _, node = mutation.test.partition("::")
    assert f"def {node.partition('[')[0]}(" in (ROOT / "tests" / file).read_text()


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("mutation", named(NATIVE))
def test_native_mistake_is_caught(mutation: Mutation, native_tree: Path) -> None:
    with planted(mutation, native_tree):
        build(native_tree)
        assert_caught(mutation, native_tree)


@needs_interpreter
@pytest.mark.slow
@pytest.mark.parametrize("mutation", named(TRITON))
def test_triton_mistake_is_caught(mutation: Mutation, triton_tree: Path) -> None:
    with planted(mutation, triton_tree):
        assert_caught(mutation, triton_tree)
