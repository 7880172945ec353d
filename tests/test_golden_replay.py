"""The official driver and replay on 60 records of a toy environment: records, windows, order, latents, flags."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from golden_arrays import EXACT, FORWARD, Golden
from numpy.typing import NDArray
from torch import Tensor

from fastdreamer.env import Env, Step
from fastdreamer.env_backend import Raw
from fastdreamer.env_cursor import Cursor
from fastdreamer.env_faults import Rebuilds
from fastdreamer.env_step import AnySpace, Arrays, Flags, NotFiniteError
from fastdreamer.replay import Plan, Replay
from fastdreamer.spaces import Space
from fastdreamer.steps import mask_action

TRACE = "driver_replay_trace.json"
Record = dict[str, Any]


class Playback:
    """An environment backend that plays the recorded observations; episodes end where the set-up says.

    On a reset it reports a NaN as reward, which nobody may see.
    """

    action_repeat, replays, supervised, rebuilds = 1, False, False, Rebuilds()

    def __init__(self, setup: Record, records: list[list[Record]]) -> None:
        self.records, self.t = records, 0
        self.observation_spaces: dict[str, AnySpace] = {"x": gymnasium.spaces.Box(-np.inf, np.inf, (), np.float32)}
        self.action_space: AnySpace = gymnasium.spaces.Discrete(classes(records))
        self.ends = [episode_ends(setup, env, len(stream)) for env, stream in enumerate(records)]

    def receive(self) -> Raw:
        now = [stream[self.t] for stream in self.records]
        reset = [self.t == 0 or any(flags[self.t - 1]) for flags in self.ends]
        reward = [np.nan if first else record["reward"] for first, record in zip(reset, now, strict=True)]
        terminated, truncated = np.array([flags[self.t] for flags in self.ends], bool).T
        self.t += 1
        obs = {"x": np.array([record["x"] for record in now], np.float32)}
        return Raw(obs, np.array(reward, np.float32), terminated, truncated, np.array(reset))

    def send(self, action: object, record: int, reset: Flags) -> None:
        pass

    def rebuild(self, error: NotFiniteError) -> None:
        raise error

    def resume(self, record: int, cursors: Mapping[int, Cursor]) -> dict[int, Arrays]:
        raise NotImplementedError

    def render(self, index: int) -> NDArray[np.uint8]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def classes(records: list[list[Record]]) -> int:
    return 1 + max(record["action"] for stream in records for record in stream)


def episode_ends(setup: Record, env: int, count: int) -> list[tuple[bool, bool]]:
    """(terminated, truncated) of every record: environment i begins at entry i of the lists of episodes."""
    flags: list[tuple[bool, bool]] = []
    episode = env
    while len(flags) < count:
        index = episode % len(setup["lengths"])
        truncated = setup["truncated"][index]
        flags += [(False, False)] * setup["lengths"][index] + [(not truncated, truncated)]
        episode += 1
    return flags[:count]


class Drive:
    """The product's environment, action mask and ring, driven through the recorded stream."""

    def __init__(self, golden: Golden) -> None:
        self.setup = golden.read_json(TRACE, "setup")
        transitions = golden.read_json(TRACE, "transitions")
        envs = self.setup["envs"]
        self.records = [[r for r in transitions if r["worker"] == env] for env in range(envs)]
        backend = Playback(self.setup, self.records)
        self.length = self.setup["replay_length"]
        batch_size = len(golden.read_json(TRACE, "online_queue"))
        space, width = Space("discrete", (), classes(self.records)), len(transitions[0]["dyn/deter"])
        self.replay = Replay(
            {"x": Space("vector")}, {"action": space}, deter=width, stoch=1, num_envs=envs, seed=0,
            capacity=self.setup["capacity"], batch_size=batch_size, batch_length=self.length - 1,
        )  # fmt: skip
        env = Env(backend, "playback", envs, seed=0)
        self.stored: list[Arrays] = []
        for _ in self.records[0]:
            step = env.recv()
            action = {"action": (step.obs["x"] % 7 + 1).astype(np.int32)}
            env.send(action)
            masked = mask_action({"action": torch.from_numpy(action["action"])}, torch.from_numpy(step.is_last))
            self.store(step, {"action": masked["action"].numpy()})

    def store(self, step: Step, action: Arrays) -> None:
        deter = np.repeat(step.obs["x"][:, None], self.replay.latents["deter"].shape[-1], 1)
        self.replay.add(*step, action, deter, np.zeros((len(deter), 1), np.uint8))
        flags = {"is_first": step.is_first, "is_last": step.is_last, "is_terminal": step.is_terminal}
        self.stored.append(step.obs | {"reward": step.reward, "dyn/deter": deter} | flags | action)


def column(records: list[Record], key: str) -> Tensor:
    return torch.tensor([record[key] for record in records])


@pytest.mark.parametrize("key", ["x", "reward", "is_first", "is_last", "is_terminal", "action", "dyn/deter"])
def test_what_is_stored(golden: Golden, key: str) -> None:
    """At an episode's end the action is zero, at its beginning the reward."""
    drive = Drive(golden)
    for env, stream in enumerate(drive.records):
        actual = torch.from_numpy(np.stack([record[key][env] for record in drive.stored]))
        golden.compare(f"{TRACE}: {key} of worker {env}", actual, column(stream, key), FORWARD)


def test_every_window_can_be_sampled(golden: Golden) -> None:
    """In the order of their numbers; records of each as the ring serves them."""
    drive = Drive(golden)
    items = golden.read_json(TRACE, "items")
    numbers = column(items, "start") * drive.setup["envs"] + column(items, "worker")
    golden.compare(f"{TRACE}: items", torch.arange(*drive.replay.window_range()), numbers, EXACT)
    golden.compare(f"{TRACE}: ends", column(items, "start") + drive.length - 1, column(items, "end"), EXACT)
    drawn: set[tuple[int, int]] = set()
    for _ in range(20 * len(items) // drive.replay.batch_size):
        plan = drive.replay.plan()
        drawn |= set(zip(plan.env.tolist(), plan.start.tolist(), strict=True))
    assert drawn == {(item["worker"], item["start"]) for item in items}


def test_newest_windows_are_served_first(golden: Golden) -> None:
    drive = Drive(golden)
    queue = golden.read_json(TRACE, "online_queue")
    plan = drive.replay.plan()
    golden.compare(f"{TRACE}: online windows", torch.tensor(plan.online), torch.tensor(len(queue)), EXACT)
    for key, value in {"worker": plan.env, "start": plan.start, "end": plan.start + drive.length - 1}.items():
        golden.compare(f"{TRACE}: {key} of the online queue", torch.from_numpy(value), column(queue, key), EXACT)
    assert drive.replay.plan().online == 0


def test_served_windows(golden: Golden) -> None:
    """The first record only gives the first previous action; abandoned episodes end."""
    drive = Drive(golden)
    samples = golden.read_json(TRACE, "online_samples")
    plan = drive.replay.plan()
    drive.replay.stage(plan)
    batch, start, prev_action = drive.replay.window()
    record = torch.from_numpy(plan.start[:, None] + np.arange(drive.length))
    golden.compare(f"{TRACE}: t", record, column(samples, "t"), EXACT)
    golden.compare(f"{TRACE}: worker", torch.from_numpy(plan.env), column(samples, "worker"), EXACT)
    golden.compare(f"{TRACE}: action", prev_action["action"], column(samples, "action")[:, :-1].int(), EXACT)
    golden.compare(f"{TRACE}: state", start.deter[:, 0], column(samples, "x")[:, 0], EXACT)
    values = {"x": batch.obs["x"], **batch._asdict()}
    for key in ("x", "reward", "is_first", "is_last", "is_terminal"):
        golden.compare(f"{TRACE}: {key}", values[key], column(samples, key)[:, 1:], FORWARD)


def test_no_window_goes_on_from_another(golden: Golden) -> None:
    """The official flag for that is zero everywhere, so the product has none."""
    drive = Drive(golden)
    consec = golden.read_json(TRACE, "consec")
    flags = torch.zeros(drive.replay.batch_size, drive.length, dtype=torch.int64)
    golden.compare(f"{TRACE}: consec", flags, torch.tensor(consec["consec"]), EXACT)
    golden.compare(f"{TRACE}: shape", torch.tensor(flags.shape), torch.tensor(consec["shape"]), EXACT)


def test_fresh_latents_replace_those_of_trained_records(golden: Golden) -> None:
    """The official update wrote -1 into the first window of the queue, -2 into the second, and so on."""
    drive = Drive(golden)
    items = golden.read_json(TRACE, "latents_after_update")
    plan = drive.replay.plan()
    rows, steps = drive.replay.batch_size, drive.replay.batch_length
    fresh = -torch.arange(1.0, rows + 1)[:, None, None].expand(-1, steps, drive.replay.latents["deter"].shape[-1])
    drive.replay.stage(plan)
    drive.replay.write_back(fresh, torch.zeros(rows, steps, 1, dtype=torch.int32))
    numbers = torch.tensor([item["item"] for item in items])
    golden.compare(f"{TRACE}: items", numbers, torch.arange(drive.replay.windows), EXACT)
    index = column(items, "start")[:, None] + torch.arange(drive.length)
    actual = drive.replay.latents["deter"][column(items, "worker")[:, None], index]
    for width in actual.unbind(-1):
        golden.compare(f"{TRACE}: latents", width, column(items, "deter"), EXACT)


def test_flags_of_abandoned_episodes(golden: Golden) -> None:
    """A record is the last one where the next begins an episode. The context record's flags are never served."""
    flags = {key: torch.tensor(value) > 0 for key, value in golden.read_json(TRACE, "annotate").items()}
    rows, records = flags["is_first_in"].shape
    replay = Replay(
        {}, {}, deter=1, stoch=1, num_envs=rows, capacity=rows, batch_size=rows, batch_length=records - 1, seed=0
    )
    for first, last in zip(flags["is_first_in"].T, flags["is_last_in"].T, strict=True):
        zero = torch.zeros(rows)
        replay.add({}, zero, first, last, first & last, {}, zero[:, None], zero[:, None])
    replay.stage(Plan(np.arange(rows), np.zeros(rows, np.int64), 0))
    batch = replay.window().batch
    golden.compare(f"{TRACE}: is_first", batch.is_first, flags["is_first_out"][:, 1:], EXACT)
    golden.compare(f"{TRACE}: is_last", batch.is_last, flags["is_last_out"][:, 1:], EXACT)
