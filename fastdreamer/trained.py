"""An agent that has learned, out of its run folder, to be called from any program.

    agent = fastdreamer.load("runs/x")
    state = agent.init(1)
    action, state = agent.act(obs, state, is_first)   # obs (1, ...), the action (1, ...)

The environment is not needed: its spaces are in the checkpoint.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fastdreamer import checkpoint
from fastdreamer.agent import ActState, Agent, official_name
from fastdreamer.config import Config
from fastdreamer.env_action import BoundedAction
from fastdreamer.noise import Noise, Stream
from fastdreamer.spaces import Space, spaces_from_json

Array = NDArray[np.generic]
Arrays = dict[str, Array]


class TrainedAgent:
    """The sampling policy of a run, as it is evaluated (SPEC 1.10), for any number of episodes side by side.

    obs_space, act_space   name -> Space: what `act` takes and gives
    env_steps              agent steps that it has learned from
    """

    def __init__(self, agent: Agent, config: Config, env_steps: int, seed: int) -> None:
        self.agent, self.config, self.env_steps = agent, config, env_steps
        self.obs_space, self.act_space = agent.world.obs, agent.world.act
        device = next(agent.parameters()).device
        self._observe, self._action = (
            Noise(seed, stream, device=device) for stream in (Stream.EVAL_STATE, Stream.EVAL_POLICY)
        )

    def init(self, n: int) -> ActState:
        """What the policy carries from step to step, for `n` episodes that begin. Raises ValueError below 1."""
        if n < 1:
            raise ValueError(f"n must be at least 1 episode, got {n}")
        return self.agent.initial(n)

    def act(
        self, obs: Array | Mapping[str, Array], state: ActState, is_first: bool | Array
    ) -> tuple[Array | Arrays, ActState]:
        """The actions of `n` episodes and the next carry.

        obs: per key of obs_space (n, *shape), as the environments of the run showed it; a bare array where there is one
        key. is_first: where an episode begins, one bool or (n,); what the carry holds there is forgotten. The actions
        are (n, *shape): class indices from 0, or values within the bounds of the action space; a bare array where
        act_space has one key, else a dict. Raises ValueError for observations that do not fit the spaces.
        """
        rows, device = len(state.world.deter), state.world.deter.device
        observed = self._observed(obs, rows)
        first = np.asarray(is_first)
        if first.dtype != bool or first.shape not in ((), (rows,)):
            raise ValueError(f"is_first must be one bool or shape ({rows},), got {first.dtype} {first.shape}")
        action, state = self.agent.act(
            {key: torch.from_numpy(value).to(device) for key, value in observed.items()},
            torch.from_numpy(np.broadcast_to(first, rows).copy()).to(device),
            state,
            self.agent.act_noise(self._observe, self._action, rows),
        )
        actions = {key: _executed(self.act_space[key], key, value.cpu().numpy()) for key, value in action.items()}
        return actions if len(actions) > 1 else next(iter(actions.values())), state

    def _observed(self, obs: Array | Mapping[str, Array], rows: int) -> Arrays:
        if not isinstance(obs, Mapping):
            if len(self.obs_space) > 1:
                raise ValueError(f"obs must be a dict with the keys {sorted(self.obs_space)}, got one value")
            obs = dict.fromkeys(self.obs_space, obs)
        if obs.keys() != self.obs_space.keys():
            raise ValueError(f"obs must have the keys {sorted(self.obs_space)}, got {sorted(obs)}")
        return {key: _as_space(key, space, np.asarray(obs[key]), rows) for key, space in self.obs_space.items()}


def load(run: str | Path, *, device: str = "cpu", seed: int = 0) -> TrainedAgent:
    """The agent of the newest checkpoint of a run folder that can be trusted.

    device: what torch calls it, such as cuda. seed: of its sampling. Computes in float32 on a CPU, on a GPU in what the
    run asks for. Raises ValueError, one line, where there is none or it does not fit.
    """
    run = Path(run)
    config = read_config(run)
    saved = checkpoint.latest(run, with_replay=False)
    where = f"{saved.path / checkpoint.STATE}: spaces"
    spaces = saved.value("spaces", dict)
    obs, act = (spaces_from_json(spaces.get(name), f"{where}: {name}") for name in ("obs", "act"))
    wanted = config.model.precision
    half = device != "cpu" if wanted == "auto" else wanted == "bfloat16"
    agent = Agent(obs, act, config.model, config.loss, torch.bfloat16 if half else torch.float32)
    named = {official_name(name): tensor for name, tensor in agent.named_parameters()}
    checkpoint.load_into(named, saved.tensors.get("model", {}), f"{saved.path}/model")
    agent.requires_grad_(False).to(device)
    return TrainedAgent(agent, config, saved.value("env_steps", int), seed)


def read_config(run: Path) -> Config:
    """The config of a run folder. Raises ValueError, one line, where it cannot be read."""
    path = run / "config.json"
    try:
        return Config.from_json(json.loads(path.read_text()))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def _as_space(key: str, space: Space, value: Array, rows: int) -> Array:
    shape = (rows, *space.shape)
    if value.shape != shape:
        raise ValueError(f'observation "{key}" must have shape {shape}, got {value.shape}')
    kinds = {"image": "u", "vector": "biuf", "discrete": "biu"}[space.kind]
    if value.dtype.kind not in kinds or (space.kind == "image" and value.dtype != np.uint8):
        raise ValueError(f'observation "{key}" must be {space.dtype}, got {value.dtype}')
    if space.kind == "discrete" and (value.min() < 0 or value.max() >= space.classes):
        raise ValueError(f'observation "{key}" must lie in 0..{space.classes - 1}, got {value.min()}..{value.max()}')
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and named below
        taken = np.ascontiguousarray(value, space.dtype)
    if space.kind == "vector" and not (taken < np.inf).all():  # -inf is an absent value
        raise ValueError(f'observation "{key}" must be finite, or -inf where it is absent, got {taken.max()}')
    return taken


def _executed(space: Space, key: str, value: Array) -> Array:
    if space.kind == "discrete":
        return value
    low, high = (np.array(bound).reshape(space.shape) for bound in (space.low, space.high))
    return BoundedAction(space, low, high, np.dtype(np.float32)).encode(key, value)
