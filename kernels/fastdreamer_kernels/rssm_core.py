"""The recurrent core of the world model and its two categorical heads, in plain PyTorch. Source: SPEC 2.3.

Shared by the references of `observe_sequence` and `imagine_sequence`; weights come in as named tuples of tensors.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdreamer_kernels.block_gru import reference as block_gru
from fastdreamer_kernels.functional import Layer, Projection, block_linear, layer, linear


class Core(NamedTuple):
    """Weights of the deterministic update: (deter, stoch, action) -> deter."""

    deter: Layer  # dynin0 (D, M)
    stoch: Layer  # dynin1 (S*K, M)
    action: Layer  # dynin2 (A, M)
    hidden: Layer  # dynhid0 (G, D/G + 3M, D/G)
    gru: Projection  # dyngru (G, D/G, 3D/G)


class Head(NamedTuple):
    """Weights of a stack of layers and its logits: the prior, the posterior, the policy's trunk."""

    layers: tuple[Layer, ...]
    logit: Projection


def check_widths(op: str, core: Core, head: Head, deter: Tensor, stoch: Tensor, extra: int) -> None:
    """Raises ValueError where states (..., D) and (..., S), or `extra` values beside deter, do not fit the weights."""
    width, latent = core.deter.kernel.shape[0], core.stoch.kernel.shape[0]
    first, logits = head.layers[0].kernel.shape[0], head.logit.bias.numel()
    fits = deter.shape[-1] == width and latent % stoch.shape[-1] == 0 and logits == latent and first == width + extra
    if not fits:
        got = f"{tuple(deter.shape)}, {tuple(stoch.shape)} and {extra} more values"
        raise ValueError(
            f"{op}: weights are for deter {width}, {latent} latent classes, {first} inputs and {logits} logits of the"
            f" head, got {got}"
        )


def embed_action(action: Tensor, weights: Layer) -> Tensor:
    """(..., A) -> (..., M); magnitudes beyond 1 are scaled back to 1, the scale taken as a constant."""
    return layer(action / action.detach().abs().clamp(min=1), weights)


def split_hidden(core: Core) -> tuple[Tensor, Tensor]:
    """dynhid0's kernel as the part that meets its own block of deter (G, D/G, D/G) and the shared part (3M, D).

    Every block sees the same embeddings, so their part is one dense matmul instead of G repeated inputs.
    """
    width = core.hidden.kernel.shape[2]
    return core.hidden.kernel[:, :width], core.hidden.kernel[:, width:].transpose(0, 1).flatten(1)


def step(core: Core, own: Tensor, shared: Tensor, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
    """The next deter (B, D) from deter (B, D), one-hot stoch (B, S*K) and the embedded action (B, M)."""
    embeds = torch.cat([layer(deter, core.deter), layer(stoch, core.stoch), action], -1)
    hidden = block_linear(deter, own) + linear(embeds, shared, core.hidden.bias)
    return block_gru.block_gru(hidden, core.hidden.scale, core.gru.kernel, core.gru.bias, deter)
