"""The whole agent on native kernels against the references: losses, gradients, and the latents that it samples."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import tiny_agent
import torch
from golden_agent import flatten
from golden_arrays import FORWARD, GRADIENT, Tolerance
from kernel_cases import EDGE, edge_distance
from torch import Tensor

from fastdreamer.agent import Agent, UpdateNoise
from fastdreamer.batch import Batch, State, Window
from fastdreamer.config import LossConfig, ModelConfig
from fastdreamer.noise import Noise, Stream
from fastdreamer_kernels import _native

pytestmark = pytest.mark.skipif(_native.library is None, reason="the native library was not built")


class Update(NamedTuple):
    terms: dict[str, Tensor]
    gradients: dict[str, Tensor]
    states: State


def make_small_agent() -> Agent:
    """The smallest preset, every parameter drawn, so that no head begins at zero."""
    loss = LossConfig(horizon=15)
    agent = Agent(tiny_agent.OBS, tiny_agent.ACT, ModelConfig(size="size1m"), loss, torch.float32)
    agent.initialize(Noise(0, Stream.INIT))
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    return agent


def make_window(agent: Agent, rows: int, time: int) -> Window:
    """Random records; some begin episodes."""
    rng, dims = torch.Generator().manual_seed(2), agent.world.dyn.dims

    def classes(count: int, *shape: int) -> Tensor:
        return torch.randint(count, (rows, *shape), generator=rng, dtype=torch.int32)

    def normal(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=rng)

    flags = (torch.rand(3, rows, time, generator=rng) < 0.1).unbind()
    batch = Batch({"speed": normal(time, 3), "room": classes(4, time)}, normal(time), *flags)
    start = State(torch.tanh(normal(dims.deter)), classes(dims.classes, dims.stoch))
    return Window(batch, start, {"turn": normal(time, 2), "jump": classes(3, time, 2)})


def make_noise(agent: Agent, rows: int, time: int) -> UpdateNoise:
    streams = (Noise(0, stream) for stream in (Stream.OBSERVE, Stream.IMAGINE, Stream.ACTION))
    return agent.update_noise(*streams, batch=rows, time=time)


def update(agent: Agent, window: Window, noise: UpdateNoise) -> Update:
    output = agent.loss(window.batch, window.start, window.prev_action, noise)
    output.loss.backward()
    terms = {name: value for name, value in output.metrics.items() if "loss" in name}
    gradients = {name: parameter.grad for name, parameter in agent.official_parameters().items()}
    return Update(terms, gradients, output.states)


def assert_near(name: str, actual: Tensor, expected: Tensor, tolerance: Tolerance) -> None:
    size = expected.abs()
    limit = tolerance.relative * size + tolerance.absolute + tolerance.largest * size.max()
    assert ((actual - expected).abs() <= limit).all(), name


@pytest.fixture(params=["tiny", "size1m"])
def updates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Update, Update]]:
    """The first update on native kernels and on the references."""
    made = []
    for backend in ("native", "reference"):
        monkeypatch.setenv("FASTDREAMER_KERNELS", backend)
        if request.param == "tiny":
            agent, window, shape = (
                tiny_agent.make_agent(), tiny_agent.make_window(), (tiny_agent.ROWS, tiny_agent.TIME)
            )  # fmt: skip
        else:
            agent, shape = make_small_agent(), (4, 16)
            window = make_window(agent, *shape)
        made.append(update(agent, window, make_noise(agent, *shape)))
    yield made[0], made[1]


def test_first_update_has_the_losses_and_gradients_of_the_references(updates: tuple[Update, Update]) -> None:
    native, reference = updates
    assert torch.equal(native.states.stoch, reference.states.stoch)
    assert native.terms.keys() == reference.terms.keys() and len(native.terms) > 8
    for name, expected in reference.terms.items():
        assert_near(name, native.terms[name], expected, FORWARD)
    assert native.gradients.keys() == reference.gradients.keys()
    for name, expected in reference.gradients.items():
        assert expected is not None and expected.any(), f"{name} has no gradient to compare"
        assert_near(name, native.gradients[name], expected, GRADIENT)


def test_sampled_latents_are_those_of_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same indices; where one differs its uniform lies on an edge of the CDF, and what follows it may differ."""
    rows, time = 8, 48
    agent = make_small_agent()
    window, noise = make_window(agent, rows, time), make_noise(agent, rows, time)
    world, pol = agent.world, agent.behavior.pol
    observed, dreamed = [], []
    with torch.no_grad():
        for backend in ("reference", "native"):
            monkeypatch.setenv("FASTDREAMER_KERNELS", backend)
            states, _, posts = world.observe(
                window.batch.obs, window.start, window.prev_action, window.batch.is_first, noise.observe
            )
            observed.append((states, posts))
            root = flatten(observed[0][0])
            dream, *_ = world.dyn.imagine(
                root, pol.weights(torch.float32), pol.keys, noise.imagine, noise.action, agent.behavior.actor_unimix
            )
            dreamed.append(dream)
        priors = world.dyn.prior(dreamed[0].deter[:, 1:])
    unimix = world.dyn.unimix
    (expected, posts), (actual, _) = observed
    assert_same_samples(actual.stoch, expected.stoch, edge_distance(posts, noise.observe, unimix))
    after_root = (dream.stoch[:, 1:] for dream in dreamed)
    theirs, ours = after_root
    assert_same_samples(ours, theirs, edge_distance(priors, noise.imagine, unimix))


def assert_same_samples(actual: Tensor, expected: Tensor, distance: Tensor) -> None:
    """(rows, steps, S) each."""
    assert expected.numel() >= 10_000 and expected.unique().numel() > 1
    differ = actual != expected
    before = differ.any(-1).cumsum(1) - differ.any(-1).int()
    first = differ & (before == 0).unsqueeze(-1)
    assert (distance[first] < EDGE).all(), f"{int(first.sum())} of {expected.numel()} samples differ"
