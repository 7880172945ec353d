"""The agent as a whole: acting step by step is observing a sequence, a dream is its parts, noise is what it must be."""

import torch
from golden_uniforms import features
from tiny_agent import ACT, CLASSES, DETER, GROUPS, HORIZON, OBS, ROWS, TIME, make_agent, make_window

from fastdreamer.agent import ActNoise, Agent
from fastdreamer.batch import State
from fastdreamer.config import LossConfig, ModelConfig
from fastdreamer.nets import onehot
from fastdreamer.noise import Noise, Stream
from fastdreamer_kernels import rssm_core, unimix_sample
from fastdreamer_kernels.policy import policy_outputs, sample_action

TURN_AND_JUMP = 2 + 2
"""Elements of the two action keys, each with a noise of its own."""


def draw_noise(lead: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Uniforms of the groups, and of every element of an action: jump is sorted before turn."""
    rng = torch.Generator().manual_seed(seed)
    jump, turn = torch.rand(*lead, 2, generator=rng), torch.randn(*lead, 2, generator=rng)
    return torch.rand(*lead, GROUPS, generator=rng), torch.cat([jump, turn], -1)


def test_acting_step_by_step_is_observing_the_sequence() -> None:
    """The carry holds the last state and action, a first record forgets them, and the actor sees the features."""
    agent, batch = make_agent(), make_window().batch
    is_first = batch.is_first.clone()
    is_first[:, 0] = True
    observe, noise = draw_noise((ROWS, TIME))
    state, actions, deters = agent.initial(ROWS), [], []
    for t in range(TIME):
        obs = {key: value[:, t] for key, value in batch.obs.items()}
        action, state = agent.act(obs, is_first[:, t], state, ActNoise(observe[:, t], noise[:, t]))
        actions.append(action)
        deters.append(state.world.deter)
    taken = {key: torch.stack([action[key] for action in actions], 1) for key in ACT}
    before = {key: torch.cat([torch.zeros_like(value[:, :1]), value[:, :-1]], 1) for key, value in taken.items()}
    start = State(torch.zeros(ROWS, DETER), torch.zeros(ROWS, GROUPS, dtype=torch.int32))
    with torch.no_grad():
        states, _, _ = agent.world.observe(batch.obs, start, before, is_first, observe)
        pol = agent.behavior.pol
        outputs = policy_outputs(features(states, CLASSES), pol.weights(torch.float32))
        expected = pol.split(sample_action(outputs, pol.keys, noise, 0.0))
    torch.testing.assert_close(torch.stack(deters, 1), states.deter)
    assert torch.equal(state.world.stoch, states.stoch[:, -1])
    torch.testing.assert_close(taken, expected)
    assert taken["turn"].abs().max() > 1, "actions are raw samples"


def test_a_dream_is_policy_core_prior_and_sample_in_turn() -> None:
    """Every step has uniforms of its own, and the prior is sampled with the mix."""
    agent, rows = make_agent(), ROWS * TIME
    dyn, pol = agent.world.dyn, agent.behavior.pol
    uniform, _ = draw_noise((rows, HORIZON), seed=1)
    _, noise = draw_noise((rows, HORIZON + 1), seed=2)
    rng = torch.Generator().manual_seed(3)
    start = State(torch.randn(rows, DETER, generator=rng), torch.zeros(rows, GROUPS, dtype=torch.int32))
    with torch.no_grad():
        states, actions, _ = dyn.imagine(start, pol.weights(torch.float32), pol.keys, uniform, noise, 0.0)
        core = dyn.core(torch.float32)
        deter, stoch = start
        for h in range(HORIZON + 1):
            torch.testing.assert_close(states.deter[:, h], deter)
            assert torch.equal(states.stoch[:, h], stoch)
            feat = features(State(deter, stoch), CLASSES)
            action = sample_action(policy_outputs(feat, pol.weights(torch.float32)), pol.keys, noise[:, h], 0.0)
            torch.testing.assert_close(actions[:, h], action)
            if h < HORIZON:
                embedded = rssm_core.embed_action(action, core.action)
                latent = onehot(stoch, CLASSES).flatten(1)
                deter = rssm_core.step(core, *rssm_core.split_hidden(core), deter, latent, embedded)
                stoch = unimix_sample(dyn.prior(deter), uniform[:, h], dyn.unimix).drawn


def test_noise_is_uniform_for_classes_and_normal_for_values() -> None:
    agent = make_agent()
    observe, imagine, action = (Noise(0, stream) for stream in (Stream.OBSERVE, Stream.IMAGINE, Stream.ACTION))
    update = agent.update_noise(observe, imagine, action, batch=8, time=16)
    assert update.observe.shape == (8, 16, GROUPS)
    assert update.imagine.shape == (8 * 16, HORIZON, GROUPS)
    assert update.action.shape == (8 * 16, HORIZON + 1, TURN_AND_JUMP)
    act = agent.act_noise(Noise(0, Stream.ACT_STATE), Noise(0, Stream.ACT_POLICY), rows=500)
    assert (act.observe.shape, act.action.shape) == ((500, GROUPS), (500, TURN_AND_JUMP))
    for noise in (update.observe, update.imagine, update.action[..., :2], act.observe, act.action[..., :2]):
        assert 0 <= noise.min() < 0.05 and 0.95 < noise.max() < 1
    for noise in (update.action[..., 2:], act.action[..., 2:]):
        assert noise.min() < -2 and noise.max() > 2


def test_the_slow_critic_starts_as_a_copy() -> None:
    model = ModelConfig(size="size1m", deter=DETER, hidden=6, units=6, stoch=GROUPS, classes=CLASSES, blocks=2)
    agent = Agent(OBS, ACT, model, LossConfig(), torch.float32)
    agent.initialize(Noise(0, Stream.INIT))
    critic, slow = agent.behavior.val.state_dict(), agent.behavior.slowval.state_dict()
    assert critic["mlp.linear0.kernel"].std() > 0
    torch.testing.assert_close(slow, critic, rtol=0, atol=0)
