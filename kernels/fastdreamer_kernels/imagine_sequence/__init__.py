"""`imagine_sequence`: H steps inside the world model with the policy in the loop, a_h ~ policy, state ~ prior.

No gradient flows: the actor learns by REINFORCE and every imagined feature is a constant of the losses.
"""

from typing import Any

import torch
from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.functional import flatten
from fastdreamer_kernels.imagine_sequence import reference
from fastdreamer_kernels.mlp import Kept
from fastdreamer_kernels.policy import ActionKey, Policy
from fastdreamer_kernels.rssm_core import Core, Head, check_widths

_dispatch.define("imagine_sequence", "native", "triton")
MOST_KEYS = 32  # native.cpp


@torch.no_grad()
def imagine_sequence(
    core: Core, prior: Head, policy: Policy, keys: tuple[ActionKey, ...], deter: Tensor, stoch: Tensor,
    uniform: Tensor, action_noise: Tensor, unimix: float, actor_unimix: float, backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Kept | None]:  # fmt: skip
    """deter (N, H+1, D), stoch (N, H+1, S) int32 and flat actions (N, H+1, A) float32, the root state included.

    And what the policy left at those N * (H+1) states for `mlp` of its trunk and its outputs side by side, where the
    backend keeps that: the native one does.

    Start deter (N, D) and stoch (N, S) int32; uniform (N, H, S) in [0, 1); action_noise (N, H+1, elements): uniforms
    for discrete elements, standard normals for continuous ones; unimix, actor_unimix in [0, 1]. The last action is
    sampled at the last state. Raises ValueError if the shapes or dtypes do not fit. Source: SPEC 1.5.
    """
    rows, horizon = uniform.shape[:2]
    got = (tuple(deter.shape[:1]), tuple(stoch.shape), tuple(action_noise.shape))
    expected = ((rows,), (rows, uniform.shape[2]), (rows, horizon + 1, sum(key.elements for key in keys)))
    if got != expected:
        raise ValueError(f"imagine_sequence: deter, stoch, action_noise must be {expected}, got {got}")
    if len(keys) > MOST_KEYS:
        raise ValueError(f"imagine_sequence: there must be at most {MOST_KEYS} action keys, got {len(keys)}")
    check_widths("imagine_sequence", core, prior, deter, stoch, 0)
    width, flat = deter.shape[1] + core.stoch.kernel.shape[0], sum(key.width for key in keys)
    got_widths = (policy.trunk[0].kernel.shape[0], core.action.kernel.shape[0])
    if got_widths != (width, flat):
        raise ValueError(f"imagine_sequence: policy and action must take {width} and {flat} values, got {got_widths}")
    _dispatch.check_dtypes(
        "imagine_sequence", stoch=(stoch, torch.int32), uniform=(uniform, torch.float32),
        action_noise=(action_noise, torch.float32), deter=(deter, core.deter.kernel.dtype),
    )  # fmt: skip
    chosen = _dispatch.choose("imagine_sequence", deter, backend)
    if chosen == "reference":
        return *reference.imagine_sequence(
            core, prior, policy, keys, deter, stoch, uniform, action_noise, unimix, actor_unimix
        ), None  # fmt: skip
    inputs = [x.contiguous() for x in (deter, stoch, uniform, action_noise)]
    deters, stochs, action, *kept = _dispatch.kernel("imagine_sequence", chosen)(
        flatten(core), flatten(prior), flatten(policy), len(policy.trunk), [n for key in keys for n in key], *inputs,
        unimix, actor_unimix,
    )  # fmt: skip
    return deters, stochs, action, Kept(*kept) if kept else None


def _fake(
    core: list[Tensor], prior: list[Tensor], policy: list[Tensor], trunk: int, keys: list[int], deter: Tensor,
    stoch: Tensor, uniform: Tensor, *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    rows, steps = uniform.shape[0], uniform.shape[1] + 1
    action = deter.new_empty(rows, steps, core[6].shape[0], dtype=torch.float32)
    return deter.new_empty(rows, steps, deter.shape[1]), stoch.new_empty(rows, steps, stoch.shape[1]), action


def _fake_kept(
    core: list[Tensor], prior: list[Tensor], policy: list[Tensor], trunk: int, keys: list[int], deter: Tensor,
    stoch: Tensor, uniform: Tensor, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    deters, stochs, action = _fake(core, prior, policy, trunk, keys, deter, stoch, uniform)
    states = deters.shape[0] * deters.shape[1]
    out = deter.new_empty(states, sum(bias.numel() for bias in policy[3 * trunk + 1 :: 2]))
    saved = deter.new_empty(states * sum(bias.numel() for bias in policy[1 : 3 * trunk : 3]))
    return deters, stochs, action, out, saved


ARGUMENTS = (
    "imagine_sequence(Tensor[] core, Tensor[] prior, Tensor[] policy, int trunk, int[] keys, Tensor deter,"
    " Tensor stoch, Tensor uniform, Tensor action_noise, float unimix, float actor_unimix)"
)
_dispatch.register("imagine_sequence", f"{ARGUMENTS} -> (Tensor, Tensor, Tensor)", _fake, backends=("triton",))
_dispatch.register(
    "imagine_sequence", f"{ARGUMENTS} -> (Tensor, Tensor, Tensor, Tensor, Tensor)", _fake_kept, backends=("native",)
)
