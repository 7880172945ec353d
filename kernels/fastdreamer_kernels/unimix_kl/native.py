"""`unimix_kl` and its backward on the native library: float32 on the CPU."""

import torch
from torch import Tensor

from fastdreamer_kernels import _native


def unimix_kl(post: Tensor, prior: Tensor, unimix: float, free_nats: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dyn, rep, post_entropy, prior_entropy = (torch.empty(post.shape[0]) for _ in range(4))
    _native.call(
        "unimix_kl", *post.shape, post, prior, unimix, free_nats, dyn, rep, post_entropy, prior_entropy
    )  # fmt: skip
    return dyn, rep, post_entropy, prior_entropy


def unimix_kl_backward(
    ddyn: Tensor, drep: Tensor, post: Tensor, prior: Tensor, unimix: float, free_nats: float
) -> tuple[Tensor, Tensor]:
    dpost, dprior = torch.empty_like(post), torch.empty_like(prior)
    _native.call("unimix_kl_backward", *post.shape, ddyn, drep, post, prior, unimix, free_nats, dpost, dprior)
    return dpost, dprior
