"""R23: whatever a file holds, its reader returns or raises what it says it raises, within two seconds."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from altered_runs import AlteredRun, make_run
from fake_replay import filled, make_ring, save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdreamer import checkpoint, replay_files
from fastdreamer.cli import parse
from fastdreamer.config import Config
from fastdreamer.metrics import JsonlWriter, read_jsonl
from fastdreamer.presets import PRESETS

Bar = Callable[[str, bool], None]
QUICK, MANY = 25, 2500
"""Cases of each reader; five readers make more than ten thousand."""
COUNTS = [QUICK, pytest.param(MANY, marks=pytest.mark.slow)]

numbers = st.integers() | st.floats() | st.sampled_from([2**63, -(2**63), 10**400, 1e308])
leaves = st.none() | st.booleans() | numbers | st.text(max_size=20)
keys = st.text(max_size=8)
values = st.recursive(
    leaves, lambda part: st.lists(part, max_size=4) | st.dictionaries(keys, part, max_size=4), max_leaves=8
)


def run_cases(count: int, case: Callable[..., None], **strategies: st.SearchStrategy[Any]) -> None:
    """`case` with so many draws; two seconds are the most that one may take."""
    health = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    settings(max_examples=count, deadline=2000, database=None, suppress_health_check=health)(
        given(**strategies)(case)
    )()


def places(table: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in JSON data."""
    items = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def mutated(table: Any) -> st.SearchStrategy[Any]:
    """JSON data with one entry gone, or another, or one more."""

    def change(place: tuple[Any, ...], value: Any, how: str) -> Any:
        copy = json.loads(json.dumps(table))
        node = copy
        for key in place[:-1]:
            node = node[key]
        if how == "gone" and isinstance(node, dict):
            del node[place[-1]]
        elif how == "more" and isinstance(node, dict):
            node[str(value)[:9]] = value
        else:
            node[place[-1]] = value
        return copy

    return st.builds(change, st.sampled_from([*places(table)]), values, st.sampled_from(["gone", "more", "other"]))


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """Bytes with a stretch of them replaced, or cut off, or none of them."""
    at, some, few = st.integers(0, max(len(data) - 1, 0)), st.binary(max_size=9), st.integers(0, 9)
    cut = st.builds(lambda begin: data[:begin], at)
    replaced = st.builds(lambda begin, new, old: data[:begin] + new + data[begin + old :], at, some, few)
    return cut | replaced | st.binary(max_size=60)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize("count", COUNTS)
def test_configs(bar: Bar, count: int) -> None:
    whole = PRESETS["atari"].to_json()

    def case(data: Any, words: list[str]) -> None:
        held = True
        with suppress(ValueError):  # what the command line makes one line of
            Config.from_json(data)
        try:
            parse(words)
        except SystemExit as end:
            held = held and end.code in (0, 2)
        bar("R23 configs and command lines", held)
        assert held

    flags = st.sampled_from(["cartpole", "--run.seed", "--run.steps=", "--env.options.a", "--resume", "--model.size"])
    run_cases(count, case, data=values | mutated(whole), words=st.lists(flags | st.text(max_size=9), max_size=4))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "run"
    make_run(folder)
    return folder


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["MANIFEST.json", "replay/index.json"])
def test_checkpoints(tmp_path: Path, source: Path, bar: Bar, count: int, name: str) -> None:
    run = AlteredRun(source, tmp_path / "run")
    whole = (run.path / name).read_bytes()

    def case(data: bytes) -> None:
        (run.path / name).write_bytes(data)
        if name != "MANIFEST.json":
            run.seal()
        held = True
        try:
            checkpoint.load(run.path)
        except checkpoint.CheckpointError as error:
            held = "\n" not in str(error)
        bar("R23 manifests and indices", held)
        assert held

    run_cases(count, case, data=damaged(whole) | (values | mutated(json.loads(whole))).map(as_json))


@pytest.mark.parametrize("count", COUNTS)
def test_files_of_the_ring(tmp_path: Path, bar: Bar, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(replay_files, "CHUNK", 8)
    ring, _ = filled(20)
    index = save(ring, tmp_path)
    names = sorted(index["chunks"])
    contents = {name: (tmp_path / name).read_bytes() for name in names}

    def case(name: str, draw: st.DataObject) -> None:
        (tmp_path / name).write_bytes(draw.draw(damaged(contents[name])))
        held = True
        try:
            make_ring().load(tmp_path, draw.draw(st.just(index) | mutated(index)))
        except ValueError as error:
            held = "\n" not in str(error)
        finally:
            (tmp_path / name).write_bytes(contents[name])
        bar("R23 files of the ring", held)
        assert held

    run_cases(count, case, name=st.sampled_from(names), draw=st.data())


@pytest.mark.parametrize("count", COUNTS)
def test_metrics(tmp_path: Path, bar: Bar, count: int) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = b"".join(as_json({"step": step, "loss": step / 3, "name": None}) + b"\n" for step in range(9))

    def case(data: bytes, step: int) -> None:
        path.write_bytes(data)
        held = True
        try:
            with JsonlWriter(path, step) as writer:
                writer.write({"step": step})
            held = read_jsonl(path)[-1] == {"step": step}
        except ValueError as error:
            held = "\n" not in str(error)
        bar("R23 metrics", held)
        assert held

    lines = st.lists(values, max_size=4).map(lambda rows: b"\n".join(map(as_json, rows)))
    run_cases(count, case, data=damaged(whole) | lines, step=st.integers(0, 12))
    shutil.rmtree(tmp_path)
