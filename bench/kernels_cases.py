"""A call of every op with Triton kernels, forward and backward, on meta tensors at the sizes of real models."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastdreamer_kernels.block_gru import cuda as block_gru
from fastdreamer_kernels.imagine_sequence import cuda as imagine_sequence
from fastdreamer_kernels.lambda_return import cuda as lambda_return
from fastdreamer_kernels.laprop_agc import cuda as laprop_agc
from fastdreamer_kernels.norm_act import cuda as norm_act
from fastdreamer_kernels.observe_sequence import cuda as observe_sequence
from fastdreamer_kernels.philox import cuda as philox
from fastdreamer_kernels.replay_gather import cuda as replay_gather
from fastdreamer_kernels.unimix_kl import cuda as unimix_kl
from fastdreamer_kernels.unimix_sample import cuda as unimix_sample


class Size(NamedTuple):
    """deter, hidden units and classes of a model size (SPEC 3.1)."""

    deter: int
    units: int
    classes: int


SIZES = {
    "size1m": Size(512, 64, 4),
    "size12m": Size(2048, 256, 16),
    "size50m": Size(4096, 512, 32),
    "size200m": Size(8192, 1024, 64),
}
BATCH, LENGTH, DREAMS, HORIZON, GROUPS, BLOCKS = 16, 2, 1024, 2, 32, 8  # short: a longer scan compiles nothing new


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def floats(*shape: int) -> Tensor:
    return tensor(*shape, dtype=torch.float32)


def whole(*shape: int) -> Tensor:
    return tensor(*shape, dtype=torch.int32)


def layer(*shape: int) -> list[Tensor]:
    """Kernel, bias, scale."""
    width = shape[-1] * (shape[0] if len(shape) == 3 else 1)
    return [tensor(*shape), tensor(width), floats(width)]


def core_weights(size: Size, actions: int) -> list[Tensor]:
    deter, units, latent, part = size.deter, size.units, GROUPS * size.classes, size.deter // BLOCKS
    inputs = [*layer(deter, units), *layer(latent, units), *layer(actions, units)]
    return [*inputs, *layer(BLOCKS, part + 3 * units, part), *layer(BLOCKS, part, 3 * part)[:2]]


def observe(size: Size) -> None:
    """Forward and backward at the sizes of training; acting launches the same kernels."""
    deter, units, classes = size
    actions, embed, latent = 6, 4 * units, GROUPS * classes
    core, posterior = core_weights(size, actions), [*layer(deter + embed, units), *layer(units, latent)[:2]]
    inputs = (
        tensor(BATCH, deter), whole(BATCH, GROUPS), tensor(BATCH, LENGTH, embed), tensor(BATCH, LENGTH, actions),
        tensor(BATCH, LENGTH, dtype=torch.bool),
    )  # fmt: skip
    deters, stochs, onehots, logits, saved = observe_sequence.observe_sequence(
        core, posterior, *inputs, floats(BATCH, LENGTH, GROUPS), 0.01
    )
    observe_sequence.observe_sequence_backward(
        deters, onehots, logits, core, posterior, *inputs[1:], deters, stochs, logits, saved, 0.01
    )


def imagine(size: Size) -> None:
    """A discrete key of 18 classes and a continuous one of 6 elements."""
    deter, units, classes = size
    latent, keys = GROUPS * classes, [1, 18, 6, 0]
    prior = [*layer(deter, units), *layer(units, units), *layer(units, latent)[:2]]
    trunk = [*layer(deter + latent, units), *layer(units, units), *layer(units, units)]
    outputs = [x for width in (18, 6, 6) for x in layer(units, width)[:2]]
    imagine_sequence.imagine_sequence(
        core_weights(size, 24), prior, [*trunk, *outputs], 3, keys, tensor(DREAMS, deter), whole(DREAMS, GROUPS),
        floats(DREAMS, HORIZON, GROUPS), floats(DREAMS, HORIZON + 1, 7), 0.01, 0.0,
    )  # fmt: skip


def gated(size: Size, rows: int) -> None:
    part, hidden = size.deter // BLOCKS, tensor(rows, size.deter)
    scale, kernel, bias = floats(size.deter), tensor(BLOCKS, part, 3 * part), tensor(3 * size.deter)
    out, gates, rstd = block_gru.block_gru(hidden, scale, kernel, bias, hidden)
    block_gru.block_gru_backward(out, hidden, scale, kernel, hidden, gates, rstd)


def sampled(size: Size) -> None:
    rows = DREAMS * GROUPS
    logits = tensor(rows, size.classes)
    for unimix in (0.0, 0.01):
        index, onehot, log_prob, entropy = unimix_sample.unimix_sample(logits, floats(rows), unimix)
        unimix_sample.unimix_sample_backward(onehot, log_prob, entropy, logits, index, unimix)


def divergence(size: Size) -> None:
    post = tensor(DREAMS, GROUPS, size.classes)
    dyn, rep, *_ = unimix_kl.unimix_kl(post, post, 0.01, 1.0)
    unimix_kl.unimix_kl_backward(dyn, rep, post, post, 0.01, 1.0)


def returns() -> None:
    """Of 1,024 dreams of 16 states, and of replay's 64 steps."""
    for rows, steps in ((1024, 16), (16, 64)):
        lambda_return.lambda_return(*(floats(rows, steps) for _ in range(4)))


def gather(size: Size) -> None:
    """A row of an image, of latents and of flags."""
    env = tensor(BATCH, dtype=torch.int64)
    for width, dtype in ((12288, torch.uint8), (size.deter, torch.bfloat16), (1, torch.bool)):
        rings = tensor(4, 4096, width, dtype=dtype), tensor(BATCH, 65, width, dtype=dtype)
        replay_gather.replay_gather(rings[0], env, env, 65, rings[1])


def norm(size: Size) -> None:
    """Of a layer, and of the pixels of the encoder's first stage."""
    for rows, width in ((DREAMS, size.units), (1024 * 32 * 32, 2 * size.units // 16)):
        x, scale = tensor(rows, width), floats(width)
        norm_act.norm_act(x, scale)
        norm_act.norm_act_backward(x, x, scale)


def draw() -> None:
    """A number for every group of every dream."""
    for kind in philox.DTYPES:
        philox.philox(kind, [1, 2], tensor(dtype=torch.int64), DREAMS * GROUPS)


def optimize(size: Size) -> None:
    shapes = ((size.deter, size.units), (size.units,))
    params, grads, nu, mu, slow = ([floats(*shape) for shape in shapes] for _ in range(5))
    shadow = [tensor(*shape) for shape in shapes]
    laprop_agc.laprop_agc(params, grads, nu, mu, shadow, slow[:1], [0], floats(), floats(), 0.3)
    laprop_agc.laprop_agc(params, grads, nu, mu, [], [], [], floats(), floats(), 0.3)


def cases(size: Size) -> list[tuple[str, Callable[[], None]]]:
    """Every op's wrappers, forward and backward, by the name its kernels are listed under."""
    return [
        ("observe_sequence", lambda: observe(size)),
        ("imagine_sequence", lambda: imagine(size)),
        (f"block_gru {BATCH}", lambda: gated(size, BATCH)),
        (f"block_gru {DREAMS}", lambda: gated(size, DREAMS)),
        ("unimix_sample", lambda: sampled(size)),
        ("unimix_kl", lambda: divergence(size)),
        ("lambda_return", returns),
        ("replay_gather", lambda: gather(size)),
        ("laprop_agc", lambda: optimize(size)),
        ("norm_act", lambda: norm(size)),
        ("philox", draw),
    ]
