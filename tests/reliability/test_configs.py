"""Two hundred wrong configs, by flag and by file: each is one line that names its field, and the exit code is 2."""

import copy
import json
import math
import resource
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import pytest

from fastdreamer.cli import parse
from fastdreamer.config import Config
from fastdreamer.presets import PRESETS

Bar = Callable[[str, bool], None]
SECONDS = 2.0
"""User time on a CPU from the start of Python to the end of a mistake; half a second where nothing else runs."""
HUGE = 10**400
BELOW = {
    "replay.capacity": 0,
    "replay.batch_length": 1,
    "env.num_envs": 0,
    "loss.discount_horizon": 1,
    "run.steps": 0,
    "run.train_ratio": 0,
}
"""The largest value that is too small, where it is not -1."""
UNBOUNDED = "preset", "env.id", "run.dir"


class Mutation(NamedTuple):
    """A config.json, or the words of a command line, with one mistake; what the line must name."""

    label: str
    names: str
    text: str | None
    words: list[str]


def leaves(kind: Any = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the type of every field that is no group of others."""
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from leaves(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def groups(kind: Any = Config, prefix: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield prefix + name
            yield from groups(hint, f"{prefix}{name}.")


def kinds_of(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is types.UnionType else (hint,)


def changed(name: str, change: Callable[[dict[str, Any], str], object]) -> str:
    """cartpole's config.json after a change at the place of a field."""
    data = copy.deepcopy(PRESETS["cartpole"].to_json())
    *path, leaf = name.split(".")
    node = data
    for group in path:
        node = node[group]
    change(node, leaf)
    return json.dumps(data)


def with_value(name: str, value: object) -> str:
    return changed(name, lambda node, leaf: node.update({leaf: value}))


def wrong_values(name: str, hint: Any) -> Iterator[tuple[str, object]]:
    """Values that a field cannot have, each with what is wrong."""
    kinds = kinds_of(hint)
    yield "wrong type", [1, 2]
    yield "wrong type", {"a": 1} if name != "env.options" else 7
    if get_origin(hint) is Literal:
        yield "out of range", "nonsense"
    if int in kinds or float in kinds:
        yield "wrong type", "many"
        yield "huge", HUGE
        yield "not a number", math.nan
        yield "not finite", math.inf
        if name != "run.solved":
            yield "out of range", BELOW.get(name, -1)
    if kinds == (int,):
        yield "wrong type", True


def mutations() -> list[Mutation]:
    found = []
    for name, hint in leaves():
        found.append(Mutation("missing", name, changed(name, lambda node, leaf: node.pop(leaf)), []))
        for label, value in wrong_values(name, hint):
            found.append(Mutation(label, name, with_value(name, value), []))
            if name not in ("env.options", *UNBOUNDED) and not isinstance(value, list | dict | bool):
                found.append(Mutation(label, name, None, [f"--{name}={value}"]))
    for group in groups():
        unknown = f"{group}.tempo"
        found.append(Mutation("missing", group, changed(group, lambda node, leaf: node.pop(leaf)), []))
        found.append(Mutation("wrong type", group, with_value(group, 3), []))
        found.append(Mutation("unknown", unknown, with_value(unknown, 3), []))
        found.append(Mutation("unknown", f"--{unknown}", None, [f"--{unknown}", "3"]))
    for preset in ("cartpol", "ATARI", "none", "catch.json", "0"):
        found.append(Mutation("unknown preset", repr(preset), None, [preset]))
    whole = json.dumps(PRESETS["cartpole"].to_json())
    broken = [whole[:at] for at in range(0, len(whole), 200)] + [whole + "}", whole.replace('"', "'"), "[" * 100_000]
    broken += ["[]", "null", "NaN"]
    broken += [whole.replace("{", '{"run":' * 2000, 1), whole.replace(": 0,", ": " + "9" * 9999, 1)]
    found += [Mutation("bad JSON", "config.json: ", text, []) for text in broken]
    return found


MUTATIONS = mutations()


def refused(argv: list[str], names: str, capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether a command line ends as a user's mistake should, in a line that names it."""
    try:
        parse(argv)
    except SystemExit as end:
        out, err = capsys.readouterr()
        one = err.startswith("fastdreamer: error: ") and err.count("\n") == 1 and err.endswith("\n") and len(err) < 500
        return end.code == 2 and out == "" and one and names in err
    return False


def test_every_wrong_config_is_one_line_that_names_its_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bar: Bar
) -> None:
    assert len(MUTATIONS) >= 200
    lost = []
    for mutation in MUTATIONS:
        words = mutation.words
        if mutation.text is not None:
            (tmp_path / "config.json").write_text(mutation.text)
            words = ["--resume", str(tmp_path)]
        held = refused(words, mutation.names, capsys)
        bar("R9 wrong configs", held)
        if not held:
            lost.append((mutation.label, mutation.names, mutation.words))
    assert lost == []


def test_the_mutations_reach_every_field_and_every_kind_of_mistake() -> None:
    named = {mutation.names for mutation in MUTATIONS}
    assert {name for name, _ in leaves()} <= named and len(list(leaves())) > 30
    assert {mutation.label for mutation in MUTATIONS} == {
        "missing", "unknown", "unknown preset", "wrong type", "out of range", "huge", "not a number", "not finite",
        "bad JSON",
    }  # fmt: skip


def test_a_mistake_is_told_before_torch_is_imported(bar: Bar) -> None:
    program = "import sys; from fastdreamer.train import main\ntry: main(sys.argv[1:])\nfinally: print(*sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-c", program, "--run.seed=-1"], capture_output=True, text=True, check=False
    )  # fmt: skip
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    held = done.returncode == 2 and seconds < SECONDS and not {"torch", "tyro"} & set(done.stdout.split())
    bar("R9 no torch, soon", held)
    assert held, (done, seconds)
