"""Places where a value that is not finite can get into a training, each as something to do around one update."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from fastdreamer.agent import UpdateNoise
from fastdreamer.batch import Window
from fastdreamer.loop import Training

SIDE, LIMIT = 48, 9
HUGE = 3e38
"""Finite, in bfloat16 too; no product of it is."""


class Mixed(gymnasium.Env[Any, Any]):
    """Image and vector, continuous and discrete, importable as `spoilers:Mixed`; ends after 9 steps."""

    observation_space = spaces.Dict(
        {"camera": spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8), "speed": spaces.Box(-9, 9, (2,), np.float32)}
    )
    action_space = spaces.Dict({"turn": spaces.Box(-1, 1, (2,), np.float32), "jump": spaces.Discrete(3)})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self._steps += 1
        return self._observe(), float(action["turn"][0]), self._steps == LIMIT, False, {}

    def _observe(self) -> dict[str, Any]:
        camera = self.np_random.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)
        return {"camera": camera, "speed": self.np_random.standard_normal(2).astype(np.float32)}


Around = Callable[[Training, float], AbstractContextManager[None]]


class Spoiler(NamedTuple):
    """What is done around one update; whether it stays there afterwards, and whether updates are skipped by it."""

    around: Around
    stays: bool = False
    skips: bool = True
    value: float = torch.nan
    precision: Literal["float32", "bfloat16"] = "float32"


@contextmanager
def patched(owner: object, name: str, value: object) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield


def in_window(change: Callable[[Window, float], Window]) -> Around:
    """Spoils what an update reads, not the ring."""

    def around(training: Training, value: float) -> AbstractContextManager[None]:
        replay = training.learner.replay
        read = replay.window
        return patched(replay, "window", lambda: change(read(), value))

    return around


def observed(key: str) -> Around:
    def change(window: Window, value: float) -> Window:
        spoiled = window.batch.obs[key].float().index_fill(1, torch.tensor([1]), value)
        return window._replace(batch=window.batch._replace(obs=window.batch.obs | {key: spoiled}))

    return in_window(change)


def rewarded(window: Window, value: float) -> Window:
    return window._replace(batch=window.batch._replace(reward=torch.full_like(window.batch.reward, value)))


def acted(window: Window, value: float) -> Window:
    turn = torch.full_like(window.prev_action["turn"], value)
    return window._replace(prev_action=window.prev_action | {"turn": turn})


def started(window: Window, value: float) -> Window:
    return window._replace(start=window.start._replace(deter=torch.full_like(window.start.deter, value)))


def loss_of(term: str) -> Around:
    def around(training: Training, value: float) -> AbstractContextManager[None]:
        agent = training.learner.agent
        scale = agent.scale
        return patched(agent, "scale", lambda name: value if name == term else scale(name))

    return around


def whole_loss(training: Training, value: float) -> AbstractContextManager[None]:
    """The gradients stay finite."""
    agent = training.learner.agent
    original = agent.loss

    def loss(*args: Any) -> Any:
        out = original(*args)
        return out._replace(loss=out.loss + value)

    return patched(agent, "loss", loss)


def gradient_of(name: str) -> Around:
    @contextmanager
    def around(training: Training, value: float) -> Iterator[None]:
        parameter = training.learner.optimizer.params[training.learner.optimizer.names.index(name)]
        hook = parameter.register_hook(
            lambda grad: grad.flatten().index_fill(0, torch.tensor([0]), value).view_as(grad)
        )
        yield
        hook.remove()

    return around


def noise_of(field: str) -> Around:
    def around(training: Training, value: float) -> AbstractContextManager[None]:
        agent = training.learner.agent
        original = agent.update_noise

        def update_noise(*args: Any) -> UpdateNoise:
            noise = original(*args)
            return noise._replace(**{field: torch.full_like(getattr(noise, field), value)})

        return patched(agent, "update_noise", update_noise)

    return around


def state(find: Callable[[Training], Tensor]) -> Around:
    """Overwrites a tensor before the update."""

    @contextmanager
    def around(training: Training, value: float) -> Iterator[None]:
        with torch.no_grad():
            find(training).fill_(value)
        yield

    return around


def parameter(name: str) -> Around:
    return state(lambda training: training.learner.agent.get_parameter(name))


def moment(kind: str) -> Around:
    return state(lambda training: training.learner.optimizer.state()[f"{kind}dyn/dyngru/kernel"])


def ring(key: str) -> Around:
    def find(training: Training) -> Tensor:
        replay = training.learner.replay
        return (replay.records | replay.latents)[key][:, : replay.length]

    return state(find)


TERMS = "dyn", "rep", "rew", "con", "rec/speed", "rec/camera", "policy", "value", "repval"
GRADIENTS = (
    "enc/cnn0/kernel", "dyn/dyngru/kernel", "dec/sp1/kernel", "rew/mlp/linear0/kernel", "con/mlp/linear0/kernel",
    "pol/mlp/linear0/kernel", "val/mlp/linear0/kernel",
)  # fmt: skip
SPOILERS: dict[str, Spoiler] = {
    "image observed": Spoiler(observed("camera")),
    "vector observed": Spoiler(observed("speed")),
    "vector observed inf": Spoiler(observed("speed"), value=torch.inf),
    "reward": Spoiler(in_window(rewarded)),
    "reward inf": Spoiler(in_window(rewarded), value=-torch.inf),
    "action": Spoiler(in_window(acted)),
    "start state": Spoiler(in_window(started)),
    "loss inf": Spoiler(whole_loss, value=torch.inf),
    **{f"loss {term}": Spoiler(loss_of(term), value=torch.inf) for term in TERMS},
    **{f"gradient {name}": Spoiler(gradient_of(name)) for name in GRADIENTS},
    "gradient overflow": Spoiler(gradient_of("dyn/dyngru/kernel"), value=HUGE),
    **{f"noise {field}": Spoiler(noise_of(field), skips=False) for field in ("observe", "imagine")},  # still a class
    "noise action": Spoiler(noise_of("action")),
    "critic": Spoiler(parameter("behavior.val.head.logits.kernel"), stays=True),
    "actor inf": Spoiler(parameter("behavior.pol.head.turn.mean.kernel"), stays=True, value=torch.inf),
    "slow critic": Spoiler(parameter("behavior.slowval.head.logits.kernel"), stays=True),
    "world model": Spoiler(parameter("world.dyn.dyngru.kernel"), stays=True),
    "bfloat16 overflow": Spoiler(
        parameter("world.dyn.dynhid0.kernel"), stays=True, value=HUGE, precision="bfloat16"
    ),
    "bfloat16 copies": Spoiler(
        state(lambda training: training.learner.optimizer.shadow[0]), stays=True, precision="bfloat16"
    ),
    "normaliser": Spoiler(state(lambda training: training.learner.agent.behavior.retnorm.lo), stays=True),
    "normaliser inf": Spoiler(
        state(lambda training: training.learner.agent.behavior.retnorm.hi), stays=True, value=torch.inf
    ),
    "first moment": Spoiler(moment("mu/"), stays=True),
    "second moment": Spoiler(moment("nu/"), stays=True),
    "second moment inf": Spoiler(moment("nu/"), stays=True, value=torch.inf),
    "optimizer step": Spoiler(state(lambda training: training.learner.optimizer.step_count), stays=True),
    "vector in the ring": Spoiler(ring("obs/speed"), stays=True),
    "reward in the ring": Spoiler(ring("reward"), stays=True),
    "action in the ring": Spoiler(ring("action/turn"), stays=True),
    "state in the ring": Spoiler(ring("deter"), stays=True),
    "policy": Spoiler(
        state(lambda training: next(training.learner.policy.agent.world.dyn.parameters())), skips=False
    ),
    "carry of the policy": Spoiler(state(lambda training: training.learner.policy.state.world.deter), skips=False),
}  # fmt: skip
