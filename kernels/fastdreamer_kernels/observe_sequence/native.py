"""`observe_sequence` and its backward on the native library: float32 on the CPU."""

import torch
from torch import Tensor

from fastdreamer_kernels import _native


def observe_sequence(
    core: list[Tensor], posterior: list[Tensor], deter: Tensor, stoch: Tensor, embed: Tensor, action: Tensor,
    is_first: Tensor, uniform: Tensor, unimix: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    rows, time = embed.shape[:2]
    groups, classes = stoch.shape[1], posterior[-1].numel() // stoch.shape[1]
    sizes, widths = _sizes(core, posterior, stoch, embed, action), _native.widths(posterior)
    saved = saved_like(core, posterior, rows, time)
    deters, stochs = deter.new_empty(rows, time, deter.shape[1]), stoch.new_empty(rows, time, groups)
    onehots, logits = (deter.new_empty(rows, time, groups, classes) for _ in range(2))
    _native.call(
        "observe_sequence", sizes, core, posterior, widths, deter, stoch, embed, action, is_first, uniform, unimix,
        deters, stochs, onehots, logits, *saved,
    )  # fmt: skip
    return deters, stochs, onehots, logits, saved


def saved_like(core: list[Tensor], posterior: list[Tensor], rows: int, time: int) -> list[Tensor]:
    """What the forward pass keeps: per record its state, its action, and every layer before its norm or gates."""
    (width, hidden), action = core[0].shape, core[6].shape[0]
    record = 5 * width + 3 * hidden + action + sum(bias.numel() for bias in posterior[1:-2:3])
    return [core[0].new_empty(rows * time * record)]


def observe_sequence_backward(
    deter_grad: Tensor, onehot_grad: Tensor, logit_grad: Tensor, core: list[Tensor], posterior: list[Tensor],
    stoch: Tensor, embed: Tensor, action: Tensor, is_first: Tensor, deters: Tensor, stochs: Tensor, logits: Tensor,
    saved: list[Tensor], unimix: float,
) -> tuple[list[Tensor], list[Tensor], Tensor]:  # fmt: skip
    grads = [[torch.empty_like(weight) for weight in weights] for weights in (core, posterior)]
    embed_grad = torch.empty_like(embed)
    _native.call(
        "observe_sequence_backward", _sizes(core, posterior, stoch, embed, action), core, posterior,
        _native.widths(posterior), deter_grad, onehot_grad, logit_grad, stoch, embed, is_first, deters, stochs, logits,
        *saved, unimix, *grads, embed_grad,
    )  # fmt: skip
    return grads[0], grads[1], embed_grad


def _sizes(core: list[Tensor], posterior: list[Tensor], stoch: Tensor, embed: Tensor, action: Tensor) -> list[int]:
    (rows, groups), (_, time, tokens) = stoch.shape, embed.shape
    width, hidden = core[0].shape
    layers, classes = (len(posterior) - 2) // 3, posterior[-1].numel() // groups
    return [rows, time, width, core[9].shape[0], hidden, groups, classes, action.shape[2], tokens, layers]
