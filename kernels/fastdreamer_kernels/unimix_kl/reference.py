"""Both KL terms of the world model in plain PyTorch. Source: SPEC 1.4 and 2.6."""

from torch import Tensor

from fastdreamer_kernels.unimix_sample.reference import mixed_log_probs


def unimix_kl(post: Tensor, prior: Tensor, unimix: float, free_nats: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    post, prior = mixed_log_probs(post, unimix), mixed_log_probs(prior, unimix)
    dyn = _kl(post.detach(), prior)
    rep = _kl(post, prior.detach())
    return dyn.clamp(min=free_nats), rep.clamp(min=free_nats), _entropy(post.detach()), _entropy(prior.detach())


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum((-2, -1))


def _entropy(p: Tensor) -> Tensor:
    return -(p.exp() * p).sum((-2, -1))
