"""Act two: learn to act in dreams. Actor, critic, lambda-returns; every loss of behavior. Source: SPEC 1.5 to 1.7."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdreamer.batch import Batch, State
from fastdreamer.config import LossConfig, ModelConfig
from fastdreamer.dists import action_log_prob_entropy
from fastdreamer.heads import PolicyHead, ScalarHead
from fastdreamer.spaces import Spaces
from fastdreamer_kernels import lambda_return
from fastdreamer_kernels.mlp import Kept

LAMBDA = 0.95
ENTROPY_SCALE = 3e-4
RETURN_RATE, RETURN_PERCENTILES, RETURN_LIMIT = 0.01, (0.05, 0.95), 1.0


class Dream(NamedTuple):
    """An imagined rollout of N trajectories, the start at index 0; nothing carries gradient."""

    states: State
    """(N, H+1, ...)."""
    action: Tensor
    """(N, H+1, A) flat."""
    reward: Tensor
    """(N, H+1) float32, predicted on arrival."""
    cont: Tensor
    """(N, H+1) float32 in [0, 1], the discount inside."""
    kept: Kept | None = None
    """What the policy left when it acted, where the kernels keep it: saves the loss from evaluating it again."""


class ReturnNormalizer(nn.Module):
    """Running 5th and 95th percentile of the returns; their distance, at least 1, scales the advantages."""

    lo: Tensor
    hi: Tensor
    points: Tensor

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled
        self.register_buffer("points", torch.tensor(RETURN_PERCENTILES), persistent=False)
        self.register_buffer("lo", torch.zeros(()))
        self.register_buffer("hi", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor) -> None:
        """Mixes in the percentiles of this batch; the statistics start at 0 and are not debiased."""
        lo, hi = torch.quantile(returns.flatten(), self.points)
        self.lo.lerp_(lo, RETURN_RATE)
        self.hi.lerp_(hi, RETURN_RATE)

    def stats(self) -> tuple[Tensor, Tensor]:
        """Offset and scale, 0-d; 0 and 1 when normalisation is off."""
        if not self.enabled:
            return torch.zeros_like(self.lo), torch.ones_like(self.hi)
        return self.lo, (self.hi - self.lo).clamp(min=RETURN_LIMIT)


class Behavior(nn.Module):
    """Actor, critic, and the slow critic that regularises it."""

    def __init__(self, feat: int, act: Spaces, model: ModelConfig, loss: LossConfig) -> None:
        super().__init__()
        units = model.dims().units
        self.config, self.actor_unimix = loss, model.actor_unimix
        self.pol = PolicyHead(feat, units, act)
        self.val = ScalarHead(feat, units, 3, model.heads)
        self.slowval = ScalarHead(feat, units, 3, model.heads).requires_grad_(False)
        self.retnorm = ReturnNormalizer(loss.retnorm)

    def dream_losses(self, dream: Dream) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """Losses policy and value (N, H), returns (N, H), metrics. Updates the return normaliser."""
        outputs = self.pol.on_states(dream.states, dream.kept)
        log_prob, entropies = action_log_prob_entropy(outputs, self.pol.keys, dream.action, self.actor_unimix)
        logits, slow = self.val.on_states(dream.states), self.slowval.mean(self.slowval.on_states(dream.states))
        losses, returns, metrics = self.actor_critic_losses(dream, log_prob, entropies, logits, slow)
        for (key, space), entropy in zip(self.pol.spaces.items(), entropies, strict=True):
            metrics[f"ent/{key}"] = entropy[:, :-1].detach().mean()
            if space.classes:
                metrics[f"rand/{key}"] = metrics[f"ent/{key}"] / (space.elements * math.log(space.classes))
        return losses, returns, metrics

    def actor_critic_losses(
        self, dream: Dream, log_prob: Tensor, entropies: list[Tensor], logits: Tensor, slow: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """The losses from what the heads say: log-probs, entropies, slow value (N, H+1), critic output (N, H+1, *).

        Losses policy and value (N, H), returns (N, H), metrics. Updates the return normaliser.
        """
        value = self.val.mean(logits)
        returns = lambda_return(dream.reward, dream.cont, value, torch.full_like(value, LAMBDA))
        self.retnorm.update(returns)
        offset, scale = self.retnorm.stats()
        weight = torch.cumprod(dream.cont, 1)  # the root's continue is part of it
        advantage = (returns - value[:, :-1]) / scale
        objective = advantage * log_prob[:, :-1] + ENTROPY_SCALE * sum(entropies[1:], entropies[0])[:, :-1]
        losses = {
            "policy": -weight[:, :-1] * objective,
            "value": weight[:, :-1] * self._value_loss(logits, returns, slow),
        }
        scaled = (returns - offset) / scale
        metrics = {
            "adv": advantage.mean(),
            "adv_std": advantage.std(correction=0),
            "adv_mag": advantage.abs().mean(),
            "rew": dream.reward.mean(),
            "con": dream.cont.mean(),
            "ret": scaled.mean(),
            "ret_min": scaled.min(),
            "ret_max": scaled.max(),
            "ret_rate": (scaled.abs() >= 1).float().mean(),
            "val": value.mean(),
            "tar": returns.mean(),
            "slowval": slow.mean(),
            "weight": weight.mean(),
        }
        return losses, returns, metrics

    def replay_loss(self, feat: Tensor, batch: Batch, bootstrap: Tensor) -> Tensor:
        """Value loss (B, T-1) on real rewards; it back-propagates into `feat` (B, T, F).

        bootstrap (B, T): the imagined return that starts at each replayed step.
        """
        slow = self.slowval.mean(self.slowval(feat.detach()))
        return self.replay_value_loss(self.val(feat), slow, batch, bootstrap)

    def replay_value_loss(self, logits: Tensor, slow: Tensor, batch: Batch, bootstrap: Tensor) -> Tensor:
        """The same from what the heads say: critic output (B, T, *), slow value (B, T)."""
        cont = (~batch.is_terminal).float() * (1 - 1 / self.config.discount_horizon)
        alive = (~batch.is_last).float()
        returns = lambda_return(batch.reward, cont, bootstrap, LAMBDA * alive)
        return alive[:, :-1] * self._value_loss(logits, returns, slow)

    def _value_loss(self, logits: Tensor, returns: Tensor, slow: Tensor) -> Tensor:
        """(N, T-1) from logits (N, T, *), returns (N, T-1) and slow value (N, T).

        The last step has no return: its loss is dropped, which costs less than cutting it out of the logits.
        """
        return self.val.loss(logits, F.pad(returns, (0, 1)), slow)[:, :-1]

    @torch.no_grad()
    def copy_slow_value(self) -> None:
        """slow <- critic, at the start."""
        self.slowval.load_state_dict(self.val.state_dict())
