"""The whole agent on one batch against the official arrays: window, losses, dream, gradients, what is written back."""

import pytest
import torch
from golden_agent import CASES, STEP_ID, Case, dream_outputs, flatten, loss_terms
from golden_arrays import FORWARD, GRADIENT, Golden
from golden_modules import gradients

from fastdreamer.nets import onehot


@pytest.mark.parametrize("case", CASES)
def test_window_of_a_batch(golden: Golden, case: str) -> None:
    """The first record only gives the start state and the first previous action."""
    setup = Case(golden, case)
    window, outputs = setup.window(0).window, setup.outputs
    outputs.compare_group("prevact:", window.prev_action, FORWARD)
    outputs.compare("reset", window.batch.is_first, FORWARD)
    outputs.compare("carry_in:dyn/deter", window.start.deter, FORWARD)
    stoch = onehot(window.start.stoch, setup.agent.world.dyn.dims.classes)
    outputs.compare("carry_in:dyn/stoch", stoch, FORWARD)
    outputs.compare(f"replay_update:{STEP_ID}", window.batch.obs[STEP_ID].to(torch.uint8), FORWARD)


@pytest.mark.parametrize("case", CASES)
def test_loss_terms_and_what_each_of_them_reaches(golden: Golden, case: str) -> None:
    setup = Case(golden, case)
    window = setup.window(0).window
    terms, _ = loss_terms(setup.agent, window, setup.noise(window))
    setup.outputs.compare_group("loss_terms:", terms, FORWARD)
    groups = setup.outputs.read_names("reach_groups")
    parameters = setup.agent.official_parameters()
    for name, term in terms.items():
        setup.agent.zero_grad()
        term.mean().backward(retain_graph=True)
        grads = gradients(parameters)
        of_group = ([grad for key, grad in grads.items() if key.startswith(f"{group}/")] for group in groups)
        reach = torch.stack([torch.stack([grad.norm() for grad in part]).norm() for part in of_group])
        setup.outputs.compare(f"reach:{name}", reach, GRADIENT)
        assert ((reach > 0) == (setup.outputs.read(f"reach:{name}") > 0)).all(), name


@pytest.mark.parametrize("case", CASES)
def test_total_loss_and_all_gradients(golden: Golden, case: str) -> None:
    setup = Case(golden, case)
    window = setup.window(0).window
    out = setup.agent.loss(window.batch, window.start, window.prev_action, setup.noise(window))
    out.loss.backward()
    setup.outputs.compare("loss", out.loss, FORWARD)
    setup.outputs.compare_group("grad:", gradients(setup.agent.official_parameters()), GRADIENT)


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_states(golden: Golden, case: str) -> None:
    setup = Case(golden, case)
    world, window = setup.agent.world, setup.window(0).window
    batch, noise = window.batch, setup.noise(window)
    state, latent, post = world.observe(batch.obs, window.start, window.prev_action, batch.is_first, noise.observe)
    setup.outputs.compare("tokens", world.enc(batch.obs, torch.float32), FORWARD)
    feat = {"deter": state.deter, "stoch": latent.view_as(post), "logit": post}
    setup.outputs.compare_group("feat:", feat, FORWARD)


@pytest.mark.parametrize("case", CASES)
def test_dream(golden: Golden, case: str) -> None:
    setup = Case(golden, case)
    agent, window = setup.agent, setup.window(0).window
    noise = setup.noise(window)
    states = agent.loss(window.batch, window.start, window.prev_action, noise).states
    dream = agent.dream(flatten(states), noise)
    constants = (*dream.states, dream.action, dream.reward, dream.cont, *(dream.kept or ()))
    assert not any(value.requires_grad for value in constants)
    returns = loss_terms(agent, window, noise)[1]
    setup.outputs.compare_group("imag:", dream_outputs(agent, dream) | {"ret": returns}, FORWARD)


@pytest.mark.parametrize("case", CASES)
def test_fresh_states_replace_the_trained_records(golden: Golden, case: str) -> None:
    setup = Case(golden, case)
    replay, window = setup.window(0)
    states = setup.agent.loss(window.batch, window.start, window.prev_action, setup.noise(window)).states
    replay.write_back(*states)
    deter, stoch = (replay.latents[key][:, : replay.length] for key in ("deter", "stoch"))
    latent = onehot(stoch.int(), setup.agent.world.dyn.dims.classes)
    setup.outputs.compare("replay_update:dyn/deter", deter[:, 1:], FORWARD)
    setup.outputs.compare("replay_update:dyn/stoch", latent[:, 1:], FORWARD)
    setup.outputs.compare("carry_in:dyn/deter", deter[:, 0], FORWARD)
    setup.outputs.compare("carry_in:dyn/stoch", latent[:, 0], FORWARD)
