"""The heads on features: reward, continue, value, policy. Source: SPEC 2.6."""

from typing import Literal

import torch
from torch import Tensor, nn

from fastdreamer.batch import State
from fastdreamer.dists import BINS, normal_loss, twohot_bins
from fastdreamer.nets import MLP, Linear, Named
from fastdreamer.spaces import Spaces
from fastdreamer_kernels import mlp, twohot_loss, twohot_mean
from fastdreamer_kernels.functional import Projection
from fastdreamer_kernels.mlp import Kept
from fastdreamer_kernels.policy import ActionKey, Policy


class ScalarHead(nn.Module):
    """Predicts one number per feature: symexp two-hot (255 logits) or the mean of a unit normal; zero at the start."""

    bins: Tensor

    def __init__(self, inputs: int, units: int, layers: int, kind: Literal["twohot", "normal"]) -> None:
        super().__init__()
        self.kind = kind
        self.mlp = MLP(inputs, units, layers)
        outputs = {"logits": BINS} if kind == "twohot" else {"mean": 1}
        self.head = Named({name: Linear(units, width, outscale=0.0) for name, width in outputs.items()})
        self.register_buffer("bins", twohot_bins(torch.device("cpu")), persistent=False)

    def forward(self, feat: Tensor) -> Tensor:
        """(..., F) -> (..., 255) logits or (..., 1) mean."""
        return self.mlp(feat, output=self._output)

    def on_states(self, states: State) -> Tensor:
        """The same on states (...); on the CPU their one-hots are never formed."""
        return self.mlp(*states, output=self._output)

    @property
    def _output(self) -> Linear:
        return self.head["logits" if self.kind == "twohot" else "mean"]

    def mean(self, out: Tensor) -> Tensor:
        """Output of `forward` -> prediction (...) float32, without gradient."""
        return twohot_mean(out, self.bins) if self.kind == "twohot" else out[..., 0].detach().float()

    def loss(self, out: Tensor, *targets: Tensor) -> Tensor:
        """Negative log-likelihood of each target (...), summed over targets: (...) float32. Targets get no gradient."""
        if self.kind == "twohot":
            return twohot_loss(out, self.bins, *targets)
        return normal_loss(out, *targets)


class ContinueHead(nn.Module):
    """Predicts the logit of going on: (..., F) -> (...)."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.mlp = MLP(inputs, units, 1)
        self.head = Named({"logit": Linear(units, 1)})

    def forward(self, feat: Tensor) -> Tensor:
        return self.mlp(feat, output=self.head["logit"])[..., 0]

    def on_states(self, states: State) -> Tensor:
        """The same on states (...)."""
        return self.mlp(*states, output=self.head["logit"])[..., 0]


class PolicyHead(nn.Module):
    """The actor: per action key categorical logits, or mean and stddev of a bounded normal."""

    def __init__(self, inputs: int, units: int, spaces: Spaces) -> None:
        super().__init__()
        self.spaces = {key: spaces[key] for key in sorted(spaces)}
        self.keys = tuple(ActionKey(space.elements, space.classes) for space in self.spaces.values())
        self.mlp = MLP(inputs, units, 3)
        self.head = Named({key: self._outputs(units, shape.width, shape.classes) for key, shape in self._keyed()})

    def _keyed(self) -> list[tuple[str, ActionKey]]:
        return list(zip(self.spaces, self.keys, strict=True))

    @staticmethod
    def _outputs(units: int, width: int, classes: int) -> Named[Linear]:
        names = ("logits",) if classes else ("mean", "stddev")
        return Named({name: Linear(units, width, outscale=0.01) for name in names})

    def weights(self, dtype: torch.dtype) -> Policy:
        """Trunk and outputs in the compute dtype, keys in alphabetical order."""
        outputs: list[tuple[Projection, ...]] = []
        for key in self.spaces:
            outputs.append(tuple(out.weights(dtype) for out in self.head[key].values()))
        return Policy(self.mlp.weights(dtype), tuple(outputs))

    def on_states(self, states: State, kept: Kept | None = None) -> list[tuple[Tensor, ...]]:
        """Per key (logits,) or (mean, stddev) before their squashing, each (..., width).

        kept: what `RSSM.imagine` returned for these states."""
        trunk, outputs = self.weights(states.deter.dtype)
        flat = [out for outs in outputs for out in outs]
        joined = Projection(torch.cat([out.kernel for out in flat], 1), torch.cat([out.bias for out in flat]))
        parts = iter(mlp(trunk, joined, *states, kept).split([out.bias.numel() for out in flat], -1))
        return [tuple(next(parts) for _ in outs) for outs in outputs]

    def split(self, action: Tensor) -> dict[str, Tensor]:
        """Flat actions (..., A) -> per key (..., *shape): int32 class indices or float32 values."""
        parts = action.split([key.width for key in self.keys], -1)
        actions = {}
        for (name, space), key, part in zip(self.spaces.items(), self.keys, parts, strict=True):
            value = part.unflatten(-1, (key.elements, key.classes)).argmax(-1).int() if key.classes else part
            actions[name] = value.reshape(*action.shape[:-1], *space.shape)
        return actions
