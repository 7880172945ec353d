"""The agent: owns the modules, learns from a batch, acts on a step. Plain PyTorch that reads like the paper.

`loss` is one training step up to the gradient; `act` one step of the policy. Both are pure in their noise: the
uniforms and normals they need come in as tensors. Source: SPEC 1.3 to 1.10.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdreamer.batch import Batch, State
from fastdreamer.behavior import Behavior, Dream
from fastdreamer.config import LossConfig, ModelConfig
from fastdreamer.nets import Kernel, initialize
from fastdreamer.noise import Noise
from fastdreamer.spaces import Spaces
from fastdreamer.world_model import WorldModel
from fastdreamer_kernels.functional import Projection
from fastdreamer_kernels.policy import sample_action

LOSS_SCALES = {"rew": 1.0, "con": 1.0, "dyn": 1.0, "rep": 0.1, "policy": 1.0, "value": 1.0, "repval": 0.3}


class UpdateNoise(NamedTuple):
    """The randomness of one update of B windows of T steps."""

    observe: Tensor
    """(B, T, S) uniforms of the posterior."""
    imagine: Tensor
    """(B*T, H, S) uniforms of the prior."""
    action: Tensor
    """(B*T, H+1, elements): uniforms for discrete actions, standard normals for continuous ones."""


class ActNoise(NamedTuple):
    """The randomness of one step of N environments."""

    observe: Tensor
    """(N, S) uniforms of the posterior."""
    action: Tensor
    """(N, elements)."""


class ActState(NamedTuple):
    """What the policy carries from step to step: the world state and the action it took, (N, ...)."""

    world: State
    action: dict[str, Tensor]


class LossOutput(NamedTuple):
    """The loss, the fresh states (B, T, ...) that the ring stores, and metrics without gradient."""

    loss: Tensor
    states: State
    metrics: dict[str, Tensor]


class Agent(nn.Module):
    """World model and behavior over one set of observation and action spaces.

    dtype: what is computed in (float32 or bfloat16); parameters are float32. Raises ValueError for spaces that no
    encoder or head exists for.
    """

    def __init__(self, obs: Spaces, act: Spaces, model: ModelConfig, loss: LossConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.model, self.dtype = loss, model, dtype
        self.halves: dict[str, Tensor] = {}
        """bfloat16 copies of the trained parameters by their name here, where `add_halves` was called."""
        self.world = WorldModel(obs, act, model, loss)
        self.behavior = Behavior(self.world.dyn.width, act, model, loss)

    def initialize(self, noise: Noise) -> None:
        """Fresh parameters; the slow critic starts as a copy of the critic."""
        initialize(self, noise)
        self.behavior.copy_slow_value()

    def official_parameters(self) -> dict[str, nn.Parameter]:
        """Every trained parameter by its official name, such as `dyn/dynin0/kernel`."""
        return {official_name(name): param for name, param in self.named_parameters() if param.requires_grad}

    def slow_parameters(self) -> dict[str, Tensor]:
        """The slow critic's tensors, by the official name of the parameter that each of them follows."""
        behavior = self.behavior
        slow = behavior.slowval.named_parameters(prefix="behavior.val")
        return {official_name(name): param for name, param in slow}

    def add_halves(self) -> list[Tensor]:
        """Copies of the trained parameters in bfloat16, which are computed with from now on instead of fresh casts.

        In the order of `official_parameters`. Whoever changes a parameter must renew its copy.
        """
        trained = {name: param for name, param in self.named_parameters() if param.requires_grad}
        self.halves = {name: param.detach().to(torch.bfloat16) for name, param in trained.items()}
        for name, module in self.named_modules():
            if isinstance(module, Kernel) and f"{name}.kernel" in self.halves:
                module.halves = Projection(self.halves[f"{name}.kernel"], self.halves[f"{name}.bias"])
        return list(self.halves.values())

    @torch.no_grad()
    def renew_halves(self) -> None:
        """Copies every parameter that has a half."""
        for name, half in self.halves.items():
            half.copy_(self.get_parameter(name))

    def compile_parts(self, backend: str = "inductor") -> None:
        """Compiles what has no loop over time in it: encoder, decoder, heads and losses. Never a sequence op."""
        for owner, names in (
            (self.world, ("encode", "predict", "reward", "cont")),
            (self.behavior, ("dream_losses", "replay_loss")),
        ):
            for name in names:
                part = torch.compile(getattr(owner, name), fullgraph=True, dynamic=False, backend=backend)
                setattr(owner, name, part)

    def acting(self) -> "Agent":
        """An agent that can only `act`, without weights yet: kernels in the compute dtype, the rest as here."""
        acting = Agent(self.world.obs, self.world.act, self.model, self.config, self.dtype)
        for owner, parts in ((acting.world, ("dec", "rew", "con")), (acting.behavior, ("val", "slowval", "retnorm"))):
            for part in parts:
                owner._modules.pop(part, None)
        for module in acting.modules():
            if isinstance(module, Kernel):
                module.to(self.dtype)
        return acting.requires_grad_(False).to(next(self.parameters()).device)

    def loss(self, batch: Batch, start: State, prev_action: dict[str, Tensor], noise: UpdateNoise) -> LossOutput:
        """One training step: learn the world from the batch, dream from each of its states, learn to act there.

        start (B, ...): the state before the batch. prev_action (B, T, ...) per key: the action before each record.
        Updates the return normaliser; everything else is left to the optimizer.
        """
        start = State(start.deter.to(self.dtype), start.stoch)
        world = self.world.loss(batch, start, prev_action, noise.observe)
        dream = self.dream(State(world.states.deter.flatten(0, 1), world.states.stoch.flatten(0, 1)), noise)
        losses, returns, metrics = self.behavior.dream_losses(dream)
        bootstrap = returns[:, 0].unflatten(0, batch.reward.shape)
        losses |= world.losses | {"repval": self.behavior.replay_loss(world.feat, batch, bootstrap)}
        means = {name: loss.mean() for name, loss in losses.items()}
        total = torch.stack([self.scale(name) * mean for name, mean in means.items()]).sum()
        metrics |= world.metrics | {f"loss/{name}": mean.detach() for name, mean in means.items()}
        return LossOutput(total, world.states, metrics | {"opt/loss": total.detach()})

    def scale(self, name: str) -> float:
        """The weight of a loss term; reconstruction terms are called rec/KEY."""
        return self.config.decoder if name.startswith("rec/") else LOSS_SCALES[name]

    @torch.no_grad()
    def dream(self, start: State, noise: UpdateNoise) -> Dream:
        """Imagines H steps from every state (N, ...) and predicts what they are worth."""
        states, action, kept = self.world.dyn.imagine(
            start, self.behavior.pol.weights(self.dtype), self.behavior.pol.keys, noise.imagine, noise.action,
            self.behavior.actor_unimix,
        )  # fmt: skip
        return Dream(states, action, self.world.reward(states), self.world.cont(states), kept)

    def initial(self, rows: int) -> ActState:
        """The carry of `act` before the first step; is_first resets it."""
        device = next(self.parameters()).device
        action = self.behavior.pol.split(torch.zeros(rows, sum(k.width for k in self.behavior.pol.keys), device=device))
        return ActState(self.world.dyn.initial(rows, self.dtype, device), action)

    @torch.no_grad()
    def act(
        self, obs: dict[str, Tensor], is_first: Tensor, state: ActState, noise: ActNoise
    ) -> tuple[dict[str, Tensor], ActState]:
        """Actions (N, *shape) per key and the next carry, from observations (N, *shape) and is_first (N,) bool.

        Continuous actions are raw samples: the environment clips and scales them.
        """
        prev_action = {key: value.unsqueeze(1) for key, value in state.action.items()}
        obs = {key: value.unsqueeze(1) for key, value in obs.items()}
        world, _, _ = self.world.observe(
            obs, state.world, prev_action, is_first.unsqueeze(1), noise.observe.unsqueeze(1)
        )
        now, pol = State(world.deter[:, 0], world.stoch[:, 0]), self.behavior.pol
        action = pol.split(sample_action(pol.on_states(now), pol.keys, noise.action, self.behavior.actor_unimix))
        return action, ActState(now, action)

    def update_noise(self, observe: Noise, imagine: Noise, action: Noise, batch: int, time: int) -> UpdateNoise:
        """Draws the noise of one update of `batch` windows of `time` steps, each from its own stream."""
        rows, groups = batch * time, self.world.dyn.dims.stoch
        return UpdateNoise(
            observe.uniform(batch, time, groups),
            imagine.uniform(rows, self.config.horizon, groups),
            self._action_noise(action, rows, self.config.horizon + 1),
        )

    def act_noise(self, observe: Noise, action: Noise, rows: int) -> ActNoise:
        """Draws the noise of one step of `rows` environments."""
        return ActNoise(observe.uniform(rows, self.world.dyn.dims.stoch), self._action_noise(action, rows))

    def _action_noise(self, noise: Noise, *lead: int) -> Tensor:
        draw = [noise.uniform if key.classes else noise.normal for key in self.behavior.pol.keys]
        parts = [sample(*lead, key.elements) for sample, key in zip(draw, self.behavior.pol.keys, strict=True)]
        return torch.cat(parts, -1)


def official_name(name: str) -> str:
    """world.dyn.dynin0.kernel -> dyn/dynin0/kernel."""
    return name.split(".", 1)[1].replace(".", "/")
