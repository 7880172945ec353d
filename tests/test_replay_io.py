"""A ring that was saved and loaded goes on as if never interrupted, and files are written only once."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from fake_replay import (
    DETER,
    STOCH,
    ListReplay,
    add,
    assert_equal,
    drive,
    flatten,
    make_latents,
    make_record,
    make_ring,
    pairs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fastdreamer import checkpoint, replay_io
from fastdreamer.replay import Plan, Replay
from fastdreamer.replay_io import chunk_length
from fastdreamer.spaces import Space

Index = dict[str, Any]
SIZES = {
    "num_envs": st.integers(1, 4),
    "capacity": st.integers(1, 40),
    "batch_size": st.integers(1, 6),
    "batch_length": st.integers(1, 5),
}
STEPS = st.lists(st.tuples(st.integers(0, 25), st.sampled_from([0, 0, 1, 12])), min_size=1, max_size=4)


@pytest.fixture(autouse=True)
def chunks_of_three() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_io, "CHUNK", 3)
        yield


def through_json(index: Index) -> Index:
    return json.loads(json.dumps(index))


def filled(records: int = 20, **sizes: int) -> tuple[Replay, np.random.Generator]:
    ring, rng = make_ring(**sizes), np.random.default_rng(0)
    for _ in range(records):
        add(ring, make_record(rng, ring.num_envs))
    return ring, rng


def files(folder: Path) -> dict[str, int]:
    """Name -> when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def firsts(names: list[str] | set[str] | dict[str, int], kind: str) -> list[int]:
    """The first records of the files of a kind."""
    return sorted(int(name.split("-")[1]) for name in names if name.startswith(kind))


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.fixed_dictionaries(SIZES),
    before=STEPS,
    after=STEPS,
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_loaded_ring_goes_on_as_one_never_interrupted(
    sizes: dict[str, int], before: list[tuple[int, int]], after: list[tuple[int, int]], seed: int, dtype: torch.dtype
) -> None:
    rings = [make_ring(seed=seed, dtype=dtype, **sizes)]
    lists, rng = ListReplay(**sizes), np.random.default_rng(seed)
    with TemporaryDirectory() as folder:
        for adds, delay in before:
            drive(rings, lists, rng, adds, delay, dtype)
            index = through_json(rings[0].save(Path(folder)))
        rings.append(make_ring(seed=seed, dtype=dtype, **sizes))
        rings[1].load(Path(folder), index)
        for adds, delay in after:
            drive(rings, lists, rng, adds, delay, dtype)
            assert rings[0].window_range() == rings[1].window_range()
            assert rings[0].save(Path(folder)) == rings[1].save(Path(folder))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.fixed_dictionaries(SIZES),
    capacity=st.integers(1, 80),
    before=STEPS,
    after=STEPS,
    seed=st.integers(0, 99),
)
def test_a_ring_of_another_capacity_holds_the_windows_that_were_saved_and_fit(
    sizes: dict[str, int], capacity: int, before: list[tuple[int, int]], after: list[tuple[int, int]], seed: int
) -> None:
    ring, lists, rng = make_ring(seed=seed, **sizes), ListReplay(**sizes), np.random.default_rng(seed)
    with TemporaryDirectory() as folder:
        for adds, delay in before:
            drive([ring], lists, rng, adds, delay, torch.float32)
        saved = list(lists.windows)
        index = ring.save(Path(folder))
        ring = make_ring(seed=seed, **(sizes | {"capacity": capacity}))
        ring.load(Path(folder), index)
        assert ring.windows >= min(len(saved), capacity)
        # The other environments' windows from the oldest saved record are there too.
        first = saved[0][1] if saved else 0
        lists.windows = sorted(
            {*saved, *((env, first) for env in range(ring.num_envs) if saved)}, key=lambda w: w[::-1]
        )
        lists.drop(capacity)
        for adds, delay in after:
            drive([ring], lists, rng, adds, delay, torch.float32)
        third = make_ring(seed=seed, **(sizes | {"capacity": capacity}))
        third.load(Path(folder), ring.save(Path(folder)))
        drive([ring, third], lists, rng, 1, 0, torch.float32)


def test_a_smaller_ring_reads_only_the_files_that_fit_it(tmp_path: Path) -> None:
    ring, _ = filled(40, num_envs=2, capacity=50, batch_length=4)
    index = ring.save(tmp_path)
    ring = make_ring(num_envs=2, capacity=10, batch_length=4)
    assert (40 - ring.rows) // 3 == 7
    for path in tmp_path.iterdir():
        if int(path.name.split("-")[1]) < 7 * 3:
            path.unlink()
    ring.load(tmp_path, index)
    assert (ring.length, ring.windows) == (40, 10)


def test_every_record_that_can_be_sampled_comes_back_to_its_row(tmp_path: Path) -> None:
    """The oldest file was written when it held more than can be sampled now."""
    ring, rng = filled(10, num_envs=2, capacity=10, batch_length=4)
    ring.save(tmp_path)
    add(ring, make_record(rng, 2))
    index: Index = ring.save(tmp_path)
    assert index["first"] == 2
    assert firsts(index["chunks"], "records") == [0, 3, 6, 9]
    loaded = make_ring(num_envs=2, capacity=10, batch_length=4)
    loaded.load(tmp_path, index)
    for key, value in (ring.records | ring.latents).items():
        assert torch.equal((loaded.records | loaded.latents)[key][:, 2:11], value[:, 2:11]), key


def test_records_are_written_once_and_states_when_they_changed(tmp_path: Path) -> None:
    ring, rng = filled(10, num_envs=2, batch_length=4, batch_size=1)
    ring.save(tmp_path)
    old = files(tmp_path)
    assert firsts(old, "records") == firsts(old, "latents") == [0, 3, 6, 9]

    assert ring.save(tmp_path)["chunks"].keys() == old.keys()
    assert files(tmp_path) == old

    for _ in range(3):
        add(ring, make_record(rng, 2))
    state = make_latents(rng, (1, 4), torch.float32)
    ring.write_back(Plan(np.array([1]), np.array([3]), 0), **state)  # records 4..7: the second file and the third
    index = ring.save(tmp_path)
    new = files(tmp_path)
    assert {name: new[name] for name in old} == old
    assert firsts(new.keys() - old.keys(), "records") == [9, 12]
    assert firsts(new.keys() - old.keys(), "latents") == [3, 6, 9, 12]
    assert firsts(index["chunks"], "records") == firsts(index["chunks"], "latents") == [0, 3, 6, 9, 12]


def test_a_resumed_run_writes_only_what_is_new(tmp_path: Path) -> None:
    ring, rng = filled(10)
    index = ring.save(tmp_path)
    old = files(tmp_path)
    ring = make_ring()
    ring.load(tmp_path, index)
    assert ring.save(tmp_path) == index
    assert files(tmp_path) == old
    for _ in range(3):
        add(ring, make_record(rng, 2))
    ring.save(tmp_path)
    new = files(tmp_path)
    assert {name: new[name] for name in old} == old
    assert firsts(new.keys() - old.keys(), "records") == firsts(new.keys() - old.keys(), "latents") == [9, 12]


def test_only_what_can_be_sampled_is_saved(tmp_path: Path) -> None:
    ring, _ = filled(40, num_envs=2, capacity=10, batch_length=4)
    index = ring.save(tmp_path)
    assert index["first"] == 31  # 5 windows per environment, which start at records 31..35
    assert firsts(index["chunks"], "records") == [31, 33, 36, 39]
    index = ring.save(tmp_path / "other")
    assert firsts(list(files(tmp_path / "other")), "records") == [31, 33, 36, 39]


def test_another_folder_gets_files_of_its_own(tmp_path: Path) -> None:
    ring, _ = filled(10)
    assert ring.save(tmp_path / "a") == ring.save(tmp_path / "b")
    assert files(tmp_path / "a").keys() == files(tmp_path / "b").keys()


def test_the_ring_goes_through_a_checkpoint(tmp_path: Path) -> None:
    """The checkpoint finds every file, checks it, and deletes those that the newest two do not need."""
    ring, rng = filled(40, num_envs=2, capacity=10)
    for step in range(4):
        checkpoint.save(tmp_path, step, {}, {}, ring.save(tmp_path / "replay"))
        for _ in range(5):
            add(ring, make_record(rng, 2))
    indices = [checkpoint.load(tmp_path / f"checkpoints/step-{step:09}").replay for step in (2, 3)]
    needed = {name for index in indices if index for name in index["chunks"]}  # type: ignore[attr-defined]
    assert files(tmp_path / "replay").keys() == needed
    saved = checkpoint.latest(tmp_path).replay
    assert saved is not None
    loaded = make_ring(num_envs=2, capacity=10)
    loaded.load(tmp_path / "replay", saved)
    assert (loaded.length, loaded.window_range()) == (55, (92, 102))


def test_a_save_that_fails_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring, _ = filled(20)
    calls = []

    def fail_on_the_third(tensors: dict[str, torch.Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError("No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(replay_io, "save_file", fail_on_the_third)
    with pytest.raises(OSError, match="No space left"):
        ring.save(tmp_path)
    index = ring.save(tmp_path)
    loaded = make_ring()
    loaded.load(tmp_path, index)
    plans = ring.plan(), loaded.plan()
    assert pairs(plans[0]) == pairs(plans[1])
    assert_equal(flatten(loaded.gather(plans[1])), flatten(ring.gather(plans[0])))


OTHER_RINGS: list[tuple[dict[str, Any], str]] = [
    ({"num_envs": 3}, "saved with num_envs 2, but this run has 3"),
    ({"batch_length": 5}, "saved with batch_length 4, but this run has 5"),
    ({"deter": 8}, "saved with deter torch.float32 (4,), but this run has torch.float32 (8,)"),
    ({"stoch": 4}, "saved with stoch torch.uint8 (3,), but this run has torch.uint8 (4,)"),
    ({"dtype": torch.bfloat16}, "saved with deter torch.float32 (4,), but this run has torch.bfloat16 (4,)"),
    ({"obs": {"a": Space("vector", (4,))}}, "saved with obs/a torch.float32 (3,), but this run has torch.float32 (4,)"),
    ({"obs": {"a": Space("image", (3,))}}, "saved with obs/a torch.float32 (3,), but this run has torch.uint8 (3,)"),
    ({"obs": {"b": Space("vector", (3,))}}, "saved with obs/a torch.float32 (3,), but this run has None"),
    ({"act": {"a": Space("discrete", (), 2)}}, "saved with action/a None, but this run has torch.int32 ()"),
]


@pytest.mark.parametrize("changed, message", OTHER_RINGS, ids=[message[11:28] for _, message in OTHER_RINGS])
def test_a_ring_of_another_kind_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    arguments = {"obs": {"a": Space("vector", (3,))}, "act": {}, "deter": DETER, "stoch": STOCH, "num_envs": 2}
    arguments |= {"capacity": 50, "batch_size": 3, "batch_length": 4, "seed": 0}
    index = Replay(**arguments).save(tmp_path)
    with pytest.raises(ValueError, match=f"^replay: {re.escape(message)}$"):
        Replay(**arguments | changed).load(tmp_path, index)


def test_only_a_new_ring_takes_a_saved_one(tmp_path: Path) -> None:
    ring, _ = filled(10)
    index = ring.save(tmp_path)
    with pytest.raises(ValueError, match=r"^replay\.load needs a new ring, this one holds 10 records$"):
        ring.load(tmp_path, index)


@pytest.mark.parametrize("name", ["chunks", "ring", "length", "first", "served", "plans"])
def test_an_index_without_an_entry_is_refused(tmp_path: Path, name: str) -> None:
    ring, _ = filled(10)
    index = ring.save(tmp_path)
    del index[name]
    with pytest.raises(ValueError, match=rf"^replay index: {name} must be a \w+, got None$"):
        make_ring().load(tmp_path, index)


@pytest.mark.parametrize("kind", ["records", "latents"])
def test_a_file_that_is_not_in_the_index_is_missed(tmp_path: Path, kind: str) -> None:
    ring, _ = filled(10)
    index: Index = ring.save(tmp_path)
    del index["chunks"][sorted(name for name in index["chunks"] if name.startswith(kind))[1]]
    with pytest.raises(ValueError, match=rf"^{tmp_path}: no file of {kind} holds record 3$"):
        make_ring().load(tmp_path, index)


def test_a_file_that_begins_too_late_is_refused(tmp_path: Path) -> None:
    ring, _ = filled(40, num_envs=2, capacity=10, batch_length=4)
    index: Index = ring.save(tmp_path)
    with pytest.raises(ValueError, match=rf"^{tmp_path}: no file of records holds record 30$"):
        make_ring(num_envs=2, capacity=10, batch_length=4).load(tmp_path, index | {"first": index["first"] - 1})


DAMAGES = {
    "gone": (None, "cannot be read: "),
    "empty": (b"", "cannot be read: "),
    "noise": (bytes(range(256)) * 8, "cannot be read: "),
    "short": (-1, "cannot be read: "),
    "a tensor too few": ({"reward": None}, "no reward"),
    "a tensor too many": ({"sound": torch.zeros(2, 3)}, "the ring has no sound"),
    "a shape": ({"reward": torch.zeros(2, 2)}, "reward: expected torch.float32 (2, 3), got torch.float32 (2, 2)"),
    "a type": ({"reward": torch.zeros(2, 3).int()}, "reward: expected torch.float32 (2, 3), got torch.int32 (2, 3)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, damage: str) -> None:
    content, message = DAMAGES[damage]
    ring, _ = filled(10)
    index: Index = ring.save(tmp_path)
    path = tmp_path / next(name for name in index["chunks"] if name.startswith("records-0000000003"))
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, int):
        path.write_bytes(path.read_bytes()[:content])
    else:
        tensors = load_file(path) | content
        save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, path)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {message}')}.*$") as error:
        make_ring().load(tmp_path, index)
    assert "\n" not in str(error.value)


def test_the_length_of_a_file_depends_on_the_number_of_environments_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_io, "CHUNK", 1024)
    assert [chunk_length(n) for n in (1, 16, 17, 64, 4096, 20000)] == [1024, 1024, 963, 256, 4, 1]
