"""The rollout inside the world model in Triton: the policy's launches, three for the core, three for the prior.

A pure function of tensors. `core` is rssm_core.Core in order, `prior` and the policy's trunk are [kernel, bias, scale]
per layer; then the prior's logits' [kernel, bias], and per action key its outputs' [kernel, bias].
"""

import torch
from torch import Tensor

from fastdreamer_kernels import _chain_forward as forward
from fastdreamer_kernels._chain import Rows


def imagine_sequence(
    core: list[Tensor], prior: list[Tensor], policy: list[Tensor], trunk: int, keys: list[int], deter: Tensor,
    stoch: Tensor, uniform: Tensor, action_noise: Tensor, unimix: float, actor_unimix: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """deters (N, H+1, D), stochs (N, H+1, S) and flat actions (N, H+1, A) float32, the root state included.

    trunk: layers of the policy before its outputs; keys: elements and classes (0: continuous) of each key in turn.
    """
    core, prior, policy = ([x.contiguous() for x in weights] for weights in (core, prior, policy))
    uniform, action_noise = uniform.contiguous(), action_noise.contiguous()
    rows, horizon, groups = uniform.shape
    classes = prior[-1].numel() // groups
    actions = torch.empty((rows, horizon + 1, core[6].shape[0]), dtype=torch.float32, device=deter.device)
    deters = torch.empty((rows, horizon + 1, deter.shape[1]), dtype=deter.dtype, device=deter.device)
    stochs = torch.empty((rows, horizon + 1, groups), dtype=torch.int32, device=deter.device)
    deters[:, 0], stochs[:, 0] = deter, stoch

    chain = forward.CoreChain(core, rows, parts=3)
    embeds, hidden = Rows(chain.embeds(rows), chain.embed_sums()), Rows(chain.hidden(rows), chain.hidden_sums())
    keep = torch.ones(rows, dtype=torch.int32, device=deter.device)  # no episode begins in a dream
    thoughts, layers = _rooms(policy[: 3 * trunk : 3], rows), _rooms(prior[:-2:3], rows)
    for h in range(horizon + 1):
        state, latent = deters[:, h], stochs[:, h]
        forward.linear(state, policy[0], policy[1], thoughts[0], stoch=latent, classes=classes)
        _deepen(thoughts, policy)
        _act(
            thoughts[-1], policy[3 * trunk - 1 :], keys, action_noise[:, h], actor_unimix, actions[:, h]
        )  # fmt: skip
        if h < horizon:
            chain.step(
                state, latent, actions[:, h], keep, core[10], classes, embeds, hidden, None, deters[:, h + 1]
            )  # fmt: skip
            forward.linear(deters[:, h + 1], prior[0], prior[1], layers[0])
            _deepen(layers, prior)
            forward.sample(
                layers[-1], prior[-3], prior[-2], prior[-1], uniform[:, h], unimix, None, stochs[:, h + 1], None
            )
    return deters, stochs, actions


def _rooms(kernels: list[Tensor], rows: int) -> list[Rows]:
    return [
        Rows(
            torch.empty((rows, kernel.shape[1]), dtype=kernel.dtype, device=kernel.device),
            forward.layer_sums(kernel, rows),
        )
        for kernel in kernels
    ]


def _deepen(layers: list[Rows], weights: list[Tensor]) -> None:
    """Every layer after the first, each from the one below it."""
    for i in range(1, len(layers)):
        forward.linear(layers[i - 1], weights[3 * i], weights[3 * i + 1], layers[i], weights[3 * i - 1])


def _act(layer: Rows, weights: list[Tensor], keys: list[int], noise: Tensor, unimix: float, out: Tensor) -> None:
    """Samples the flat action (N, A) key by key; weights: the layer's scale, then the outputs' kernels and biases."""
    scale, *outputs = weights
    begin, column = 0, 0
    for elements, classes in zip(keys[::2], keys[1::2], strict=True):
        part = noise[:, begin : begin + elements]
        to = out[:, column : column + elements * max(1, classes)]
        if classes:
            kernel, bias, *outputs = outputs
            forward.sample(layer, scale, kernel, bias, part, unimix, None, None, to)
        else:
            mean_kernel, mean_bias, std_kernel, std_bias, *outputs = outputs
            forward.sample_normal(layer, scale, (mean_kernel, mean_bias), (std_kernel, std_bias), part, to)
        begin, column = begin + elements, column + elements * max(1, classes)
