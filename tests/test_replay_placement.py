"""Where the ring lies: what `auto` chooses on machines of every kind, what is refused, and that it changes nothing."""

import re

import numpy as np
import pytest
import torch
from fake_replay import ACT, OBS, ListReplay, add, assert_equal, flatten, gather, make_latents, make_record, pairs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from fastdreamer import replay as replay_module
from fastdreamer import replay_files, replay_storage
from fastdreamer.replay import Replay
from fastdreamer.replay_pinned import Pinning
from fastdreamer.replay_placement import Machine, Place, Placement, Wanted, choose
from fastdreamer.replay_storage import Field

GB = 10**9
H200, H100, CARD24, CARD8 = (int(gb * GB) for gb in (150.8, 85.0, 25.4, 8.5))
ROWS = 5_000_000
IMAGE, SMALL, VECTOR = (Field(shape, dtype) for shape, dtype in (
    ((64, 64, 3), torch.uint8), ((16, 16, 3), torch.uint8), ((24,), torch.float32),
))  # fmt: skip


def fields(deter: int, **obs: Field) -> dict[str, Field]:
    """A ring in bfloat16: 7 bytes of reward and flags, 4 of the action, 2 of every unit of deter, 32 of stoch."""
    record = {f"obs/{key}": field for key, field in obs.items()} | {"action/action": Field((), torch.int32)}
    record |= {"reward": Field((), torch.float32)}
    record |= {key: Field((), torch.bool) for key in ("is_first", "is_last", "is_terminal")}
    return record | {"deter": Field((deter,), torch.bfloat16), "stoch": Field((32,), torch.uint8)}


def machine(card: int, free: float, ram: float, pins: bool = True) -> Machine:
    return Machine(card, int(free * GB), int(ram * GB), pins)


# Of 5e6 rows: an image 61.4 GB; latents and scalars 20.7 (size12m), 41.2 (size50m), 82.1 (size200m) GB.
MACHINES: dict[str, tuple[dict[str, Field], int, Machine | None, int, dict[str, Place], str]] = {
    "size12m on an H200": (
        fields(2048, image=IMAGE), ROWS, machine(H200, 148, 1000), 3 * GB, {},
        "replay: 82.1 GB on the GPU (148.0 GB free, 20.0 GB of them kept for training)",
    ),
    "size50m on an H200": (
        fields(4096, image=IMAGE), ROWS, machine(H200, 147, 1000), 6 * GB, {},
        "replay: 102.6 GB on the GPU (147.0 GB free, 20.0 GB of them kept for training)",
    ),
    "size200m on an H200": (
        fields(8192, image=IMAGE), ROWS, machine(H200, 145, 1000), 14 * GB, {"obs/image": "pinned"},
        "replay: 82.1 GB on the GPU (145.0 GB free, 20.0 GB of them kept for training),"
        " image in 61.4 GB of page-locked host memory",
    ),
    "size200m with an update that takes much": (  # 1.3 x 50 GB
        fields(8192, image=IMAGE), ROWS, machine(H200, 149, 1000), 50 * GB, {"obs/image": "pinned"},
        "replay: 82.1 GB on the GPU (149.0 GB free, 65.0 GB of them kept for training),"
        " image in 61.4 GB of page-locked host memory",
    ),
    "size200m where memory cannot be locked": (
        fields(8192, image=IMAGE), ROWS, machine(H200, 145, 1000, pins=False), 14 * GB, {"obs/image": "host"},
        "replay: 82.1 GB on the GPU (145.0 GB free, 20.0 GB of them kept for training),"
        " image in 61.4 GB of host memory, which cannot be locked here (ulimit -l)",
    ),
    "size200m with just enough memory": (  # 61.44 of 102.4
        fields(8192, image=IMAGE), ROWS, machine(H200, 145, 102.4), 14 * GB, {"obs/image": "pinned"},
        "replay: 82.1 GB on the GPU (145.0 GB free, 20.0 GB of them kept for training),"
        " image in 61.4 GB of page-locked host memory",
    ),
    "an H100 that is nearly full": (  # 60 - 20 is less than 82.1, more than 20.7
        fields(2048, image=IMAGE), ROWS, machine(H100, 60, 1000), 3 * GB, {"obs/image": "pinned"},
        "replay: 20.7 GB on the GPU (60.0 GB free, 20.0 GB of them kept for training),"
        " image in 61.4 GB of page-locked host memory",
    ),
    "Atari 100k on 24 GB": (  # a quarter of the card is 6.35 GB
        fields(2048, image=IMAGE), 110_000, machine(CARD24, 24, 60), 3 * GB, {},
        "replay: 1.8 GB on the GPU (24.0 GB free, 6.3 GB of them kept for training)",
    ),
    "a million steps on 24 GB": (  # 16.4 GB do, 17.65 GB are there
        fields(2048, image=IMAGE), 1_000_000, machine(CARD24, 24, 60), 3 * GB, {},
        "replay: 16.4 GB on the GPU (24.0 GB free, 6.3 GB of them kept for training)",
    ),
    "a million steps on 8 GB": (  # a quarter 2.125, 1.3 x 2 GB more; 16.4 GB do not fit, 4.1 GB do
        fields(2048, image=IMAGE), 1_000_000, machine(CARD8, 8, 60), 2 * GB, {"obs/image": "pinned"},
        "replay: 4.1 GB on the GPU (8.0 GB free, 2.6 GB of them kept for training),"
        " image in 12.3 GB of page-locked host memory",
    ),
    "only the larger of two images moves": (  # 3.8 GB of small ones
        fields(2048, small=SMALL, image=IMAGE, vector=VECTOR), ROWS, machine(H100, 60, 1000), 3 * GB,
        {"obs/image": "pinned"},
        "replay: 25.0 GB on the GPU (60.0 GB free, 20.0 GB of them kept for training),"
        " image in 61.4 GB of page-locked host memory",
    ),
    "proprio at size1m": (
        fields(512, vector=VECTOR), 1_100_000, machine(H200, 149, 1000), GB, {},
        "replay: 1.3 GB on the GPU (149.0 GB free, 20.0 GB of them kept for training)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MACHINES)
def test_auto(name: str) -> None:
    ring, rows, where, peak, apart, reason = MACHINES[name]
    placement = choose("auto", ring, rows, where, peak, "5000000 windows")
    assert placement.reason == reason.replace("cannot be locked", "cannot be page-locked")
    assert placement.places == dict.fromkeys(ring, "device") | apart


def test_a_learner_on_the_cpu_has_everything_in_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_storage, "available_memory", lambda: 90 * GB)
    ring = fields(2048, image=IMAGE)
    for wanted in ("auto", "host"):
        placement = choose(wanted, ring, ROWS, None, 0, "x")
        assert placement == Placement(dict.fromkeys(ring, "host"), "replay: 82.1 GB of host memory")


@pytest.mark.parametrize("wanted", ["pinned", "host"])
def test_what_was_asked_for_is_done(wanted: Wanted) -> None:
    ring = fields(512, vector=VECTOR, image=IMAGE)
    placement = choose(wanted, ring, 1000, machine(H200, 149, 1000), 0, "x")
    assert placement.places == dict.fromkeys(ring, "device") | {"obs/vector": wanted, "obs/image": wanted}
    assert "image, vector in 0.0 GB of" in placement.reason


IMAGES, WIDE = fields(2048, image=IMAGE), fields(8192, image=IMAGE)
REFUSALS: list[tuple[Wanted, dict[str, Field], Machine | None, str]] = [
    ("device", IMAGES, None, "replay.placement must be auto or host for a learner on the CPU, got 'device'"),
    ("pinned", IMAGES, None, "replay.placement must be auto or host for a learner on the CPU, got 'pinned'"),
    ("auto", IMAGES, None, "replay.capacity: a ring need 82.1 GB of memory, but 80.0 GB are available"),
    (
        "device", IMAGES, machine(H100, 84, 1000),
        "replay.capacity: a ring need 82.1 GB of the GPU: 84.0 GB free, 20.0 GB of them kept for training",
    ),
    (
        "auto", WIDE, machine(H100, 84, 1000),
        "replay.capacity: a ring without their observations need 82.1 GB of the GPU:"
        " 84.0 GB free, 20.0 GB of them kept for training",
    ),
    (
        "auto", IMAGES, machine(H100, 60, 102.3),
        "replay.capacity: the observations of a ring need 61.4 GB of memory, but 61.4 GB are at hand,"
        " 60% of what is available",
    ),
    (
        "pinned", IMAGES, machine(H100, 60, 1000, pins=False),
        "replay.placement pinned: this system does not let memory be page-locked (ulimit -l)",
    ),
]  # fmt: skip


@pytest.mark.parametrize("wanted, ring, where, message", REFUSALS)
def test_what_cannot_be_is_refused_in_one_line(
    wanted: Wanted, ring: dict[str, Field], where: Machine | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_storage, "available_memory", lambda: 80 * GB)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        choose(wanted, ring, ROWS, where, 0, "a ring")


# The ring itself, on the CPU: what lies apart goes through the code that fetches for a GPU.

APART: dict[str, dict[str, Place]] = {
    "device": {}, "pinned": {"obs/image": "pinned", "obs/speed": "pinned"}, "host": {"obs/image": "host"},
}  # fmt: skip
SIZES = {"num_envs": 2, "capacity": 12, "batch_size": 3, "batch_length": 4}


def make_ring(places: dict[str, Place], patch: pytest.MonkeyPatch) -> Replay:
    """Memory is locked in pieces of two rows, and the system refuses every third."""
    asked: list[int] = []

    def register(address: int, size: int) -> bool:
        asked.append(address)
        return len(asked) % 3 != 0

    def pinning(rings: list[torch.Tensor]) -> Pinning:
        return Pinning(rings, segment=80, register=register, unregister=lambda address: None)

    def placed(wanted: Wanted, ring: dict[str, Field], *_: object) -> Placement:
        return Placement({key: places.get(key, "device") for key in ring}, "")

    patch.setattr(replay_module, "Pinning", pinning)
    patch.setattr(replay_module, "choose", placed)
    patch.setattr("fastdreamer.replay_pinned.PAGE", 4)
    return Replay(OBS, ACT, deter=4, stoch=3, seed=0, **SIZES)


class Rings(RuleBasedStateMachine):
    """Rings of every placement and a model of lists; a plan may be as late as a pipeline's is."""

    @initialize(seed=st.integers(0, 9))
    def make(self, seed: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(replay_files, "CHUNK", 3)
        self.rings = [make_ring(places, self.patch) for places in APART.values()]
        self.lists, self.rng = ListReplay(**SIZES), np.random.default_rng(seed)

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()

    @rule(count=st.integers(1, 7))
    def grow(self, count: int) -> None:
        for _ in range(count):
            record = make_record(self.rng, SIZES["num_envs"])
            self.lists.add(record)
            for ring in self.rings:
                add(ring, record)

    @precondition(lambda self: self.rings[0].windows > 0)
    @rule(delay=st.integers(0, 10))
    def learn(self, delay: int) -> None:
        """Up to 2 (T + 1) = 10 records are added between the plan and its use: none of its rows is touched."""
        plans = [ring.plan() for ring in self.rings]
        self.lists.take_online()
        assert all(pairs(plan) == pairs(plans[0]) for plan in plans)
        before = self.lists.gather(plans[0])
        if delay:
            self.grow(delay)
        state = make_latents(self.rng, (SIZES["batch_size"], SIZES["batch_length"]), torch.float32)
        for ring, plan in zip(self.rings, plans, strict=True):
            assert plan.start.min() >= ring.length - ring.rows
            assert_equal(flatten(gather(ring, plan)), before)
            ring.write_back(**state)
        self.lists.write_back(plans[0], **state)


Rings.TestCase.settings = settings(max_examples=220, stateful_step_count=50, deadline=None)
TestRings = Rings.TestCase
