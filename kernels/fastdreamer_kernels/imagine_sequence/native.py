"""`imagine_sequence` on the native library: float32 on the CPU."""

from torch import Tensor

from fastdreamer_kernels import _native


def imagine_sequence(
    core: list[Tensor], prior: list[Tensor], policy: list[Tensor], trunk: int, keys: list[int], deter: Tensor,
    stoch: Tensor, uniform: Tensor, action_noise: Tensor, unimix: float, actor_unimix: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows, horizon, groups = uniform.shape
    width, hidden, action = deter.shape[1], core[0].shape[1], core[6].shape[0]
    classes, elements = core[3].shape[0] // groups, action_noise.shape[2]
    deters = deter.new_empty(rows, horizon + 1, width)
    stochs = stoch.new_empty(rows, horizon + 1, groups)
    actions = deter.new_empty(rows, horizon + 1, action)
    prior_layers = (len(prior) - 2) // 3
    policy_widths = _native.widths(policy[: 3 * trunk])
    outputs = [elements * max(1, classes) * (1 if classes else 2) for elements, classes in _pairs(keys)]
    states = rows * (horizon + 1)
    out, saved = deter.new_empty(states, sum(outputs)), deter.new_empty(states * sum(policy_widths[1:]))
    sizes = [rows, horizon, width, core[9].shape[0], hidden, groups, classes, action]
    sizes += [prior_layers, trunk, len(keys) // 2, elements, max([*policy_widths[1:], *outputs])]
    _native.call(
        "imagine_sequence", sizes, core, prior, _native.widths(prior), policy, policy_widths, keys, deter, stoch,
        uniform, action_noise, unimix, actor_unimix, deters, stochs, actions, out, saved,
    )  # fmt: skip
    return deters, stochs, actions, out, saved


def _pairs(keys: list[int]) -> list[tuple[int, int]]:
    return list(zip(keys[0::2], keys[1::2], strict=True))
