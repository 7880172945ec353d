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
    save,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fastdreamer import checkpoint, replay_files, replay_latents
from fastdreamer.replay import Plan, Replay
from fastdreamer.replay_files import chunk_length

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
        patch.setattr(replay_files, "CHUNK", 3)
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
            index = through_json(save(rings[0], Path(folder)))
        rings.append(make_ring(seed=seed, dtype=dtype, **sizes))
        rings[1].load(Path(folder), index)
        for adds, delay in after:
            drive(rings, lists, rng, adds, delay, dtype)
            assert rings[0].window_range() == rings[1].window_range()
            assert save(rings[0], Path(folder)) == save(rings[1], Path(folder))


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
        index = save(ring, Path(folder))
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
        third.load(Path(folder), save(ring, Path(folder)))
        drive([ring, third], lists, rng, 1, 0, torch.float32)


def test_a_smaller_ring_reads_only_the_files_that_fit_it(tmp_path: Path) -> None:
    ring, _ = filled(40, num_envs=2, capacity=50, batch_length=4)
    index = save(ring, tmp_path)
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
    save(ring, tmp_path)
    add(ring, make_record(rng, 2))
    index: Index = save(ring, tmp_path)
    assert index["first"] == 2
    assert firsts(index["chunks"], "records") == [1, 3, 6, 9, 10]
    loaded = make_ring(num_envs=2, capacity=10, batch_length=4)
    loaded.load(tmp_path, index)
    for key, value in (ring.records | ring.latents).items():
        assert torch.equal((loaded.records | loaded.latents)[key][:, 2:11], value[:, 2:11]), key


def test_records_are_written_once_and_states_when_they_changed(tmp_path: Path) -> None:
    ring, rng = filled(10, num_envs=2, batch_length=4, batch_size=1)
    save(ring, tmp_path)
    old = files(tmp_path)
    assert firsts(old, "records") == firsts(old, "latents") == [0, 3, 6, 9]

    assert save(ring, tmp_path)["chunks"].keys() == old.keys()
    assert files(tmp_path) == old

    for _ in range(3):
        add(ring, make_record(rng, 2))
    renew(
        ring, rng, env=1, start=3
    )  # records 4..7 of an environment: a third of the second chunk's, and of the third's
    index = save(ring, tmp_path)
    new = files(tmp_path)
    assert {name: new[name] for name in old} == old
    assert firsts(new.keys() - old.keys(), "records") == [10, 12]
    assert firsts(new.keys() - old.keys(), "latents") == [9, 12], "of new records, more than half of their chunks"
    (changes,) = (name for name in new if name.startswith("changes"))
    tensors = load_file(tmp_path / changes)
    assert tensors["env"].tolist() == [1] * 4 and tensors["record"].tolist() == [4, 5, 6, 7]
    rows = [record % ring.rows for record in (4, 5, 6, 7)]
    assert torch.equal(tensors["deter"], ring.latents["deter"][1, rows])
    assert firsts(index["chunks"], "records") == [0, 3, 6, 9, 10, 12]
    assert firsts(index["chunks"], "latents") == [0, 3, 6, 9, 12] and changes in index["chunks"]

    renew(ring, rng, env=1, start=3)  # two thirds by now: the chunks are written anew
    index = save(ring, tmp_path)
    assert firsts(files(tmp_path).keys() - new.keys(), "latents") == [3, 6]
    assert [name for name in index["chunks"] if name.startswith("changes")] == []


def renew(ring: Replay, rng: np.random.Generator, env: int, start: int) -> None:
    """Fresh states for the four records after `start`."""
    ring.stage(Plan(np.array([env]), np.array([start]), 0))
    ring.write_back(**make_latents(rng, (1, 4), torch.float32))


def test_an_empty_ring_can_be_saved(tmp_path: Path) -> None:
    """An environment may fail at its first step."""
    index = save(make_ring(), tmp_path)
    assert index["chunks"] == {} and not files(tmp_path)
    loaded = make_ring()
    loaded.load(tmp_path, through_json(index))
    assert (loaded.length, loaded.windows) == (0, 0)


def test_many_small_files_become_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save per record: eight files of a chunk of 20, then one and more again."""
    monkeypatch.setattr(replay_files, "CHUNK", 20)
    ring, rng = filled(10, num_envs=2, capacity=100, batch_length=4)
    save(ring, tmp_path)
    counts = []
    for _ in range(10):
        add(ring, make_record(rng, 2))
        counts.append(len(firsts(save(ring, tmp_path)["chunks"], "records")))
    assert counts == [2, 3, 4, 5, 6, 7, 8, 1, 2, 3]
    loaded = make_ring(num_envs=2, capacity=100, batch_length=4)
    loaded.load(tmp_path, save(ring, tmp_path))
    for key, value in (ring.records | ring.latents).items():
        assert torch.equal((loaded.records | loaded.latents)[key][:, :20], value[:, :20]), key


def test_changes_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One state changes between two saves, each time another chunk's: after three such files all become whole again."""
    monkeypatch.setattr(replay_files, "CHUNK", 20)
    monkeypatch.setattr(replay_latents, "MOST_CHANGES", 3)
    ring, rng = filled(100, num_envs=1, capacity=100, batch_length=1, batch_size=1)
    counts = []
    for at in range(12):
        ring.stage(Plan(np.array([0]), np.array([20 * (at % 5)]), 0))
        ring.write_back(**make_latents(rng, (1, 1), torch.float32))
        index = save(ring, tmp_path)
        counts.append(sum(name.startswith("changes") for name in index["chunks"]))
        loaded = make_ring(num_envs=1, capacity=100, batch_length=1, batch_size=1)
        loaded.load(tmp_path, index)
        assert torch.equal(loaded.latents["deter"][:, :100], ring.latents["deter"][:, :100]), at
    assert counts == [0, 1, 2, 3] + [1, 2, 3] * 2 + [1, 2]


def test_a_chunk_that_is_whole_again_is_newer_than_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which stay, since they are about another chunk too."""
    monkeypatch.setattr(replay_files, "CHUNK", 10)
    ring, rng = filled(20, num_envs=1, batch_length=4, batch_size=1)
    save(ring, tmp_path)
    renew(ring, rng, env=0, start=7)  # records 8..11: two of each chunk
    save(ring, tmp_path)
    for start in (1, 5):
        renew(ring, rng, env=0, start=start)  # records 2..9
    index = save(ring, tmp_path)
    kinds = [name.split("-")[0] for name in index["chunks"]]
    assert sorted(kinds) == ["changes", "latents", "latents", "records", "records"]
    loaded = make_ring(num_envs=1, batch_length=4, batch_size=1)
    loaded.load(tmp_path, index)
    for key, value in ring.latents.items():
        assert torch.equal(loaded.latents[key][:, :20], value[:, :20]), key


def test_a_resumed_run_writes_only_what_is_new(tmp_path: Path) -> None:
    ring, rng = filled(10)
    index = save(ring, tmp_path)
    old = files(tmp_path)
    ring = make_ring()
    ring.load(tmp_path, index)
    assert save(ring, tmp_path) == index
    assert files(tmp_path) == old
    for _ in range(3):
        add(ring, make_record(rng, 2))
    save(ring, tmp_path)
    new = files(tmp_path)
    assert {name: new[name] for name in old} == old
    assert firsts(new.keys() - old.keys(), "records") == [10, 12]
    assert firsts(new.keys() - old.keys(), "latents") == [9, 12]


def test_only_what_can_be_sampled_is_saved(tmp_path: Path) -> None:
    ring, _ = filled(40, num_envs=2, capacity=10, batch_length=4)
    index = save(ring, tmp_path)
    assert index["first"] == 31  # 5 windows per environment, which start at records 31..35
    assert firsts(index["chunks"], "records") == [31, 33, 36, 39]
    index = save(ring, tmp_path / "other")
    assert firsts(list(files(tmp_path / "other")), "records") == [31, 33, 36, 39]


def test_another_folder_gets_files_of_its_own(tmp_path: Path) -> None:
    ring, _ = filled(10)
    for folder in (tmp_path / "a", tmp_path / "b", tmp_path / "b"):
        index = save(ring, folder)
        assert files(folder).keys() == index["chunks"].keys()
    loaded = make_ring()
    loaded.load(tmp_path / "b", index)
    assert_equal(flatten(gather(loaded, loaded.plan())), flatten(gather(ring, ring.plan())))


def test_the_ring_goes_through_a_checkpoint(tmp_path: Path) -> None:
    """The checkpoint finds every file, checks it, and deletes those that the newest two do not need."""
    ring, rng = filled(40, num_envs=2, capacity=10)
    for step in range(4):
        checkpoint.save(tmp_path, step, {}, {}, save(ring, tmp_path / "replay"))
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

    monkeypatch.setattr(replay_files, "write_tensors", fail_on_the_third)
    with pytest.raises(OSError, match="No space left"):
        save(ring, tmp_path)
    index = save(ring, tmp_path)
    loaded = make_ring()
    loaded.load(tmp_path, index)
    plans = ring.plan(), loaded.plan()
    assert pairs(plans[0]) == pairs(plans[1])
    assert_equal(flatten(gather(loaded, plans[1])), flatten(gather(ring, plans[0])))


def test_the_length_of_a_file_depends_on_the_number_of_environments_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_files, "CHUNK", 1024)
    assert [chunk_length(n) for n in (1, 16, 17, 64, 4096, 20000)] == [1024, 1024, 963, 256, 4, 1]
