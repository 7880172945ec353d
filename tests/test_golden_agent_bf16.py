"""The whole agent in bfloat16 against the official arrays: how far mixed precision may drift, and what may not change."""

import pytest
import torch
from golden_agent import CASES, Case, loss_terms
from golden_arrays import EXACT, Golden, Tolerance
from torch import Tensor

from fastdreamer.dists import action_log_prob_entropy
from fastdreamer_kernels.policy import policy_outputs

LOSS, GRADIENT_NORM = Tolerance(2e-3), Tolerance(3e-2)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_norm(golden: Golden, case: str) -> None:
    setup = Case(golden, case, torch.bfloat16)
    half, window = golden.open(f"agent_{case}_bf16_outputs.npz"), setup.window(0).window
    out = setup.agent.loss(window.batch, window.start, window.prev_action, setup.noise(window))
    out.loss.backward()
    grads = [parameter.grad for parameter in setup.agent.official_parameters().values()]
    assert {grad.dtype for grad in grads} == {torch.float32}
    half.compare("loss", out.loss, LOSS)
    half.compare("grad_norm", torch.stack([grad.double().norm() for grad in grads]).norm(), GRADIENT_NORM)
