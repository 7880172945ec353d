"""What the contracts of the ops refuse, in one line that names the argument."""

from collections.abc import Callable
from typing import Any

import kernel_model_cases
import pytest
import torch
from formulas import Sizes, make_weights, observed
from kernel_model_cases import MIXED
from torch import Tensor

from fastdreamer_kernels import (
    block_gru,
    imagine_sequence,
    lambda_return,
    laprop_agc,
    mlp,
    observe_sequence,
    replay_gather,
    twohot_loss,
    twohot_mean,
    unimix_kl,
    unimix_sample,
)
from fastdreamer_kernels.mlp import Kept
from fastdreamer_kernels.policy import ActionKey

SIZES = Sizes(B=3, T=2, D=4, G=2, M=5, S=2, K=3, E=3, A=7)
WEIGHTS = make_weights(SIZES, MIXED)
DOUBLE, HALF, INT, INT32 = torch.float64, torch.bfloat16, torch.int64, torch.int32


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def gather(**changed: Any) -> None:
    ring, index = zeros(2, 5, 3), torch.zeros(4, dtype=torch.int64)
    given_ = {"ring": ring, "env": index, "start": index, "length": 3, "out": zeros(4, 3, 3)} | changed
    replay_gather(**given_)


def laprop(**changed: Any) -> None:
    names = ("params", "grads", "nu", "mu")
    given_: dict[str, Any] = {name: [zeros(2, 3), zeros(4)] for name in names}
    given_ |= {"shadow": [], "slow": [zeros(4)], "slow_index": [1], "step": zeros() + 1, "lr": zeros(), "agc": 0.3}
    laprop_agc(**given_ | changed)


def gru(**changed: Tensor) -> None:
    given_ = {"hidden": zeros(2, 4), "scale": zeros(4), "kernel": zeros(2, 2, 6), "bias": zeros(12)}
    block_gru(**given_ | {"deter": zeros(2, 4)} | changed)


def observing(**changed: Tensor) -> None:
    given_ = observed(SIZES)._asdict() | changed
    observe_sequence(WEIGHTS.core, WEIGHTS.posterior, **given_, unimix=0.01)


def imagining(keys: tuple[ActionKey, ...] = MIXED, **changed: Tensor) -> None:
    given_ = {"deter": zeros(3, 4), "stoch": zeros(3, 2, dtype=torch.int32), "uniform": zeros(3, 2, 2)}
    given_ |= {"action_noise": zeros(3, 3, 3)} | changed
    imagine_sequence(WEIGHTS.core, WEIGHTS.prior, WEIGHTS.policy, keys, **given_, unimix=0.01, actor_unimix=0.0)


def valuing(x: Tensor, stoch: Tensor | None) -> None:
    mlp(*kernel_model_cases.make_head(0, 10, 5, 2), x, stoch)


def stacking(kept: Kept | None = None, layers: int = 1, **changed: Tensor) -> None:
    """An mlp of 10 -> 5 (-> 5 ...) -> 2 on three rows, with parts of its last layer or its output changed."""
    head = kernel_model_cases.make_head(0, 10, *[5] * layers, 2)
    last = head.layers[-1]._replace(**{name: x for name, x in changed.items() if name != "output"})
    output = head.logit._replace(kernel=changed["output"]) if "output" in changed else head.logit
    mlp((*head.layers[:-1], last), output, zeros(3, 10), kept=kept)


def mean(*shape: int, bins: Tensor) -> None:
    twohot_mean(zeros(*shape), bins)


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: unimix_sample(zeros(2, 3, dtype=INT), zeros(2), 0.1), "unimix_sample: logits must be .*int64"),
    (lambda: unimix_sample(zeros(2, 3), zeros(2, dtype=DOUBLE), 0.1), "unimix_sample: uniform must be float32"),
    (lambda: unimix_sample(zeros(3), zeros(), 0.1), r"unimix_sample: logits must be .*\(3,\)"),
    (lambda: unimix_kl(zeros(3), zeros(3), 0.1, 1.0), r"unimix_kl: .*\(3,\)"),
    (lambda: unimix_kl(zeros(2, 3), zeros(2, 3, dtype=HALF), 0.1, 1.0), "unimix_kl: .*dtype.*bfloat16"),
    (lambda: unimix_kl(zeros(2, 3, dtype=INT), zeros(2, 3, dtype=INT), 0.1, 1.0), "unimix_kl: .*float.*int64"),
    (
        lambda: lambda_return(zeros(2, 3), *[zeros(2, 3, dtype=DOUBLE)] * 3),
        "lambda_return: .*float32.*float64",
    ),
    (lambda: gru(hidden=zeros(2, 4, dtype=HALF)), "block_gru: .*dtype.*bfloat16"),
    (lambda: gru(scale=zeros(4, dtype=HALF)), "block_gru: .*scale be float32"),
    (lambda: gru(kernel=zeros(3, 1, 3)), r"block_gru: .*\(3, 1, 3\)"),
    (lambda: gather(ring=zeros(2)), r"replay_gather: ring must be .*\(2,\)"),
    (lambda: gather(length=6), "replay_gather: ring must .*6"),
    (lambda: gather(length=0), "replay_gather: ring must .*0"),
    (lambda: gather(out=zeros(4, 2, 3)), r"replay_gather: out must be \(4, 3, 3\).*\(4, 2, 3\)"),
    (lambda: gather(out=zeros(4, 3, 3, dtype=HALF)), "replay_gather: out must be .*bfloat16"),
    (lambda: gather(out=zeros(3, 4, 3).transpose(0, 1)), "replay_gather: .*contiguous"),
    (lambda: gather(env=zeros(4)), "replay_gather: env and start must be .*int64, got .*float32"),
    (lambda: gather(start=zeros(3, dtype=INT)), r"replay_gather: env and start must be .*\(3,\)"),
    (lambda: gather(env=zeros(4, dtype=INT) + 2), r"replay_gather: env must be in \[0, 2\), got 2..2"),
    (lambda: gather(start=zeros(4, dtype=INT) - 1), r"replay_gather: start must be in \[0, inf\), got -1..-1"),
    (lambda: laprop(grads=[zeros(2, 3)]), "laprop_agc: grads must be 2 tensors, got 1"),
    (lambda: laprop(nu=[zeros(2, 3), zeros(5)]), r"laprop_agc: nu\[1\] must be \(4,\).*\(5,\)"),
    (lambda: laprop(mu=[zeros(2, 3), zeros(4, dtype=HALF)]), r"laprop_agc: mu\[1\] must be .*float32, got .*bfloat16"),
    (lambda: laprop(shadow=[zeros(2, 3), zeros(4)]), r"laprop_agc: shadow\[0\] must be .*bfloat16"),
    (lambda: laprop(slow_index=[0]), r"laprop_agc: slow\[0\] must be \(2, 3\)"),
    (lambda: laprop(slow_index=[2]), r"laprop_agc: slow_index must ascend in \[0, 2\)"),
    (lambda: laprop(slow_index=[1, 0], slow=[zeros(4), zeros(2, 3)]), "laprop_agc: slow_index must ascend"),
    (lambda: laprop(step=zeros(1)), r"laprop_agc: step must be 0-d float32, got \(1,\)"),
    (lambda: laprop(lr=zeros(dtype=DOUBLE)), "laprop_agc: lr must be .*float64"),
    (lambda: laprop(agc=-1.0), "laprop_agc takes .*-1.0"),
    (lambda: laprop(params=[], grads=[], nu=[], mu=[], slow=[], slow_index=[]), "laprop_agc takes .*got 0"),
    (lambda: observing(deter=zeros(2, 4)), r"observe_sequence: deter, .*got \(\(2,\)"),
    (lambda: observing(stoch=zeros(3, 3, dtype=INT32)), r"observe_sequence: .*uniform must lead with .*\(3, 2, 3\)"),
    (lambda: observing(embed=zeros(3, 3, 3)), "observe_sequence: "),
    (lambda: observing(action=zeros(3, 1, 7)), r"observe_sequence: .*\(3, 1\)"),
    (lambda: observing(is_first=zeros(2, 2, dtype=torch.bool)), r"observe_sequence: .*\(2, 2\)"),
    (lambda: observing(uniform=zeros(3, 2, 1)), r"observe_sequence: .*\(3, 2, 1\)"),
    (lambda: observing(stoch=zeros(3, 2, dtype=torch.int64)), "observe_sequence: stoch must be torch.int32, got .*64"),
    (lambda: observing(is_first=zeros(3, 2)), "observe_sequence: is_first must be torch.bool, got torch.float32"),
    (lambda: observing(uniform=zeros(3, 2, 2, dtype=torch.float64)), "observe_sequence: uniform must be .*float32"),
    (lambda: imagining(stoch=zeros(3, 2, dtype=torch.int64)), "imagine_sequence: stoch must be torch.int32, got .*64"),
    (lambda: valuing(zeros(3, 4), zeros(3, 2, dtype=torch.int64)), "mlp: stoch must be torch.int32, got .*64"),
    (lambda: imagining(deter=zeros(2, 4)), r"imagine_sequence: deter, .*got \(\(2,\)"),
    (lambda: imagining(stoch=zeros(3, 3, dtype=INT32)), r"imagine_sequence: .*\(3, 3\)"),
    (lambda: imagining(uniform=zeros(3, 3, 2)), "imagine_sequence: "),
    (lambda: imagining(action_noise=zeros(3, 3, 2)), r"imagine_sequence: .*\(3, 3, 2\)"),
    (lambda: valuing(zeros(3, 4), zeros(2, 2, dtype=INT32)), r"mlp: .*\(3, 4\) and \(2, 2\)"),
    (lambda: valuing(zeros(3, 4), zeros(3, 4, dtype=INT32)), r"mlp: .*\(3, 4\) and \(3, 4\)"),
    (lambda: valuing(zeros(3, 10), zeros(3, 2, dtype=INT32)), r"mlp: .*\(3, 10\)"),
    (lambda: valuing(zeros(3, 9), None), r"mlp: .*\(3, 9\) and None"),
    (lambda: valuing(zeros(3, 10, dtype=torch.float64), None), "mlp: x must be torch.float32, got torch.float64"),
    (lambda: valuing(zeros(3, 10), zeros(3, 0, dtype=INT32)), r"mlp: .*\(3, 10\) and \(3, 0\)"),
    (lambda: stacking(bias=zeros(4)), r"mlp: layers\[0\] must take 10 values .*\[\(10, 5\), \(4,\), \(5,\)\]"),
    (lambda: stacking(scale=zeros(4)), r"mlp: layers\[0\] must take 10 values .*\(4,\)\]"),
    (lambda: stacking(bias=zeros(5, dtype=DOUBLE)), r"mlp: layers\[0\] must be torch.float32, got .*float64"),
    (lambda: stacking(layers=2, kernel=zeros(4, 5)), r"mlp: layers\[1\] must take 5 values .*\[\(4, 5\)"),
    (lambda: stacking(output=zeros(4, 2)), r"mlp: output must take 5 values .*\[\(4, 2\), \(2,\)\]"),
    (lambda: stacking(layers=9), "mlp: there must be 1..8 layers, got 9"),
    (
        lambda: stacking(Kept(zeros(2, 2), zeros(15))),
        r"mlp: kept must be of 3 rows, \(3, 2\) and 15, got \(2, 2\) and 15",
    ),
    (lambda: stacking(Kept(zeros(3, 2), zeros(14))), r"mlp: kept must be of 3 rows, .*got \(3, 2\) and 14"),
    (
        lambda: imagining(MIXED[1:] * 33, action_noise=zeros(3, 3, 33)),
        "imagine_sequence: .* at most 32 action keys, got 33",
    ),
    (lambda: mean(2, 5, bins=zeros(3)), r"twohot_mean: .*\(3,\) for \(2, 5\)"),
    (lambda: mean(2, 4, bins=zeros(4)), r"twohot_mean: .*odd.*\(4,\)"),
    (lambda: mean(2, 1, bins=zeros(1)), r"twohot_mean: .*3..1023.*\(1,\)"),
    (lambda: mean(2, 1025, bins=zeros(1025)), r"twohot_mean: .*\(1025,\)"),
    (lambda: mean(2, 3, bins=zeros(1, 3)), r"twohot_mean: .*\(1, 3\)"),
    (lambda: twohot_loss(zeros(2, 4), zeros(4), zeros(2)), r"twohot_loss: bins .*\(4,\)"),
    (
        lambda: twohot_loss(zeros(2, 3), zeros(3), zeros(2), zeros(3)),
        r"twohot_loss: targets must be \(2,\), got .*\(3,",
    ),
]


@pytest.mark.parametrize("call, message", WRONG)
def test_wrong_inputs_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_right_inputs_are_taken() -> None:
    gather(), laprop(), gru(), observing(), imagining()
    valuing(zeros(3, 4), zeros(3, 2, dtype=INT32)), valuing(zeros(3, 10), None)
    stacking(), stacking(layers=8), stacking(Kept(zeros(3, 2), zeros(15)))
    mean(2, 3, bins=zeros(3)), twohot_loss(zeros(2, 3), zeros(3), zeros(2), zeros(2))
