"""Act one: learn the world. Encode, observe, predict; every loss of the world model. Source: SPEC 1.4 and 1.8."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdreamer.batch import Batch, State
from fastdreamer.config import LossConfig, ModelConfig
from fastdreamer.dists import binary_loss
from fastdreamer.heads import ContinueHead, ScalarHead
from fastdreamer.nets import Decoder, Encoder, concat_vectors, symlog
from fastdreamer.rssm import RSSM
from fastdreamer.spaces import Space, Spaces
from fastdreamer_kernels import unimix_kl


class WorldOutput(NamedTuple):
    """What one pass over a batch gives. Every loss is (B, T) float32, unscaled."""

    losses: dict[str, Tensor]
    feat: Tensor
    """(B, T, F) with gradient into encoder and RSSM."""
    states: State
    """Fresh states (B, T, ...) without gradient: imagination starts here, and the ring stores them."""
    metrics: dict[str, Tensor]


class WorldModel(nn.Module):
    """Encoder, RSSM, decoder, reward and continue heads."""

    def __init__(self, obs: Spaces, act: Spaces, model: ModelConfig, loss: LossConfig) -> None:
        super().__init__()
        dims = model.dims()
        self.obs, self.act, self.config = obs, act, loss
        self.enc = Encoder(obs, dims.units, dims.depth)
        self.dyn = RSSM(dims, sum(space.width for space in act.values()), self.enc.width, model.unimix)
        if loss.decoder:
            self.dec = Decoder(obs, dims.deter, self.dyn.latent, dims.units, dims.depth, dims.blocks)
        self.rew = ScalarHead(self.dyn.width, dims.units, 1, model.heads)
        if loss.use_cont:
            self.con = ContinueHead(self.dyn.width, dims.units)

    def encode(self, obs: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Tokens (B, T, E) of observations (B, T, ...)."""
        tokens: Tensor = self.enc(obs, dtype)
        return tokens

    def observe(
        self, obs: dict[str, Tensor], start: State, prev_action: dict[str, Tensor], is_first: Tensor, uniform: Tensor
    ) -> tuple[State, Tensor, Tensor]:
        """States (B, T, ...), one-hot latents (B, T, S*K), posterior logits; computes in the dtype of the start."""
        embed = self.encode(obs, start.deter.dtype)
        actions = concat_vectors(prev_action, self.act, 2, squish=False)
        return self.dyn.observe(start, embed, actions, is_first, uniform)

    def loss(self, batch: Batch, start: State, prev_action: dict[str, Tensor], uniform: Tensor) -> WorldOutput:
        """Losses rec (per key), rew, con, dyn, rep. uniform: (B, T, S) in [0, 1)."""
        state, latent, post = self.observe(batch.obs, start, prev_action, batch.is_first, uniform)
        losses, feat, metrics = self.predict(batch, state.deter, latent, post)
        return WorldOutput(losses, feat, State(state.deter.detach(), state.stoch), metrics)

    def predict(
        self, batch: Batch, deter: Tensor, latent: Tensor, post: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """Losses (B, T) of what is predicted from the states, their features (B, T, F), and metrics."""
        dyn, rep, post_entropy, prior_entropy = unimix_kl(
            post, self.dyn.prior(deter), self.dyn.unimix, self.config.free_nats
        )
        feat = torch.cat([deter, latent], -1)
        losses = {"dyn": dyn, "rep": rep, "rew": self.rew.loss(self.rew(feat), batch.reward)}
        if self.config.use_cont:
            target = (~batch.is_terminal).float() * (1 - 1 / self.config.discount_horizon)
            losses["con"] = binary_loss(self.con(feat), target)
        if self.config.decoder:
            for key, prediction in self.dec(deter, latent).items():
                losses[f"rec/{key}"] = reconstruction_loss(prediction, batch.obs[key], self.obs[key])
        return losses, feat, {"dyn_ent": prior_entropy.mean(), "rep_ent": post_entropy.mean()}

    def reward(self, states: State) -> Tensor:
        """Predicted reward (...) float32 of states without gradient."""
        return self.rew.mean(self.rew.on_states(states))

    def cont(self, states: State) -> Tensor:
        """Predicted continue in [0, 1] (...) float32, the discount inside; constant without a continue head."""
        if not self.config.use_cont:
            lead, device = states.deter.shape[:-1], states.deter.device
            return torch.full(lead, 1 - 1 / self.config.discount_horizon, device=device)
        return torch.sigmoid(self.con.on_states(states).float())


def reconstruction_loss(prediction: Tensor, target: Tensor, space: Space) -> Tensor:
    """(B, T): squared error of pixels / 255 or of symlog values, cross entropy of classes; summed over elements.

    Absent values (-inf, or class -1) have no loss.
    """
    prediction = prediction.float()
    match space.kind:
        case "image":
            return (prediction - target.float() / 255).square().flatten(2).sum(-1)
        case "vector":
            present = ~torch.isneginf(target)
            error = prediction - symlog(torch.where(present, target, 0.0))
            return (error.square() * present).flatten(2).sum(-1) if space.shape else error.square() * present
        case "discrete":
            loss = F.cross_entropy(
                prediction.flatten(0, -2), target.flatten().long(), ignore_index=-1, reduction="none"
            )
            return loss.view(*target.shape[:2], -1).sum(-1)
