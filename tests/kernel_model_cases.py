"""Cases of the ops that run parts of the model: observing, imagining, layers and outputs, two-hot values."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from formulas import Sizes, dense, logits, make_layer, make_projection, make_weights, normal, observed, symexp, uniforms
from kernel_cases import ROUNDING, Case, leave_edges, shaped, to_float64
from test_kernels_sequences import imagine, observe
from torch import Tensor
from torch.utils import _pytree as pytree

from fastdreamer_kernels import imagine_sequence, mlp, observe_sequence, twohot_loss, twohot_mean
from fastdreamer_kernels.policy import ActionKey
from fastdreamer_kernels.rssm_core import Head

Keys = tuple[ActionKey, ...]
MIXED: Keys = (ActionKey(2, 3), ActionKey(1, 0))
MANY: Keys = (ActionKey(3, 0), ActionKey(1, 17), ActionKey(2, 2), ActionKey(9, 0))
SAMPLED = 5 * ROUNDING
"""Sums over time of terms of both signs, and norms over few features."""


def make_head(seed: int, *widths: int) -> Head:
    """A stack of layers, inputs first, and its linear output."""
    layers = [make_layer(seed + 3 * i, *widths[i : i + 2]) for i in range(len(widths) - 2)]
    return Head(tuple(layers), make_projection(seed + 90, *widths[-2:]))


def settle(uniform: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    """Uniforms that `move`, which looks at the sequence that they give, leaves as they are.

    Later samples depend on earlier ones: every round gets at least one step further.
    """
    moved = move(uniform)
    while not torch.equal(moved, uniform):
        uniform, moved = moved, move(moved)
    return uniform


def observe_case(n: Sizes, layers: int = 1, unimix: float = 0.01) -> Case:
    """layers: of the posterior. Every other row is reset in the middle."""
    posterior = make_head(15, n.D + n.E, *[n.M + 3 * i for i in range(layers)], n.S * n.K)
    weights = make_weights(n)._replace(posterior=posterior)
    leaves, spec = pytree.tree_flatten((weights.core, posterior))
    inputs = observed(n)
    inputs.is_first[::2, n.T // 2] |= n.T > 1

    def formula(*x: Tensor) -> tuple[Tensor, ...]:
        core, post = pytree.tree_unflatten(list(x[: len(leaves)]), spec)
        given = inputs._make(x[len(leaves) :])
        deters, onehots, posts = observe(weights._replace(core=core, posterior=post), n, given, unimix)
        return deters, onehots.detach().argmax(-1).int(), onehots, posts

    def call(backend: str, *x: Tensor) -> tuple[Tensor, ...]:
        core, post = pytree.tree_unflatten(list(x[: len(leaves)]), spec)
        return observe_sequence(core, post, *x[len(leaves) :], unimix, backend=backend)

    def move(uniform: Tensor) -> Tensor:
        wide = [to_float64(x) for x in (*leaves, *inputs._replace(uniform=uniform))]
        return leave_edges(formula(*wide)[3], uniform, unimix)

    inputs = inputs._replace(uniform=settle(inputs.uniform, move))
    embed = len(leaves) + inputs._fields.index("embed")
    return Case(
        shaped("observe_sequence", *n, layers, unimix), call, formula, (*leaves, *inputs),
        (*range(len(leaves)), embed), SAMPLED,
    )  # fmt: skip


def imagine_case(n: Sizes, keys: Keys, unimix: float = 0.01, actor_unimix: float = 0.0, trunk: int = 2) -> Case:
    """n.T: the horizon; n.A follows from the keys."""
    n = n._replace(A=sum(key.width for key in keys))
    weights = make_weights(n, keys)
    widths = (n.D + n.S * n.K, *[n.M + 5 * i for i in range(trunk)])
    layers = make_head(30, *widths, 1).layers
    outputs = tuple(
        tuple(make_projection(200 + 10 * i + j, widths[-1], key.width) for j in range(1 if key.classes else 2))
        for i, key in enumerate(keys)
    )
    weights = weights._replace(policy=weights.policy._replace(trunk=layers, outputs=outputs))
    leaves, spec = pytree.tree_flatten((weights.core, weights.prior, weights.policy))
    noise = [
        uniforms(60 + i, n.B, n.T + 1, key.elements) if key.classes else 2 * normal(60 + i, n.B, n.T + 1, key.elements)
        for i, key in enumerate(keys)
    ]
    deter, stoch = normal(50, n.B, n.D), (uniforms(51, n.B, n.S) * n.K).int()

    def formula(*x: Tensor) -> tuple[Tensor, ...]:
        core, prior, policy = pytree.tree_unflatten(list(x[: len(leaves)]), spec)
        return imagine(
            weights._replace(core=core, prior=prior, policy=policy), keys, *x[len(leaves) :], unimix, actor_unimix
        )

    def call(backend: str, *x: Tensor) -> tuple[Tensor, ...]:
        core, prior, policy = pytree.tree_unflatten(list(x[: len(leaves)]), spec)
        given = core, prior, policy, keys, *x[len(leaves) :], unimix, actor_unimix
        return imagine_sequence(*given, backend=backend)[:3]

    def move(drawn: Tensor) -> Tensor:
        """drawn: the uniforms of the latents, then the noise, in one row."""
        uniform, action_noise = split(drawn)
        wide = [to_float64(x) for x in (*leaves, deter, stoch, uniform, action_noise)]
        deters, stochs, _ = formula(*wide)
        _, prior, policy = pytree.tree_unflatten(wide[: len(leaves)], spec)
        uniform = leave_edges(logits(deters[:, 1:], prior, n.S), uniform, unimix)
        feat = torch.cat([deters, F.one_hot(stochs.long(), n.K).flatten(-2)], -1)
        for layer in policy.trunk:
            feat = dense(feat, layer)
        parts = list(action_noise.split([key.elements for key in keys], -1))
        for i, (key, outs) in enumerate(zip(keys, policy.outputs, strict=True)):
            if key.classes:
                x = (feat @ outs[0].kernel + outs[0].bias).unflatten(-1, (key.elements, key.classes))
                parts[i] = leave_edges(x, parts[i], actor_unimix)
        return torch.cat([uniform.flatten(), torch.cat(parts, -1).flatten()])

    def split(drawn: Tensor) -> tuple[Tensor, Tensor]:
        count = n.B * n.T * n.S
        return drawn[:count].view(n.B, n.T, n.S), drawn[count:].view(n.B, n.T + 1, -1)

    drawn = torch.cat([uniforms(52, n.B * n.T * n.S), torch.cat(noise, -1).flatten()])
    return Case(
        shaped("imagine_sequence", *n, *(number for key in keys for number in key), unimix, actor_unimix, trunk),
        call, formula, (*leaves, deter, stoch, *split(settle(drawn, move))), (), SAMPLED,
    )  # fmt: skip


def mlp_case(
    lead: tuple[int, ...], width: int, groups: int, classes: int, hidden: tuple[int, ...], output: int, seed: int = 0
) -> Case:  # fmt: skip
    """groups 0: features instead of states. output 0: layers alone."""
    head = make_head(seed, width + groups * classes, *hidden, output or 1)
    leaves, spec = pytree.tree_flatten((head.layers, head.logit if output else ()))

    def split(x: tuple[Tensor, ...]) -> tuple[Any, Any, Tensor, Tensor | None]:
        layers, out = pytree.tree_unflatten(list(x[: len(leaves)]), spec)
        return layers, out or None, x[len(leaves)], x[-1] if groups else None

    def formula(*x: Tensor) -> tuple[Tensor]:
        layers, out, feat, stoch = split(x)
        if stoch is not None:
            feat = torch.cat([feat, F.one_hot(stoch.long(), classes).flatten(-2)], -1)
        for layer in layers:
            feat = dense(feat, layer)
        return (feat if out is None else feat @ out.kernel + out.bias,)

    x, stoch = normal(seed + 95, *lead, width), (uniforms(seed + 96, *lead, groups) * classes).int()
    return Case(
        shaped("mlp", lead, width, groups, classes, hidden, output),
        lambda backend, *x: (mlp(*split(x), backend=backend),), formula, (*leaves, x, *([stoch] if groups else [])),
        tuple(range(len(leaves) + 1)), SAMPLED,
    )  # fmt: skip


def make_bins(count: int, end: float) -> Tensor:
    """Symmetric about 0, from -symexp(end) to symexp(end)."""
    low = symexp(torch.linspace(-end, 0, count // 2 + 1))
    return torch.cat([low, -low[:-1].flip(0)])


def mean_case(lead: tuple[int, ...], bins: int, end: float = 20.0, seed: int = 0) -> Case:
    return Case(
        shaped("twohot_mean", lead, bins, end),
        lambda backend, *x: (twohot_mean(*x, backend=backend),),
        lambda logits, values: ((torch.softmax(logits, -1) * values).sum(-1),),
        (2 * normal(seed, *lead, bins), make_bins(bins, end)),
        (),
        ROUNDING * float(make_bins(bins, end)[-1]),
    )


def loss_formula(logits: Tensor, bins: Tensor, *targets: Tensor) -> tuple[Tensor]:
    """Cross entropies with weights that fall linearly from 1 at a bin to 0 at its neighbours."""
    log_probs, total = torch.log_softmax(logits, -1), torch.zeros(logits.shape[:-1], dtype=torch.float64)
    for target in targets:
        offset = target.clamp(bins[0], bins[-1]).unsqueeze(-1) - bins
        gap = bins.diff()
        above = 1 - offset / torch.cat([gap, gap[-1:]])
        below = 1 + offset / torch.cat([gap[:1], gap])
        total = total - (torch.where(offset >= 0, above, below).clamp(min=0) * log_probs).sum(-1)
    return (total,)


def loss_case(lead: tuple[int, ...], bins: int, targets: int = 1, end: float = 20.0, seed: int = 0) -> Case:
    """Targets between the bins, on them, and beyond both ends."""
    values = make_bins(bins, end)
    drawn = [symexp(1.2 * end * (2 * uniforms(seed + 1 + i, *lead) - 1)) for i in range(targets)]
    picked = values[(uniforms(seed + 20, *lead) * bins).long()]
    drawn[0] = torch.where(uniforms(seed + 21, *lead) < 0.3, picked, drawn[0])
    return Case(
        shaped("twohot_loss", lead, bins, targets, end),
        lambda backend, *x: (twohot_loss(*x, backend=backend),),
        loss_formula,
        (2 * normal(seed, *lead, bins), values, *drawn),
        (0,),
        ROUNDING,
    )


def ragged() -> Iterator[Case]:
    """Rows around the tiles of 6 and 12, odd widths, one and two layers of the posterior, several action keys."""
    yield observe_case(Sizes(B=1, T=1, D=2, G=1, M=3, S=1, K=2, E=1, A=4))
    yield observe_case(Sizes(B=5, T=3, D=12, G=4, M=5, S=3, K=5, E=7, A=6), layers=2)
    yield observe_case(Sizes(B=6, T=5, D=10, G=5, M=9, S=2, K=17, E=3, A=1), unimix=0.0)
    yield observe_case(Sizes(B=7, T=2, D=34, G=2, M=17, S=4, K=4, E=18, A=3), layers=3)
    yield observe_case(Sizes(B=13, T=4, D=18, G=1, M=20, S=5, K=3, E=5, A=2), layers=2, unimix=1.0)
    yield imagine_case(Sizes(B=1, T=1, D=2, G=1, M=3, S=1, K=2, E=1, A=0), MIXED[1:], trunk=1)
    yield imagine_case(Sizes(B=5, T=4, D=12, G=4, M=5, S=3, K=5, E=7, A=0), MIXED, actor_unimix=0.1)
    yield imagine_case(Sizes(B=7, T=3, D=10, G=5, M=9, S=2, K=17, E=3, A=0), MANY, unimix=0.0)
    yield imagine_case(Sizes(B=13, T=2, D=34, G=2, M=17, S=4, K=4, E=1, A=0), MIXED[:1], trunk=3)
    yield mlp_case((1,), 1, 1, 2, (2,), 1)
    yield mlp_case((2, 3), 5, 3, 4, (7, 9), 3)
    yield mlp_case((13,), 33, 5, 3, (17, 8, 35), 18)
    yield mlp_case((49,), 8, 2, 7, (34,), 2)
    yield mlp_case((5, 2), 7, 0, 0, (9, 4), 0)
    yield mlp_case((50,), 19, 0, 0, (33,), 5)
    yield mlp_case((3,), 6, 2, 3, (5, 8), 0)
    yield mean_case((1,), 3, end=1.0)
    yield mean_case((3, 5), 9)
    yield mean_case((7,), 41, end=5.0)
    yield mean_case((2, 1, 3), 255)
    yield loss_case((1,), 3, end=1.0)
    yield loss_case((3, 5), 9, targets=2)
    yield loss_case((40,), 41, targets=3, end=5.0)
    yield loss_case((2, 1, 3), 255)


def large() -> Iterator[Case]:
    """Several tasks each, more inner steps than one pass of a matmul, more rows than one pass of a gradient."""
    yield observe_case(Sizes(B=70, T=4, D=24, G=2, M=140, S=5, K=60, E=7, A=4), layers=2)
    yield imagine_case(Sizes(B=100, T=3, D=26, G=2, M=140, S=5, K=10, E=1, A=0), MANY)
    yield mlp_case((300, 2), 400, 5, 4, (70, 33), 300)
    yield mlp_case((150, 4), 420, 0, 0, (70, 33), 0)
    yield mean_case((700,), 255)
    yield loss_case((700,), 255, targets=2)
