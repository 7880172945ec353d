"""Inputs of the kernels and what float64 says about them: one maker of cases per op, and tables of ragged shapes."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from formulas import gru, mixed, normal, uniforms
from torch import Tensor

from fastdreamer_kernels import block_gru, lambda_return, laprop_agc, replay_gather, unimix_kl, unimix_sample

EDGE = 1e-6
"""How close to an edge of the CDF a uniform may fall on either side of it in float32."""

ROUNDING = 2e-7
"""What float32 loses at any size where terms near 1 nearly cancel."""


class Case(NamedTuple):
    name: str
    call: Callable[..., tuple[Tensor, ...]]
    """(backend, *inputs) -> outputs, through the public contract; nothing that it is given changes."""
    formula: Callable[..., tuple[Tensor, ...]]
    """(*inputs) -> outputs, of float64 where they are floats."""
    inputs: tuple[Tensor, ...]
    trained: tuple[int, ...] = ()
    """Which inputs have a gradient."""
    absolute: float = 0.0
    """An error that is allowed at any size, beside the one relative to the largest value."""

    @property
    def op(self) -> str:
        return self.name.partition("-")[0]


def shaped(op: str, *parts: object) -> str:
    return "-".join([op, *(str(part).replace(" ", "") for part in parts)])


def sample_formula(logits: Tensor, uniform: Tensor, unimix: float) -> tuple[Tensor, ...]:
    probs = mixed(logits, unimix)
    index = (probs.detach().cumsum(-1)[..., :-1] <= uniform.unsqueeze(-1)).sum(-1)
    onehot = F.one_hot(index, logits.shape[-1]) + probs - probs.detach()
    log_probs = probs.log()
    log_prob = log_probs.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return index.int(), onehot, log_prob, -(probs * log_probs).sum(-1)


def edge_distance(logits: Tensor, uniform: Tensor, unimix: float) -> Tensor:
    """From each uniform to the nearest edge of the CDF that another class begins at; 1 where there is no other."""
    edges = mixed(logits, unimix).cumsum(-1)[..., :-1]
    return (edges - uniform.double().unsqueeze(-1)).abs().amin(-1) if edges.shape[-1] else torch.ones(uniform.shape)


def leave_edges(logits: Tensor, uniform: Tensor, unimix: float) -> Tensor:
    """The uniforms, but in the middle of the likeliest class where they were close to an edge."""
    probs = mixed(logits, unimix)
    largest = probs.argmax(-1, keepdim=True)
    middle = (probs.cumsum(-1) - probs / 2).gather(-1, largest).squeeze(-1).float()
    return torch.where(edge_distance(logits, uniform, unimix) < 10 * EDGE, middle, uniform)


def sample_case(lead: tuple[int, ...], classes: int, unimix: float, seed: int = 0, spread: float = 2.0) -> Case:
    logits, uniform = spread * normal(seed, *lead, classes), uniforms(seed + 1, *lead)
    return Case(
        shaped("unimix_sample", lead, classes, unimix),
        lambda backend, *x: tuple(unimix_sample(*x, unimix, backend=backend)),
        lambda *x: sample_formula(*x, unimix),
        (logits, leave_edges(logits, uniform, unimix)),
        (0,),
        ROUNDING,
    )


def kl(post: Tensor, prior: Tensor, unimix: float) -> Tensor:
    p, q = mixed(post, unimix), mixed(prior, unimix)
    return (p * (p.log() - q.log())).sum((-2, -1))


def kl_formula(post: Tensor, prior: Tensor, unimix: float, free_nats: float) -> tuple[Tensor, ...]:
    dyn, rep = kl(post.detach(), prior, unimix), kl(post, prior.detach(), unimix)
    p, q = (mixed(x.detach(), unimix) for x in (post, prior))
    entropies = (-(x * x.log()).sum((-2, -1)) for x in (p, q))
    return dyn.clamp(min=free_nats), rep.clamp(min=free_nats), *entropies


def kl_case(
    lead: tuple[int, ...], groups: int, classes: int, unimix: float, free: bool = False, seed: int = 0
) -> Case:  # fmt: skip
    """free: there is a floor, and unless all rows are alike some of them are below it."""
    post, prior = normal(seed, *lead, groups, classes), normal(seed + 1, *lead, groups, classes)
    exact = kl(post, prior, unimix).flatten().sort().values
    exact = torch.cat([exact[:1] / 2, exact])
    gap = int(exact.diff().argmax())  # far from every row, since float32 would not see which side a row is on
    free_nats = float(exact[gap : gap + 2].mean()) if free else 0.0
    return Case(
        shaped("unimix_kl", lead, groups, classes, unimix, *(["free"] if free else [])),
        lambda backend, *x: unimix_kl(*x, unimix, free_nats, backend=backend),
        lambda *x: kl_formula(*x, unimix, free_nats),
        (post, prior),
        (0, 1),
        ROUNDING * groups,
    )


def return_formula(reward: Tensor, cont: Tensor, value: Tensor, lam: Tensor) -> tuple[Tensor]:
    """The definition: the return of t weighs every later step by the products of c lam."""
    steps = reward.shape[1]
    out = reward.new_zeros(reward.shape[0], steps - 1)
    for t in range(steps - 1):
        weight = torch.ones_like(reward[:, 0])
        for s in range(t + 1, steps):
            bootstrap = value[:, s] * (1.0 if s == steps - 1 else 1 - lam[:, s])
            out[:, t] += weight * (reward[:, s] + cont[:, s] * bootstrap)
            weight = weight * cont[:, s] * lam[:, s]
    return (out,)


def return_case(rows: int, steps: int, seed: int = 0) -> Case:
    inputs = normal(seed, rows, steps), uniforms(seed + 1, rows, steps), normal(seed + 2, rows, steps)
    return Case(
        shaped("lambda_return", rows, steps),
        lambda backend, *x: (lambda_return(*x, backend=backend),),
        return_formula,
        (*inputs, uniforms(seed + 3, rows, steps)),
    )


def gru_case(rows: int, width: int, blocks: int, seed: int = 0) -> Case:
    part = width // blocks
    shapes = ((rows, width), (width,), (blocks, part, 3 * part), (3 * width,), (rows, width))
    hidden, scale, kernel, bias, deter = (normal(seed + i, *shape) for i, shape in enumerate(shapes))
    return Case(
        shaped("block_gru", rows, width, blocks),
        lambda backend, *x: (block_gru(*x, backend=backend),),
        lambda *x: (gru(*x),),
        (3 * hidden, 1 + 0.2 * scale, kernel / part**0.5, bias, deter),
        (0, 1, 2, 3, 4),
        5 * ROUNDING,  # of a norm over few features hardly any gradient is left
    )


def gather_case(
    ring: tuple[int, ...], length: int, windows: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Case:  # fmt: skip
    def call(backend: str, ring: Tensor, env: Tensor, start: Tensor) -> tuple[Tensor, ...]:
        out = torch.empty((windows, length, *ring.shape[2:]), dtype=dtype, device=ring.device)
        replay_gather(ring, env, start, length, out, backend=backend)
        return (out,)

    def formula(ring: Tensor, env: Tensor, start: Tensor) -> tuple[Tensor, ...]:
        rows = ring.shape[1]
        picked = [ring[e, (s + t) % rows] for e, s in zip(env, start, strict=True) for t in range(length)]
        return (torch.stack(picked).view(windows, length, *ring.shape[2:]),)

    content = (uniforms(seed, *ring) * 256).to(torch.uint8).to(dtype)
    env = (uniforms(seed + 1, windows) * ring[0]).long()
    start = (uniforms(seed + 2, windows) * 10 * ring[1]).long()
    return Case(shaped("replay_gather", ring, length, windows, dtype), call, formula, (content, env, start))


def laprop_formula(
    count: int, slow_index: list[int], has_shadow: bool, agc: float, *x: Tensor
) -> tuple[Tensor, ...]:  # fmt: skip
    params, grads, nus, mus = (x[i * count : (i + 1) * count] for i in range(4))
    *slow, step, lr = x[4 * count :]
    new: list[tuple[Tensor, ...]] = []
    for param, grad, nu, mu in zip(params, grads, nus, mus, strict=True):
        g = grad
        if agc:
            g = grad / max(1.0, float(grad.norm() / (agc * max(1e-3, float(param.norm())))))
        nu = 0.999 * nu + 0.001 * g * g
        # The bases of the two powers are rounded to float32, as in every implementation.
        u = g / ((nu / (1 - torch.tensor(0.999).double() ** step)).sqrt() + 1e-20)
        mu = 0.9 * mu + 0.1 * u
        update = -lr * mu / (1 - torch.tensor(0.9).double() ** step)
        new.append((param + update, nu, mu, update))
    thetas, nus, mus, updates = (list(column) for column in zip(*new, strict=True))
    averages = [0.98 * old + 0.02 * thetas[i] for old, i in zip(slow, slow_index, strict=True)]
    stats = torch.stack([sum(y.square().sum() for y in ys) for ys in (grads, updates, thetas)])
    return (*thetas, *nus, *mus, *averages, *(thetas if has_shadow else []), stats)


def laprop_case(
    shapes: list[tuple[int, ...]], agc: float = 0.3, step: int = 1, slow_index: tuple[int, ...] = (),
    has_shadow: bool = False, seed: int = 0,
) -> Case:  # fmt: skip
    """Four-dimensional tensors are channels last, their gradients not. Every other gradient is small: not clipped."""
    count = len(shapes)

    def tensors(offset: int, last: bool = True) -> list[Tensor]:
        made = [normal(seed + 100 * offset + i, *shape) for i, shape in enumerate(shapes)]
        return [x.contiguous(memory_format=torch.channels_last) if last and x.ndim == 4 else x for x in made]

    def call(backend: str, *x: Tensor) -> tuple[Tensor, ...]:
        params, grads, nu, mu = ([y.clone() for y in x[i * count : (i + 1) * count]] for i in range(4))
        *rest, step, lr = x[4 * count :]
        slow = [y.clone() for y in rest]
        shadow = [torch.empty_like(param, dtype=torch.bfloat16) for param in params] if has_shadow else []
        stats = laprop_agc(params, grads, nu, mu, shadow, slow, list(slow_index), step, lr, agc, backend=backend)
        return (*params, *nu, *mu, *slow, *shadow, stats)

    params, grads, nu, mu = tensors(0), tensors(1, last=False), tensors(2), tensors(3)
    grads = [x * (1e-3 if i % 2 else 10.0) for i, x in enumerate(grads)]
    nu = [x.square() * 1e-4 if step > 1 else torch.zeros_like(x) for x in nu]
    mu = [x * 0.3 if step > 1 else torch.zeros_like(x) for x in mu]
    slow = [tensors(4)[i] for i in slow_index]
    return Case(
        shaped("laprop_agc", *shapes, agc, step, *(["shadow"] if has_shadow else []), *slow_index),
        call,
        lambda *x: laprop_formula(count, list(slow_index), has_shadow, agc, *x),
        (*params, *grads, *nu, *mu, *slow, torch.tensor(float(step)), torch.tensor(1e-2)),
    )


def ragged() -> Iterator[Case]:
    """Sizes around the widths of vectors, tiles and tasks; 1 wherever that is allowed."""
    for unimix in (0.0, 0.01, 1.0):
        yield sample_case((1, 1), 2, unimix)
        yield sample_case((3, 5), 4, unimix)
    yield sample_case((2, 1), 1, 0.01)
    yield sample_case((7, 2, 3), 17, 0.01)
    yield sample_case((2, 33), 5, 0.0)
    yield sample_case((11, 1), 64, 0.01, spread=20.0)
    for unimix in (0.0, 0.01, 1.0):
        yield kl_case((1,), 1, 2, unimix)
        yield kl_case((2, 3), 5, 3, unimix)
    yield kl_case((), 3, 4, 0.01)
    yield kl_case((2, 1), 32, 17, 0.01)
    yield kl_case((6,), 3, 8, 0.01, free=True)
    yield from (return_case(*shape) for shape in ((1, 2), (3, 7), (5, 33), (70, 16)))
    yield from (gru_case(*shape) for shape in ((1, 2, 1), (3, 12, 4), (7, 30, 5), (66, 10, 2)))
    yield gather_case((1, 1), 1, 1)
    yield gather_case((3, 7), 7, 5, torch.bool)
    yield gather_case((2, 9, 3), 4, 6, torch.uint8)
    yield gather_case((2, 9, 5, 3), 8, 4, torch.bfloat16)
    yield gather_case((2, 5, 3), 2, 3, torch.int64)
    yield gather_case((2, 6, 1100), 6, 2, torch.uint8)
    yield laprop_case([(1,)])
    yield laprop_case([(3, 5), (17,), (2, 3, 4)], agc=0.0)
    yield laprop_case([(3, 5), (17,), (4, 3, 5, 2), (1,)], step=7, slow_index=(1, 2), has_shadow=True)
    yield laprop_case([(16384 + 5,), (1024,)], step=1000, slow_index=(0,))


def large() -> Iterator[Case]:
    """Every op with work for several tasks of the pool."""
    yield sample_case((700, 31), 5, 0.01)
    yield kl_case((500,), 31, 5, 0.01, free=True)
    yield return_case(3000, 16)
    yield gru_case(600, 96, 4)
    yield gather_case((3, 50, 40_000), 17, 5, torch.uint8)
    yield laprop_case([(100_003,), (300, 70), (5,)], step=3, slow_index=(1,), has_shadow=True)


def poison(x: Tensor) -> Tensor:
    """Values that nothing may ever see."""
    if x.dtype == torch.bool:
        return x
    return x.fill_(math.nan if x.is_floating_point() else torch.iinfo(x.dtype).min)


def to_float64(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x
