"""The whole agent in bfloat16 against the official arrays: how far mixed precision may drift, what may not change."""

import pytest
import torch
from golden_agent import CASES, Case, dream_outputs, flatten, loss_terms
from golden_arrays import FORWARD, Arrays, Golden, Tolerance
from golden_modules import gradients
from torch import Tensor

from fastdreamer.agent import Agent, UpdateNoise
from fastdreamer.batch import State, Window
from fastdreamer.behavior import Dream

LOSS, GRADIENT_NORM = Tolerance(2e-3), Tolerance(3e-2)
DRIFT = 4
"""XLA drops a rounding to bfloat16 that is widened at once, so the official drift is smaller than torch's by itself."""
TWOHOT_DRIFT = 8
"""Means of two-hot heads cancel bins worth tens against each other: rounding of their logits shows tenfold."""
TWOHOT = ("imag:rew", "imag:val", "imag:slowval", "imag:ret", "loss_terms:policy")
TIE = 2**-7
"""Two logits closer than this, relative to the largest, are two roundings apart: either may be the likeliest."""


class HalfCase(Case):
    """The agent in bfloat16 with its first batch, and the official outputs in both precisions."""

    def __init__(self, golden: Golden, name: str) -> None:
        super().__init__(golden, name, torch.bfloat16)
        self.half: Arrays = golden.open(f"agent_{name}_bf16_outputs.npz")
        self.first: Window = self.window(0).window
        self.update_noise: UpdateNoise = self.noise(self.first)

    def compare(self, key: str, actual: Tensor, rows: Tensor | slice = slice(None)) -> None:
        """Compares these leading rows within the drift of the official code."""
        times = TWOHOT_DRIFT if key in TWOHOT else DRIFT
        tolerance = self.half.drift(key, self.outputs.read(key), times, rows)
        self.golden.compare(key, actual.float()[rows], self.half.read(key)[rows], tolerance)


def firm_rows(agent: Agent, dream: Dream) -> Tensor:
    """(N,) bool: trajectories in which no latent was a near tie; after one, rounding may choose another future."""
    logits = agent.world.dyn.prior(dream.states.deter[:, 1:]).detach().float()
    best, second = logits.topk(2).values.unbind(-1)
    firm = (best - second > TIE * logits.abs().amax(-1)).all(-1).all(-1)
    assert firm.float().mean() >= 0.5, "most trajectories must be without near ties"
    return firm


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_norm(golden: Golden, case: str) -> None:
    setup = HalfCase(golden, case)
    window = setup.first
    out = setup.agent.loss(window.batch, window.start, window.prev_action, setup.update_noise)
    out.loss.backward()
    grads = gradients(setup.agent.official_parameters()).values()
    assert {grad.dtype for grad in grads} == {torch.float32}
    setup.half.compare("loss", out.loss, LOSS)
    setup.half.compare("grad_norm", torch.stack([grad.double().norm() for grad in grads]).norm(), GRADIENT_NORM)


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_states(golden: Golden, case: str) -> None:
    setup = HalfCase(golden, case)
    world, window = setup.agent.world, setup.first
    start = State(window.start.deter.bfloat16(), window.start.stoch)
    uniform = setup.update_noise.observe
    state, latent, post = world.observe(window.batch.obs, start, window.prev_action, window.batch.is_first, uniform)
    tokens = world.enc(window.batch.obs, torch.bfloat16)
    assert tokens.dtype == state.deter.dtype == latent.dtype == torch.bfloat16
    setup.half.compare("feat:stoch", latent.view_as(post).float(), FORWARD)
    for key, value in {"tokens": tokens, "feat:deter": state.deter, "feat:logit": post}.items():
        setup.compare(key, value)


@pytest.mark.parametrize("case", CASES)
def test_dream_and_loss_terms(golden: Golden, case: str) -> None:
    setup = HalfCase(golden, case)
    agent, window, noise = setup.agent, setup.first, setup.update_noise
    terms, returns = loss_terms(agent, window, noise)
    states = agent.loss(window.batch, window.start, window.prev_action, noise).states
    dream = agent.dream(flatten(states), noise)
    firm = firm_rows(agent, dream)
    outputs = dream_outputs(agent, dream) | {"ret": returns}
    assert sorted(outputs) == sorted(setup.half.keys("imag:"))
    for key, value in outputs.items():
        setup.compare(f"imag:{key}", value, firm)
    assert sorted(terms) == sorted(setup.half.keys("loss_terms:"))
    for key, term in terms.items():
        rooted = firm.view(term.shape) if key in ("policy", "value") else slice(None)
        setup.compare(f"loss_terms:{key}", term, rooted)
