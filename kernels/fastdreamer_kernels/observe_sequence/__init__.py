"""`observe_sequence`: the posterior scan, deter_t = core(deter, stoch, a_{t-1}) and stoch_t ~ post(deter_t, embed_t).

Where is_first, the state and the previous action are zero before the step. Sampling is inside, so the uniforms are
an argument; gradients flow through time by the straight-through one-hot.
"""

from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.observe_sequence import reference
from fastdreamer_kernels.rssm_core import Core, Head

_dispatch.define("observe_sequence", reference=reference.observe_sequence)


def observe_sequence(
    core: Core, posterior: Head, deter: Tensor, stoch: Tensor, embed: Tensor, action: Tensor, is_first: Tensor,
    uniform: Tensor, unimix: float, backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """deter (B, T, D), stoch (B, T, S) int32, its differentiable one-hot (B, T, S, K), posterior logits (B, T, S, K).

    Start state deter (B, D) and stoch (B, S) int32, without gradient; embed (B, T, E); action (B, T, A): the flat
    action before each step; is_first (B, T) bool; uniform (B, T, S) float32 in [0, 1); unimix in [0, 1].
    Differentiable in the weights and embed. Raises ValueError if the shapes do not fit. Source: SPEC 1.4.
    """
    rows, time = embed.shape[:2]
    got = (tuple(deter.shape[:1]), tuple(action.shape[:2]), tuple(is_first.shape), tuple(uniform.shape))
    expected = ((rows,), (rows, time), (rows, time), (rows, time, stoch.shape[1]))
    if got != expected:
        raise ValueError(f"observe_sequence: deter, action, is_first, uniform must lead with {expected}, got {got}")
    run = _dispatch.implementation("observe_sequence", reference.observe_sequence, backend)
    return run(core, posterior, deter, stoch, embed, action, is_first, uniform, unimix)
