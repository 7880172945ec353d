"""`unimix_kl`: the dynamics and representation losses of the world model in one pass over both logits.

    dyn = max(free_nats, sum_groups KL(sg(post) || prior))      trains the prior
    rep = max(free_nats, sum_groups KL(post || sg(prior)))      trains the posterior

Both distributions carry the uniform mix. The floor applies to the sum over groups, before any mean.
"""

from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.unimix_kl import reference

_dispatch.define("unimix_kl", reference=reference.unimix_kl)


def unimix_kl(
    post: Tensor, prior: Tensor, unimix: float, free_nats: float, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dyn, rep, entropy of post, entropy of prior: each (...) float32 in nats, the entropies without gradient.

    post, prior: logits (..., S, K); unimix in [0, 1]; free_nats >= 0 nats.
    Raises ValueError if the shapes differ or an argument is out of range. Source: SPEC 1.4.
    """
    if post.shape != prior.shape:
        raise ValueError(
            f"unimix_kl: post and prior must share one shape, got {tuple(post.shape)}, {tuple(prior.shape)}"
        )
    if not 0 <= unimix <= 1:
        raise ValueError(f"unimix_kl: unimix must be in [0, 1], got {unimix}")
    if free_nats < 0:
        raise ValueError(f"unimix_kl: free_nats must be at least 0, got {free_nats}")
    run = _dispatch.implementation("unimix_kl", reference.unimix_kl, backend)
    return run(post, prior, unimix, free_nats)
