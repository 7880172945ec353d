"""Heads on features against the official arrays: reward, value, continue, three actors, float32 and bfloat16."""

import math
from typing import TypeVar

import pytest
import torch
from golden_arrays import FORWARD, Arrays, Golden, Tolerance
from golden_modules import fill, official_names
from torch import Tensor, nn

from fastdreamer.dists import LOG_TWO_PI, action_log_prob_entropy, binary_loss
from fastdreamer.heads import ContinueHead, PolicyHead, ScalarHead
from fastdreamer.nets import initialize, onehot
from fastdreamer.noise import Noise, Stream
from fastdreamer.spaces import Space
from fastdreamer_kernels.policy import MAX_STD, MIN_STD, bounded_normal, policy_outputs

ACTORS = {
    "pold": ("action", Space("discrete", (), 6), "act_disc"),
    "polc": ("action", Space("vector", (3,)), "act_cont"),
    "polm": ("act", Space("discrete", (2,), 4), "act_multi"),
}
INIT_SEEDS = 20
Initialized = TypeVar("Initialized", bound=nn.Module)


def kernel_shape(params: dict[str, Tensor]) -> tuple[int, int]:
    """Inputs and units of a head."""
    inputs, units = params["mlp/linear0/kernel"].shape
    return inputs, units


def scalar_head(arrays: Arrays, name: str, layers: int) -> ScalarHead:
    params = arrays.group(f"param:{name}/")
    head = ScalarHead(*kernel_shape(params), layers, "twohot")
    fill(official_names(head), params)
    return head


def continue_head(arrays: Arrays) -> ContinueHead:
    params = arrays.group("param:con/")
    head = ContinueHead(*kernel_shape(params))
    fill(official_names(head), params)
    return head


def actor(arrays: Arrays, name: str) -> tuple[PolicyHead, Tensor]:
    """The policy head, and the recorded actions as the flat actions of the product."""
    key, space, recorded = ACTORS[name]
    params = arrays.group(f"param:{name}/")
    head = PolicyHead(*kernel_shape(params), {key: space})
    fill(official_names(head), params)
    action = arrays.read(recorded)
    return head, onehot(action, space.classes).flatten(2) if space.classes else action


def outputs(head: PolicyHead, x: Tensor) -> list[tuple[Tensor, ...]]:
    return policy_outputs(x, head.weights(x.dtype))


@pytest.mark.parametrize("name, layers", [("rew", 1), ("val", 3)])
def test_reward_and_value(golden: Golden, name: str, layers: int) -> None:
    arrays = golden.open("heads.npz")
    head = scalar_head(arrays, name, layers)
    logits = head(arrays.read("x"))
    arrays.compare(f"out:{name}/logits", logits, FORWARD)
    arrays.compare(f"out:{name}/pred", head.mean(logits), FORWARD)
    arrays.compare(f"out:{name}/loss", head.loss(logits, arrays.read("target_scalar")), FORWARD)


def test_continue(golden: Golden) -> None:
    arrays = golden.open("heads.npz")
    logit = continue_head(arrays)(arrays.read("x"))
    arrays.compare("out:con/logit", logit, FORWARD)
    arrays.compare("out:con/prob1", torch.sigmoid(logit), FORWARD)
    arrays.compare("out:con/loss", binary_loss(logit, arrays.read("target_con")), FORWARD)


@pytest.mark.parametrize("name", ACTORS)
def test_log_prob_and_entropy_of_the_actor(golden: Golden, name: str) -> None:
    arrays = golden.open("heads.npz")
    head, action = actor(arrays, name)
    log_prob, entropies = action_log_prob_entropy(outputs(head, arrays.read("x")), head.keys, action, 0.0)
    arrays.compare(f"out:{name}/logp", log_prob, FORWARD)
    arrays.compare(f"out:{name}/entropy", entropies[0], FORWARD)


def test_logits_of_discrete_actors(golden: Golden) -> None:
    arrays = golden.open("heads.npz")
    x = arrays.read("x")
    (logits,) = outputs(actor(arrays, "pold")[0], x)[0]
    arrays.compare("out:pold/logits", logits, FORWARD)
    arrays.compare("out:pold/mode", logits.argmax(-1).int(), FORWARD)
    # The actor's categorical keeps its raw logits: log-probabilities with a mix would sum to one.
    arrays.compare("categorical_ignores_unimix_logsumexp", logits.logsumexp(-1), FORWARD)
    arrays.compare("out:pold/minent", 0.0, FORWARD)
    arrays.compare("out:pold/maxent", math.log(logits.shape[-1]), FORWARD)
    (logits,) = outputs(actor(arrays, "polm")[0], x)[0]
    arrays.compare("out:polm/logits", logits.unflatten(-1, (2, 4)), FORWARD)


def test_mean_and_std_of_the_continuous_actor(golden: Golden) -> None:
    arrays = golden.open("heads.npz")
    mean, std = bounded_normal(*outputs(actor(arrays, "polc")[0], arrays.read("x"))[0])
    arrays.compare("out:polc/mean", mean, FORWARD)
    arrays.compare("out:polc/std", std, FORWARD)
    for key, bound in {"minent": MIN_STD, "maxent": MAX_STD}.items():
        entropy = 0.5 * (1 + LOG_TWO_PI) + math.log(bound)
        arrays.compare(f"out:polc/{key}", torch.full_like(std, entropy), FORWARD)


def test_bfloat16(golden: Golden) -> None:
    """Both codes round to bfloat16 on the way: they may be as far apart as the official one is from its float32."""
    arrays, half = golden.open("heads.npz"), golden.open("heads_bf16_outputs.npz")
    x = arrays.read("x").bfloat16()
    reward, value = scalar_head(arrays, "rew", 1), scalar_head(arrays, "val", 3)
    logits = reward(x)
    mean, std = bounded_normal(*outputs(actor(arrays, "polc")[0], x)[0])
    got = {
        "rew_logits": (logits, "out:rew/logits"),
        "rew_pred": (reward.mean(logits), "out:rew/pred"),
        "val_pred": (value.mean(value(x)), "out:val/pred"),
        "con_prob": (torch.sigmoid(continue_head(arrays)(x).float()), "out:con/prob1"),
        "polc_mean": (mean, "out:polc/mean"),
        "polc_std": (std, "out:polc/std"),
        "pold_logits": (outputs(actor(arrays, "pold")[0], x)[0][0], "out:pold/logits"),
    }
    for key, (actual, exact) in got.items():
        half.compare(key, actual.float(), half.drift(key, arrays.read(exact)))


def fresh(module: Initialized, seed: int) -> Initialized:
    initialize(module, Noise(seed, Stream.INIT))
    return module


@pytest.mark.parametrize("name, layers", [("rew", 1), ("val", 3)])
def test_reward_and_value_start_at_zero(golden: Golden, name: str, layers: int) -> None:
    arrays = golden.open("heads.npz")
    x = arrays.read("x")
    head = fresh(ScalarHead(x.shape[-1], 16, layers, "twohot"), 0)
    arrays.compare(f"init_pred_{name}_eager", head.mean(head(x)), Tolerance(0.0))
    # Under jit on a CPU the official sum loses its symmetry to contracted multiply-adds: README, Notes.
    arrays.compare(f"init_pred_{name}_jit_cpu", head.mean(head(x)), Tolerance(0.0, 1.0))


def test_fresh_actor_is_wide_and_fresh_continue_is_undecided(golden: Golden) -> None:
    """Initial parameters are not in the files: statistics must lie among those of our own initialisations."""
    arrays = golden.open("heads.npz")
    x = arrays.read("x")
    stds, logits = [], []
    for seed in range(INIT_SEEDS):
        actor = fresh(PolicyHead(x.shape[-1], 16, {"action": Space("vector", (3,))}), seed)
        stds.append(bounded_normal(*outputs(actor, x)[0])[1])
        logits.append(fresh(ContinueHead(x.shape[-1], 16), seed)(x))
    for key, official, ours in (
        ("init_std", arrays.read("init_std"), torch.stack(stds)),
        ("init_con_prob", torch.logit(arrays.read("init_con_prob")), torch.stack(logits)),
    ):
        for what, seeds, value in (
            ("mean", ours.flatten(1).mean(-1), official.mean()),
            ("spread", ours.flatten(1).std(-1), official.std()),
        ):
            golden.compare(f"{key}: {what}", value, seeds.mean(), Tolerance(0.0, 4 * seeds.std().item()))
