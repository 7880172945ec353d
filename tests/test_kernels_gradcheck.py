"""Gradients of the references in float64 against finite differences.

Not through a sample: its straight-through gradient is not the derivative of what it gives.
"""

import pytest
import torch
from formulas import Sizes, make_weights, normal, observed, uniforms
from kernel_cases import gru_case
from kernel_model_cases import make_bins, make_head
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils import _pytree as pytree

from fastdreamer_kernels.block_gru import reference as gru_reference
from fastdreamer_kernels.mlp import reference as mlp_reference
from fastdreamer_kernels.observe_sequence import reference as observe_reference
from fastdreamer_kernels.twohot import reference as twohot_reference
from fastdreamer_kernels.unimix_kl import reference as kl_reference
from fastdreamer_kernels.unimix_sample import reference as sample_reference


def trained(*tensors: Tensor) -> list[Tensor]:
    return [x.double().requires_grad_() for x in tensors]


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_gradients_of_distributions_are_those_of_finite_differences(unimix: float) -> None:
    logits, prior = trained(normal(0, 2, 3, 4), normal(1, 2, 3, 4))
    uniform = uniforms(2, 2, 3).double()
    gradcheck(lambda x: sample_reference.unimix_sample(x, uniform, unimix)[2:], logits)
    gradcheck(lambda x: sample_reference.mixed_probs(x, unimix), logits)  # what the one-hot carries
    gradcheck(lambda q: kl_reference.unimix_kl(logits.detach(), q, unimix, 0.1)[0], prior)
    gradcheck(lambda p: kl_reference.unimix_kl(p, prior.detach(), unimix, 0.1)[1], logits)
    bins = make_bins(9, 2.0).double()
    gradcheck(lambda x: twohot_reference.twohot_loss(x, bins, normal(3, 5).double()), trained(normal(4, 5, 9)))


@pytest.mark.parametrize("op", ["block_gru", "mlp", "observe_sequence"])
def test_gradients_of_networks_are_those_of_finite_differences(op: str) -> None:
    if op == "block_gru":
        gradcheck(gru_reference.block_gru, trained(*gru_case(3, 6, 2).inputs))
        return
    if op == "mlp":
        tree: object = make_head(0, 4 + 2 * 3, 5, 2)
        extra = [normal(7, 3, 4)]
    else:
        n = Sizes(B=2, T=1, D=4, G=2, M=3, S=2, K=3, E=3, A=2)
        weights, inputs = make_weights(n), observed(n)
        tree, extra = (weights.core, weights.posterior), [inputs.embed]
    leaves, spec = pytree.tree_flatten(tree)

    def run(*x: Tensor) -> tuple[Tensor, ...]:
        first, second = pytree.tree_unflatten(list(x[:-1]), spec)
        if op == "mlp":
            return (mlp_reference.mlp(first, second, x[-1], torch.tensor([[0, 2], [1, 1], [2, 0]])),)
        given = inputs._replace(deter=inputs.deter.double(), embed=x[-1], action=inputs.action.double())
        deter, _, _, logits = observe_reference.observe_sequence(first, second, *given, 0.01)
        return deter, logits

    gradcheck(run, trained(*leaves, *extra))
