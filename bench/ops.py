"""One maker of benchmark cases per op, at the shapes of a whole update of 16 x 64 steps and horizon 15."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bench.workload import ACT, OBS
from fastdreamer.agent import Agent
from fastdreamer.config import LossConfig, ModelConfig, Size
from fastdreamer.dists import BINS, twohot_bins
from fastdreamer.noise import Noise, Stream
from fastdreamer_kernels import (
    block_gru,
    imagine_sequence,
    lambda_return,
    laprop_agc,
    mlp,
    norm_act,
    observe_sequence,
    philox,
    replay_gather,
    twohot_loss,
    twohot_mean,
    unimix_kl,
    unimix_sample,
)

B, T, H = 16, 64, 15
Run = Callable[[str], object]


class Case(NamedTuple):
    """One op at one size."""

    op: str
    shape: str
    run: Run
    """backend -> one call, forward and backward where the update differentiates it."""
    bytes: int
    """Read or written at least once: tensors in, tensors out."""
    flops: int
    """Of its matmuls, forward and backward; 0 where it has none."""


def make_agent(size: Size, device: torch.device) -> Agent:
    """An agent with fresh parameters, float32."""
    agent = Agent(OBS["vector"], ACT, ModelConfig(size=size), LossConfig(), torch.float32)
    agent.initialize(Noise(0, Stream.INIT))
    return agent.to(device)


def cases(size: Size, device: torch.device) -> Iterator[Case]:
    """Every op for a model of this size."""
    agent = make_agent(size, device)
    dims, dtype = ModelConfig(size=size).dims(), torch.float32
    rows, states = B * T, B * T * (H + 1)
    rng = torch.Generator(device=device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device=device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng, device=device)

    def classes(*shape: int) -> Tensor:
        return (uniform(*shape) * dims.classes).int()

    groups, latent, width = dims.stoch, dims.stoch * dims.classes, dims.deter
    core, prior = agent.world.dyn.core(dtype), agent.world.dyn.head("prior", 2, dtype)
    posterior, policy = agent.world.dyn.head("obs", 1, dtype), agent.behavior.pol.weights(dtype)
    keys, units = agent.behavior.pol.keys, dims.units

    # per row: the core's matmuls; prior, posterior and policy as they stand in the two loops
    own = width * (4 * width // dims.blocks) + 3 * dims.hidden * width
    core_flops = 2 * (width * dims.hidden + latent * dims.hidden + 6 * dims.hidden + own)
    prior_flops = 2 * (width * dims.hidden + dims.hidden**2 + dims.hidden * latent)
    posterior_flops = 2 * ((width + units) * dims.hidden + dims.hidden * latent)
    policy_flops = 2 * ((width + latent) * units + 2 * units**2 + 12 * units)
    critic_flops = 2 * ((width + latent) * units + 2 * units**2 + BINS * units)

    hidden, deter = normal(rows, width).requires_grad_(), normal(rows, width).requires_grad_()
    ones = torch.ones(rows, width, device=device)

    def gru(backend: str) -> None:
        out = block_gru(hidden, core.hidden.scale, *core.gru, deter, backend=backend)
        torch.autograd.grad(out, [hidden, deter, core.hidden.scale, *core.gru], ones, retain_graph=False)

    gru_flops = 3 * 2 * rows * 3 * width * width // dims.blocks
    yield Case("block_gru", f"{rows}x{width}", gru, 4 * rows * width * 9, gru_flops)

    logits, uniforms = normal(rows, groups, dims.classes).requires_grad_(), uniform(rows, groups)
    weight = torch.ones_like(logits)

    def sample(backend: str) -> None:
        torch.autograd.grad(unimix_sample(logits, uniforms, 0.01, backend=backend).onehot, logits, weight)

    yield Case("unimix_sample", f"{rows}x{groups}x{dims.classes}", sample, 4 * rows * latent * 4, 0)

    other = normal(rows, groups, dims.classes).requires_grad_()

    def kl(backend: str) -> None:
        dyn, rep, _, _ = unimix_kl(logits, other, 0.01, 1.0, backend=backend)
        torch.autograd.grad(dyn.sum() + 0.1 * rep.sum(), [logits, other])

    yield Case("unimix_kl", f"{rows}x{groups}x{dims.classes}", kl, 4 * rows * latent * 6, 0)

    returns = [uniform(rows, H + 1) for _ in range(4)]
    yield Case(
        "lambda_return", f"{rows}x{H + 1}", lambda backend: lambda_return(*returns, backend=backend),
        4 * rows * (5 * H + 4), 0,
    )  # fmt: skip

    start = normal(B, width), classes(B, groups)
    embed = normal(B, T, units).requires_grad_()
    inputs = normal(B, T, 6), uniform(B, T) < 0.02, uniform(B, T, groups)
    trained = [*(x for part in (core, *posterior.layers) for x in _tensors(part)), *posterior.logit, embed]
    grads = [normal(B, T, width), normal(B, T, groups, dims.classes), normal(B, T, groups, dims.classes)]

    def observe(backend: str) -> None:
        deters, _, onehots, post = observe_sequence(core, posterior, *start, embed, *inputs, 0.01, backend=backend)
        torch.autograd.grad([deters, onehots, post], trained, grads)

    weights = sum(x.numel() for x in trained)
    observe_flops = 3 * rows * (core_flops + posterior_flops)
    yield Case(
        "observe_sequence", f"{B}x{T}x{width}", observe, 4 * (2 * weights + rows * (10 * width + 4 * latent)),
        observe_flops,
    )  # fmt: skip

    roots = normal(rows, width), classes(rows, groups)
    noise = uniform(rows, H, groups), normal(rows, H + 1, 6)
    yield Case(
        "imagine_sequence", f"{rows}x{H}x{width}",
        lambda backend: imagine_sequence(core, prior, policy, keys, *roots, *noise, 0.01, 0.0, backend=backend),
        4 * states * (width + 2 * groups + 12), rows * (H * (core_flops + prior_flops) + (H + 1) * policy_flops),
    )  # fmt: skip

    val = agent.behavior.val
    critic = val.mlp.weights(dtype), val.head["logits"].weights(dtype)
    imagined = normal(states, width), classes(states, groups)
    critic_weights = _tensors(critic)
    out_grad = normal(states, BINS)

    def value(backend: str) -> None:
        torch.autograd.grad(mlp(*critic, *imagined, backend=backend), critic_weights, out_grad)

    mlp_flops = states * (3 * critic_flops - 2 * (width + latent) * units)
    yield Case("mlp", f"{states}x{width + latent}", value, 4 * states * (2 * width + 2 * BINS), mlp_flops)

    before, scale = normal(states, units).requires_grad_(), torch.ones(units, device=device, requires_grad=True)
    weighting = normal(states, units)

    def norm(backend: str) -> None:
        torch.autograd.grad(norm_act(before, scale, backend=backend), [before, scale], weighting)

    yield Case("norm_act", f"{states}x{units}", norm, 4 * states * units * 5, 0)

    bins = twohot_bins(device)
    values, targets = normal(states, BINS).requires_grad_(), (normal(states), normal(states))
    yield Case(
        "twohot_mean", f"{states}x{BINS}", lambda backend: twohot_mean(values, bins, backend=backend),
        4 * states * (BINS + 1), 0,
    )  # fmt: skip

    def loss(backend: str) -> None:
        torch.autograd.grad(twohot_loss(values, bins, *targets, backend=backend).sum(), values)

    yield Case("twohot_loss", f"{states}x{BINS}", loss, 4 * states * 3 * BINS, 0)

    ring = torch.zeros(16, 4 * T, 64 * 64 * 3, dtype=torch.uint8, device=device)
    window = ring.new_empty(B, T, 64 * 64 * 3)
    env, begin = torch.arange(B, device=device), 3 * torch.arange(B, device=device)
    yield Case(
        "replay_gather", f"{B}x{T}x12288", lambda backend: replay_gather(ring, env, begin, T, window, backend=backend),
        2 * window.numel(), 0,
    )  # fmt: skip

    count, counter = rows * H * groups, torch.zeros((), dtype=torch.int64, device=device)
    yield Case(
        "philox", f"{count}", lambda backend: philox("uniform", (0, 3 << 16), counter, count, backend=backend),
        4 * count, 0,
    )  # fmt: skip

    params = [p.detach() for p in agent.official_parameters().values()]
    moments = [[torch.zeros_like(p) for p in params] for _ in range(2)]
    gradients = [1e-3 * torch.randn(p.shape, generator=rng, device=device) for p in params]
    scalars = torch.ones((), device=device), torch.zeros((), device=device)
    size_of = sum(p.numel() for p in params)
    yield Case(
        "laprop_agc", f"{size_of}",
        lambda backend: laprop_agc(params, gradients, *moments, [], [], [], *scalars, 0.3, backend=backend),
        4 * size_of * 7, 0,
    )  # fmt: skip


def _tensors(part: object) -> list[Tensor]:
    if isinstance(part, Tensor):
        return [part]
    assert isinstance(part, tuple)
    return [x for each in part for x in _tensors(each)]
