"""Distributions against the official arrays: unimix, KL with free nats, straight-through samples, two-hot."""

import pytest
import torch
from golden_arrays import FORWARD, GRADIENT, Golden, Tolerance
from golden_uniforms import midpoints

from fastdreamer.dists import twohot_bins
from fastdreamer_kernels import twohot_loss, twohot_mean, unimix_kl, unimix_sample
from fastdreamer_kernels.unimix_sample.reference import mixed_log_probs

UNIMIX, FREE_NATS = 0.01, 1.0
TWOHOT_MEAN = Tolerance(2e-4, 1.0)
"""Bins reach 4.85e8, so the float32 sum of a nearly uniform row is only defined to about one unit."""


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_mixed_distributions(golden: Golden, unimix: float) -> None:
    arrays, group = golden.open("scalars_dists.npz"), f"dist:um{unimix}/"
    a, b = arrays.read("logits_a"), arrays.read("logits_b")
    log_probs = mixed_log_probs(a, unimix)
    # Without a mix the official code leaves logits as they are, which is the same distribution.
    arrays.compare(group + "mixed_logits", log_probs if unimix else log_probs + a.logsumexp(-1, keepdim=True), FORWARD)
    forward, _, entropy, _ = unimix_kl(a, b, unimix, 0.0)
    arrays.compare(group + "kl_a_b", forward, FORWARD)
    arrays.compare(group + "entropy_a", entropy, FORWARD)
    arrays.compare(group + "kl_b_a", unimix_kl(b, a, unimix, 0.0)[1], FORWARD)


def test_log_prob_of_a_class(golden: Golden) -> None:
    arrays = golden.open("scalars_dists.npz")
    log_probs = mixed_log_probs(arrays.read("logits_a"), UNIMIX)
    arrays.compare("dist:onehot_logp", (log_probs * arrays.read("onehot_event")).sum(-1), FORWARD)


def test_straight_through_sample(golden: Golden) -> None:
    arrays = golden.open("scalars_dists.npz")
    logits = arrays.read("logits_a").requires_grad_()
    sample = unimix_sample(logits, midpoints(logits, UNIMIX), UNIMIX).onehot
    value = (sample * arrays.read("st_weight")).sum()
    value.backward()
    arrays.compare("st_value", value, FORWARD)
    arrays.compare("st_grad_logits", logits.grad, GRADIENT)


def test_kl_losses_with_free_nats(golden: Golden) -> None:
    arrays = golden.open("scalars_dists.npz")
    post, prior = arrays.read("free_post").requires_grad_(), arrays.read("free_prior").requires_grad_()
    dyn, rep, _, _ = unimix_kl(post, prior, UNIMIX, FREE_NATS)
    (dyn.sum() + 0.1 * rep.sum()).backward()
    arrays.compare("free_dyn", dyn, FORWARD)
    arrays.compare("free_rep", rep, FORWARD)
    arrays.compare("free_grad_post", post.grad, GRADIENT)
    arrays.compare("free_grad_prior", prior.grad, GRADIENT)


def test_twohot_bins_mean_and_loss(golden: Golden) -> None:
    arrays = golden.open("twohot.npz")
    logits = arrays.read("logits").requires_grad_()
    bins = twohot_bins(logits.device)
    loss = twohot_loss(logits, bins, arrays.read("target"))
    loss.sum().backward()
    arrays.compare("bins", bins, FORWARD)
    arrays.compare("pred", twohot_mean(logits, bins), TWOHOT_MEAN)
    arrays.compare("loss", loss, FORWARD)
    arrays.compare("grad_logits", logits.grad, GRADIENT)
    probs = torch.softmax(logits, -1)
    arrays.compare("probs", probs, FORWARD)
    arrays.compare("naive_mean", (probs * bins).sum(-1), TWOHOT_MEAN)
