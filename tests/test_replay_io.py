"""A ring that was saved and loaded goes on as if never interrupted, and files are written only once."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from fake_replay import (
    Index,
    ListReplay,
    add,
    assert_equal,
    drive,
    filled,
    flatten,
    gather,
    make_latents,
    make_record,
    make_ring,
    pairs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fastdreamer import checkpoint, replay_io
from fastdreamer.replay import Plan
from fastdreamer.replay_io import chunk_length

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
    assert (40 - ring.rows) // 3 == 6
    for path in tmp_path.iterdir():
        if int(path.name.split("-")[1]) < 6 * 3:
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
    assert firsts(index["chunks"], "records") == [1, 3, 6, 9]
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
    ring.stage(Plan(np.array([1]), np.array([3]), 0))
    ring.write_back(**state)  # records 4..7: the second file and the third
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

    def fail_on_the_third(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError("No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(replay_io, "write_tensors", fail_on_the_third)
    with pytest.raises(OSError, match="No space left"):
        ring.save(tmp_path)
    index = ring.save(tmp_path)
    loaded = make_ring()
    loaded.load(tmp_path, index)
    plans = ring.plan(), loaded.plan()
    assert pairs(plans[0]) == pairs(plans[1])
    assert_equal(flatten(gather(loaded, plans[1])), flatten(gather(ring, plans[0])))


def test_the_length_of_a_file_depends_on_the_number_of_environments_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_io, "CHUNK", 1024)
    assert [chunk_length(n) for n in (1, 16, 17, 64, 4096, 20000)] == [1024, 1024, 963, 256, 4, 1]
