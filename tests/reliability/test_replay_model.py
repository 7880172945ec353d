"""R17, R18: the ring against lists of records, through saves and deaths in any order; its folder is bounded."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_replay import (
    Index,
    ListReplay,
    add,
    assert_equal,
    flatten,
    make_latents,
    make_record,
    make_ring,
    save,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from fastdreamer import checkpoint, replay_files, replay_latents
from fastdreamer.replay import Replay
from fastdreamer.spaces import Space

Bar = Callable[[str, bool], None]
LENGTH = 4
"""Of a window."""


class Model(ListReplay):
    """The lists, as they were when they were saved."""

    def copy(self) -> "Model":
        records = [[dict(record) for record in env] for env in self.records]
        sizes = self.num_envs, self.capacity, self.batch_size, self.batch_length
        return Model(*sizes, records, list(self.windows), list(self.online))


class RingMachine(RuleBasedStateMachine):
    """One ring, its model, and the saves that lie on the disk: the newest two, as a run keeps them."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.saves: list[tuple[Index, Model]] = []
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(replay_files, "CHUNK", 5)
        self.patch.setattr(replay_latents, "MOST_CHANGES", 3)

    def teardown(self) -> None:
        self.patch.undo()
        shutil.rmtree(self.folder)

    def make(self) -> Replay:
        return make_ring(**self.sizes)

    @initialize(envs=st.integers(1, 3), capacity=st.integers(1, 60), batch=st.integers(1, 4), seed=st.integers(0, 99))
    def begin(self, envs: int, capacity: int, batch: int, seed: int) -> None:
        self.sizes = {"num_envs": envs, "capacity": capacity, "batch_size": batch, "batch_length": LENGTH, "seed": seed}
        self.ring, self.rng = self.make(), np.random.default_rng(seed)
        self.model = Model(envs, capacity, batch, LENGTH)

    @rule(count=st.integers(1, 12))
    def add_records(self, count: int) -> None:
        for _ in range(count):
            record = make_record(self.rng, self.model.num_envs)
            self.model.add(record)
            add(self.ring, record)
        self.count()

    @precondition(lambda self: self.model.windows)
    @rule(keep=st.booleans(), delay=st.integers(0, LENGTH))
    def learn(self, keep: bool, delay: int) -> None:
        """A batch, planned some records before it is read; its states go back, or are thrown away."""
        plan, online = self.ring.plan(), self.model.take_online()
        pairs = list(zip(plan.env.tolist(), plan.start.tolist(), strict=True))
        assert pairs[: len(online)] == online and set(pairs) <= set(self.model.windows)
        for _ in range(delay):
            record = make_record(self.rng, self.model.num_envs)
            self.model.add(record)
            add(self.ring, record)
        self.ring.stage(plan)
        assert_equal(flatten(self.ring.window()), self.model.gather(plan))
        states = make_latents(self.rng, (self.model.batch_size, LENGTH), torch.float32)
        self.ring.write_back(**states, keep=torch.tensor(keep))
        if keep:
            self.model.write_back(plan, **states)
        self.count()

    @rule(beside=st.booleans(), fails=st.sampled_from([0, 0, 0, 1, 3]))
    def save(self, beside: bool, fails: int) -> None:
        """While the ring goes on, or not; a disk may be full at some file, and what no save needs is deleted."""
        left, write, model = iter(range(fails - 1, -2, -1)), replay_files.write_tensors, self.model.copy()

        def full(path: Path, tensors: dict[str, torch.Tensor]) -> None:
            if next(left) == 0:
                raise OSError(28, "No space left on device")
            write(path, tensors)

        saving = self.ring.save(self.folder)
        if beside:
            self.add_records(3)
            if self.model.windows:
                self.learn(True, 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(replay_files, "write_tensors", full if fails else write)
            try:
                index = json.loads(json.dumps(saving.write()))
            except OSError:
                saving.drop()
                return
        saving.keep()
        self.saves = [*self.saves, (index, model)][-2:]
        needed = {name for index, _ in self.saves for name in index["chunks"]}
        for path in self.folder.iterdir():
            if path.name not in needed:
                path.unlink()
        self.count()

    @precondition(lambda self: self.saves)
    @rule(older=st.booleans())
    def die(self, older: bool) -> None:
        """A new ring goes on from the newest save, or where that is damaged from the one before."""
        index, model = self.saves[0 if older else -1]
        self.saves = self.saves[:1] if older else self.saves
        self.ring, self.model = self.make(), model.copy()
        self.ring.load(self.folder, index)
        assert self.ring.windows == len(self.model.windows)
        self.count()

    def count(self) -> None:
        assert self.ring.windows == len(self.model.windows)
        RingMachine.steps += 1


def drive(examples: int, steps: int) -> int:
    RingMachine.steps = 0
    options = settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    run_state_machine_as_test(RingMachine, settings=options)
    return RingMachine.steps


def test_the_ring_does_what_the_lists_do() -> None:
    assert drive(examples=8, steps=40) > 100


@pytest.mark.slow
def test_the_ring_does_what_the_lists_do_for_ten_thousand_steps(bar: Bar) -> None:
    steps = drive(examples=250, steps=80)
    bar(f"R17 replay against its model, {steps} steps", steps >= 10_000)
    assert steps >= 10_000


@pytest.mark.parametrize("image, most", [(48, 1.1), (0, 3.1)])
def test_the_folder_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bar: Bar, image: int, most: float
) -> None:
    """After three times the capacity, of the bytes of the ring and a chunk of each environment.

    Two checkpoints are kept. They share their records, but not the states that were renewed between them: where those
    are most of a record, as without images, the folder holds them up to three times.
    """
    monkeypatch.setattr(replay_files, "CHUNK", 32)
    obs = {"image": Space("image", (image, image, 3))} if image else {"speed": Space("vector", (1,))}
    ring = Replay(obs, {}, deter=64, stoch=4, num_envs=2, capacity=1000, batch_size=8, batch_length=16, seed=0)
    fields = ring.records | ring.latents
    record = sum(value[0, 0].numel() * value.element_size() for value in fields.values())
    allowed = most * ring.capacity * record + ring.num_envs * 32 * record
    for step in range(1, 3 * ring.capacity // ring.num_envs + 1):
        value = {key: torch.zeros(2, *part.shape[2:], dtype=part.dtype) for key, part in fields.items()}
        picture = {key.removeprefix("obs/"): part for key, part in value.items() if key.startswith("obs/")}
        flags = (value[key] for key in ("is_first", "is_last", "is_terminal"))
        ring.add(picture, value["reward"], *flags, {}, value["deter"], value["stoch"])
        if ring.windows and step % 4 == 0:
            ring.stage(ring.plan())
            ring.write_back(torch.full((8, 16, 64), float(step)), torch.zeros(8, 16, 4, dtype=torch.uint8))
        if step % 20 == 0:
            checkpoint.save(tmp_path, step, {}, {}, save(ring, tmp_path / "replay"))
    size = sum(path.stat().st_size for path in (tmp_path / "replay").iterdir())
    bar("R18 bounded disk", size <= allowed)
    assert 0.5 * ring.capacity * record < size <= allowed, size / (ring.capacity * record)
