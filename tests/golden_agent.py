"""The whole agent of the official arrays: its sizes, its parameters, its batches through the replay ring, its noise."""

from typing import NamedTuple

import numpy as np
import torch
from golden_arrays import Arrays, Golden
from golden_modules import fill, infer_dims, official_names
from golden_uniforms import features, walk_imagine, walk_observe
from torch import Tensor

from fastdreamer.agent import Agent, UpdateNoise
from fastdreamer.batch import State, Window
from fastdreamer.behavior import Dream
from fastdreamer.config import LossConfig, ModelConfig
from fastdreamer.dists import action_log_prob_entropy
from fastdreamer.replay import Plan, Replay
from fastdreamer.spaces import Space, Spaces
from fastdreamer_kernels.policy import policy_outputs

CASES = ("disc_image", "cont_vec")
BATCHES = 4
RECORD = ("reward", "is_first", "is_last", "is_terminal", "action", "consec", "dyn/deter", "dyn/stoch")
STEP_ID = "stepid"


class Case:
    """One agent of the files: inputs, outputs, and the product's agent with the official parameters."""

    def __init__(self, golden: Golden, name: str, dtype: torch.dtype = torch.float32) -> None:
        self.golden = golden
        self.inputs = golden.open(f"agent_{name}_inputs.npz")
        self.outputs = golden.open(f"agent_{name}_outputs.npz")
        params = self.inputs.group("param:")
        self.obs, self.act = infer_spaces(self.inputs, params)
        units = params["con/mlp/linear0/bias"].numel()
        depth = params["enc/cnn0/bias"].numel() // 2 if "enc/cnn0/bias" in params else 1
        dims = infer_dims(params, self.inputs.read("batch0:dyn/stoch"), units, depth)
        loss = LossConfig(horizon=self.outputs.read("imag:con").shape[1] - 1)
        self.agent = Agent(self.obs, self.act, ModelConfig(**dims._asdict()), loss, dtype)
        self.slow = official_names(self.agent.behavior.slowval, "slowval/")
        fill(self.agent.official_parameters() | self.slow, params)

    def window(self, index: int, carry: State | None = None) -> "Recorded":
        """Batch `index` as the ring serves it: each row is one environment, its only window is the whole row.

        Rows that the batch calls consecutive go on from `carry`, the last states of the training before. The product
        never asks for that, so the rule lives here.
        """
        batch = self.inputs.group(f"batch{index}:")
        recorded = record(batch, self.obs, self.act)
        if carry is None:
            return recorded
        goes_on = batch["consec"][:, 0] > 0
        start = recorded.window.start
        deter = torch.where(goes_on[:, None], carry.deter, start.deter)
        stoch = torch.where(goes_on[:, None], carry.stoch, start.stoch)
        return recorded._replace(window=recorded.window._replace(start=State(deter, stoch)))

    def noise(self, window: Window) -> UpdateNoise:
        """The noise of an update in which every sample is the likeliest one, and normals are mean + 0.5 std."""
        agent, behavior, dyn = self.agent, self.agent.behavior, self.agent.world.dyn
        start = State(window.start.deter.to(agent.dtype), window.start.stoch)
        batch = window.batch

        def observe(uniform: Tensor) -> tuple[State, Tensor, Tensor]:
            return agent.world.observe(batch.obs, start, window.prev_action, batch.is_first, uniform)

        uniform = walk_observe(lambda u: observe(u)[2], (*batch.reward.shape, dyn.dims.stoch), dyn.unimix)
        with torch.no_grad():
            states, _, _ = observe(uniform)
        policy = behavior.pol.weights(agent.dtype)
        horizon = agent.config.horizon
        imagine, action = walk_imagine(dyn, policy, behavior.pol.keys, flatten(states), horizon, behavior.actor_unimix)
        return UpdateNoise(uniform, imagine, action)


class Recorded(NamedTuple):
    """A batch in the ring, and the window that the ring makes of it."""

    replay: Replay
    window: Window


def infer_spaces(inputs: Arrays, params: dict[str, Tensor]) -> tuple[Spaces, Spaces]:
    """The observation keys and the one action key of the batches."""
    obs: Spaces = {}
    for key in inputs.keys("batch0:"):
        if key not in (*RECORD, STEP_ID):
            value = inputs.read(f"batch0:{key}")
            obs[key] = Space("image" if value.dtype == torch.uint8 else "vector", tuple(value.shape[2:]))
    action = inputs.read("batch0:action")
    if action.is_floating_point():
        return obs, {"action": Space("vector", tuple(action.shape[2:]))}
    return obs, {"action": Space("discrete", (), params["pol/head/action/logits/bias"].numel())}


def record(batch: dict[str, Tensor], obs: Spaces, act: Spaces) -> Recorded:
    """Writes the records of a batch (B, 1 + T, ...) into a ring and reads the window back; the step id rides along."""
    rows, records, width = batch["dyn/deter"].shape
    step_id = Space("discrete", tuple(batch[STEP_ID].shape[2:]), 256)
    replay = Replay(
        obs | {STEP_ID: step_id}, act, deter=width, stoch=batch["dyn/stoch"].shape[2], num_envs=rows,
        capacity=rows, batch_size=rows, batch_length=records - 1, seed=0,
    )  # fmt: skip
    index = batch["dyn/stoch"].argmax(-1)
    for t in range(records):
        reward, first, last, terminal = (batch[key][:, t] for key in ("reward", "is_first", "is_last", "is_terminal"))
        values = {key: batch[key][:, t] for key in (*obs, STEP_ID)}
        action = {key: batch[key][:, t] for key in act}
        replay.add(values, reward, first, last, terminal, action, batch["dyn/deter"][:, t], index[:, t])
    plan = Plan(np.arange(rows), np.zeros(rows, dtype=np.int64), 0)
    replay.stage(plan)
    return Recorded(replay, replay.window())


def official_name(loss: str) -> str:
    """The official name of a loss term: reconstructions are called by their key alone."""
    return loss.removeprefix("rec/")


def flatten(states: State) -> State:
    """(B, T, ...) -> (B*T, ...): the roots of the dream."""
    return State(states.deter.flatten(0, 1), states.stoch.flatten(0, 1))


def loss_terms(agent: Agent, window: Window, noise: UpdateNoise) -> tuple[dict[str, Tensor], Tensor]:
    """Every loss term (B, T) by its official name, as `Agent.loss` puts them together, and the returns (B*T, H)."""
    start = State(window.start.deter.to(agent.dtype), window.start.stoch)
    world = agent.world.loss(window.batch, start, window.prev_action, noise.observe)
    losses, returns, _ = agent.behavior.dream_losses(agent.dream(flatten(world.states), noise))
    shape = window.batch.reward.shape
    terms = {name: loss.mean(1).unflatten(0, shape) for name, loss in losses.items()}
    terms["repval"] = agent.behavior.replay_loss(world.feat, window.batch, returns[:, 0].unflatten(0, shape))
    return terms | {official_name(name): loss for name, loss in world.losses.items()}, returns


def dream_outputs(agent: Agent, dream: Dream) -> dict[str, Tensor]:
    """What the heads say about a dream, by official name."""
    behavior = agent.behavior
    feat = features(dream.states, agent.world.dyn.dims.classes)
    outputs = policy_outputs(feat, behavior.pol.weights(agent.dtype))
    log_prob, entropies = action_log_prob_entropy(outputs, behavior.pol.keys, dream.action, behavior.actor_unimix)
    return {
        "act/action": behavior.pol.split(dream.action)["action"],
        "rew": dream.reward,
        "con": dream.cont,
        "val": behavior.val.mean(behavior.val(feat)),
        "slowval": behavior.slowval.mean(behavior.slowval(feat)),
        "logp/action": log_prob,
        "entropy/action": entropies[0],
    }
