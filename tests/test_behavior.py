"""Actors with several action keys: what the official arrays, which have one key each, leave open."""

import torch
from tiny_agent import ROWS, TIME, make_agent
from torch import Tensor

from fastdreamer.batch import State
from fastdreamer.behavior import Dream
from fastdreamer.dists import action_log_prob_entropy
from fastdreamer_kernels.policy import policy_outputs, sample_action

STEPS = 5


def policy_loss(entropies: list[Tensor]) -> Tensor:
    """The policy loss of a random dream, from a normaliser that has seen nothing."""
    rng = torch.Generator().manual_seed(0)
    reward, cont, slow, log_prob = torch.rand(4, ROWS, STEPS, generator=rng)
    nothing = torch.zeros(ROWS, STEPS, 1)
    dream = Dream(State(nothing, nothing.int()), nothing, reward, cont)
    logits = torch.randn(ROWS, STEPS, 255, generator=rng)
    return make_agent().behavior.actor_critic_losses(dream, log_prob, entropies, logits, slow)[0]["policy"]


def test_the_entropies_of_all_keys_count() -> None:
    rng = torch.Generator().manual_seed(1)
    one, two = 1e4 * torch.rand(2, ROWS, STEPS, generator=rng)
    torch.testing.assert_close(policy_loss([one, two]), policy_loss([one + two]))
    assert (policy_loss([one, two]) - policy_loss([one])).abs().max() > 0.1


def test_the_log_probs_of_all_keys_are_summed() -> None:
    """jump: two numbers of three classes; turn: two numbers of a bounded normal."""
    agent, rng = make_agent(), torch.Generator().manual_seed(2)
    pol = agent.behavior.pol
    with torch.no_grad():
        outputs = policy_outputs(
            torch.randn(ROWS, TIME, agent.world.dyn.width, generator=rng), pol.weights(torch.float32)
        )
        action = sample_action(outputs, pol.keys, torch.rand(ROWS, TIME, 4, generator=rng), 0.0)
        log_prob, entropies = action_log_prob_entropy(outputs, pol.keys, action, 0.0)
    classes = torch.distributions.Categorical(logits=outputs[0][0].unflatten(-1, (2, 3)))
    mean, stddev = outputs[1]
    normal = torch.distributions.Normal(torch.tanh(mean), 0.9 * torch.sigmoid(stddev + 2) + 0.1)
    jump = pol.split(action)["jump"]
    torch.testing.assert_close(log_prob, classes.log_prob(jump).sum(-1) + normal.log_prob(action[..., 6:]).sum(-1))
    torch.testing.assert_close(entropies, [classes.entropy().sum(-1), normal.entropy().sum(-1)])
