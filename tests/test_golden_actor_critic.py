"""Actor and critic losses against the official arrays, from what the heads say: imagined steps and replayed ones."""

import pytest
import torch
from golden_arrays import FORWARD, GRADIENT, Arrays, Golden
from torch import Tensor

from fastdreamer.batch import Batch, State
from fastdreamer.behavior import LAMBDA, Behavior, Dream
from fastdreamer.config import LossConfig, ModelConfig
from fastdreamer.dists import action_log_prob_entropy
from fastdreamer.nets import onehot
from fastdreamer.spaces import Space
from fastdreamer_kernels import lambda_return
from fastdreamer_kernels.policy import MAX_STD, MIN_STD

CASES = ("disc", "cont")
FEAT = 8


def make_behavior(space: Space) -> Behavior:
    """Its networks are not used: the files give what the heads say."""
    return Behavior(FEAT, {"action": space}, ModelConfig(size="size1m", hidden=4, units=4), LossConfig())


class Policy:
    """The recorded actions, and the outputs of an actor's head that give the recorded distribution."""

    def __init__(self, arrays: Arrays) -> None:
        self.parts = {key: value.requires_grad_() for key, value in arrays.group("policy:").items()}
        action = arrays.read("act:action")
        if "logits" in self.parts:
            classes = self.parts["logits"].shape[-1]
            self.space, self.action = Space("discrete", (), classes), onehot(action, classes)
            self.outputs: tuple[Tensor, ...] = (self.parts["logits"],)
        else:
            self.space, self.action = Space("vector", tuple(action.shape[2:])), action
            # The files hold the bounded mean and std, the product's head speaks before its bounds.
            share = (self.parts["std"] - MIN_STD) / (MAX_STD - MIN_STD)
            self.outputs = (torch.atanh(self.parts["mean"]), torch.logit(share) - 2)


def record_dream(arrays: Arrays, action: Tensor) -> tuple[Dream, dict[str, Tensor]]:
    """The dream, without gradient as `Agent.dream` makes it, and the tensors behind it."""
    leaves = {key: arrays.read(key).requires_grad_() for key in ("rew", "con")}
    with torch.no_grad():
        nothing = torch.zeros(*action.shape[:2], 1)
        return Dream(State(nothing, nothing.int()), action, leaves["rew"].clone(), leaves["con"].clone()), leaves


def largest(gradient: Tensor | None) -> Tensor:
    return torch.zeros(()) if gradient is None else gradient.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_losses_of_imagined_steps(golden: Golden, case: str) -> None:
    arrays = golden.open(f"ac_losses_{case}.npz")
    policy = Policy(arrays)
    behavior = make_behavior(policy.space)
    behavior.retnorm.lo, behavior.retnorm.hi = arrays.read("retnorm_before").unbind()
    dream, leaves = record_dream(arrays, policy.action)
    logits, slow = (arrays.read(key).requires_grad_() for key in ("value_logits", "slow_logits"))
    log_prob, entropies = action_log_prob_entropy([policy.outputs], behavior.pol.keys, policy.action, 0.0)
    losses, returns, metrics = behavior.actor_critic_losses(dream, log_prob, entropies, logits, behavior.val.mean(slow))
    (losses["policy"].mean() + losses["value"].mean()).backward()
    arrays.compare("ret", returns, FORWARD)
    arrays.compare_group("loss:", losses, FORWARD)
    metrics["ent/action"] = entropies[0][:, :-1].mean()
    arrays.compare_group("metric:", metrics, FORWARD)
    arrays.compare("retnorm_after", torch.stack([behavior.retnorm.lo, behavior.retnorm.hi]), FORWARD)
    arrays.compare("grad_value_logits", logits.grad, GRADIENT)
    arrays.compare_group("grad_policy:", {key: part.grad for key, part in policy.parts.items()}, GRADIENT)
    for key, leaf in {"slow_logits": slow, **leaves}.items():
        arrays.compare(f"grad_{key}_maxabs", largest(leaf.grad), GRADIENT)


@pytest.mark.parametrize("case", CASES)
def test_value_loss_of_replayed_steps(golden: Golden, case: str) -> None:
    arrays = golden.open(f"ac_losses_{case}.npz")
    behavior = make_behavior(Space("vector", (1,)))
    logits, slow = (arrays.read(f"rep:{key}_logits").requires_grad_() for key in ("value", "slow"))
    last, terminal, boot = (arrays.read(f"rep:{key}") for key in ("last", "term", "boot"))
    batch = Batch({}, arrays.read("rep:rew"), torch.zeros_like(last), last, terminal)
    loss = behavior.replay_value_loss(logits, behavior.val.mean(slow), batch, boot)
    loss.mean().backward()
    arrays.compare("rep:loss", loss, FORWARD)
    arrays.compare("rep:grad_value_logits", logits.grad, GRADIENT)
    arrays.compare("rep:grad_slow_maxabs", largest(slow.grad), GRADIENT)
    # The product keeps these returns to itself: they are what its loss is made of.
    cont = (~terminal).float() * (1 - 1 / LossConfig().discount_horizon)
    arrays.compare("rep:ret", lambda_return(batch.reward, cont, boot, LAMBDA * (~last).float()), FORWARD)
