"""House rules about imports: floors, models without environments, ops without models, help without torch."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    "config presets spaces batch noise cpu deterministic disk tables schedule metrics skips checkpoint profiling"
    " episodes progress streams cli machine stop filming trackers",
    "nets dists optim heads env env_* video replay replay_* saving",
    "rssm",
    "world_model behavior",
    "agent",
    "steps",
    "learner",
    "trained",
    "evaluate watchdog preflight loop guard panel run train check_env report doctor library export dream ablate",
    "__init__",
)
MODELS = ("nets", "dists", "heads", "rssm", "world_model", "behavior", "agent")
UNPICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def read_imports(tree: ast.AST) -> Iterator[str]:
    """The dotted name of every module that a file may import, inside functions too: `from a import b` is a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


TREES = {
    path.relative_to(ROOT): ast.parse(path.read_text())
    for folder in ("fastdreamer", "kernels/fastdreamer_kernels")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
MODULES = {path.stem: set(read_imports(tree)) for path, tree in TREES.items() if path.parts[0] == "fastdreamer"}
GRAPH = {
    name: {
        parts[1] for parts in (imported.split(".") for imported in imports) if parts[0] == "fastdreamer" and parts[1:]
    }
    & MODULES.keys()
    for name, imports in MODULES.items()
}


def floor_of(module: str) -> int:
    """The number of a module's floor; `env_*` stands for every module that begins so."""
    found = [floor for floor, names in enumerate(FLOORS) if any(Path(module).match(name) for name in names.split())]
    assert len(found) == 1, f"fastdreamer/{module}.py must have one floor in FLOORS, has {found}"
    return found[0]


def closure(module: str) -> set[str]:
    """A module and everything of the package that it imports, directly or not."""
    seen: set[str] = set()
    todo = {module}
    while todo:
        seen |= todo
        todo = set().union(*(GRAPH[name] for name in todo)) - seen
    return seen


def test_every_floor_names_modules_that_exist() -> None:
    names = [name for names in FLOORS for name in names.split()]
    assert [name for name in names if not any(Path(module).match(name) for module in MODULES)] == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_no_higher_floor(module: str) -> None:
    floor = floor_of(module)
    assert [name for name in sorted(GRAPH[module]) if floor_of(name) > floor] == []


def test_no_cycles() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("module", MODELS)
def test_models_know_neither_environments_nor_replay(module: str) -> None:
    assert [name for name in sorted(closure(module)) if name.startswith(("env", "replay"))] == []


def test_ops_never_import_the_algorithm() -> None:
    imports = {path: set(read_imports(tree)) for path, tree in TREES.items() if path.parts[0] == "kernels"}
    assert [path for path, names in imports.items() if any(name.split(".")[0] == "fastdreamer" for name in names)] == []


def test_the_command_line_never_imports_torch() -> None:
    assert [name for name in sorted(closure("cli")) if any(i.split(".")[0] == "torch" for i in MODULES[name])] == []


def test_help_answers_without_torch() -> None:
    program = """
import sys, time
started = time.perf_counter()
from fastdreamer.train import main
try:
    main(["--help"])
except SystemExit as end:
    print("exit", end.code, "torch", "torch" in sys.modules, f"{time.perf_counter() - started:.3f} s")
"""
    lines = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    print(lines[-1])
    assert lines[0].startswith("usage: python -m fastdreamer.train [PRESET]")
    assert lines[-1].startswith("exit 0 torch False")


@pytest.mark.parametrize("path", TREES, ids=str)
def test_nothing_swallows_every_error_or_unpickles(path: Path) -> None:
    nodes = list(ast.walk(TREES[path]))
    caught = {ast.unparse(node.type) if node.type else "all" for node in nodes if isinstance(node, ast.ExceptHandler)}
    assert [types for types in caught if re.search(r"\b(all|Exception|BaseException)\b", types)] == []
    assert {name.split(".")[0] for name in read_imports(TREES[path])} & UNPICKLES == set()
    calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    assert calls & {"torch.load", "torch.save"} == set()
