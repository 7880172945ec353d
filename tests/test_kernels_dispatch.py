"""Which backend runs, and what an op says to inputs that do not fit."""

import re
from collections.abc import Callable

import pytest
import torch
from formulas import Sizes, make_weights, observed
from torch import Tensor

import fastdreamer_kernels
from fastdreamer_kernels import (
    _dispatch,
    _native,
    block_gru,
    imagine_sequence,
    lambda_return,
    observe_sequence,
    unimix_kl,
    unimix_sample,
)
from fastdreamer_kernels.policy import ActionKey

N = Sizes(B=2, T=3, D=4, G=2, M=3, S=2, K=3, E=2, A=1)
KEYS = (ActionKey(elements=1, classes=0),)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


def observe(**changed: Tensor) -> None:
    weights = make_weights(N)
    observe_sequence(weights.core, weights.posterior, *observed(N)._replace(**changed), 0.01)


def imagine(stoch: Tensor, action_noise: Tensor) -> None:
    weights, deter, uniform = make_weights(N, KEYS), zeros(N.B, N.D), zeros(N.B, N.T, N.S)
    imagine_sequence(weights.core, weights.prior, weights.policy, KEYS, deter, stoch, uniform, action_noise, 0.01, 0.0)


def gru(kernel: tuple[int, ...], bias: int) -> None:
    block_gru(zeros(2, 4), zeros(4), zeros(*kernel), zeros(bias), zeros(2, 4))


def returns(*shape: int) -> None:
    lambda_return(zeros(*shape), zeros(*shape), zeros(*shape), zeros(*shape))


WIDE = torch.zeros(N.B, N.T, N.E + 1)
STOCH, NOISE = torch.zeros(N.B, N.S, dtype=torch.int32), torch.zeros(N.B, N.T + 1, 1)
WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: observe(embed=WIDE), "observe_sequence: weights are for .* 3 more values"),
    (lambda: observe(deter=torch.zeros(N.B, N.D + 1)), "observe_sequence: weights are for deter 4.*(2, 5)"),
    (lambda: observe(action=torch.zeros(N.B, N.T, 2)), "observe_sequence: action must be (B, T, 1)"),
    (lambda: observe(stoch=torch.zeros(N.B, N.S)), "observe_sequence: stoch must be torch.int32, got torch.float32"),
    (lambda: imagine(STOCH.long(), NOISE), "imagine_sequence: stoch must be torch.int32, got torch.int64"),
    (lambda: lambda_return(zeros(2, 3), zeros(2, 3), zeros(2, 4), zeros(2, 3)), "lambda_return: .*(2, 4)"),
    (lambda: returns(2, 1), "lambda_return: .*T at least 2, got (2, 1)"),
    (lambda: returns(3), "lambda_return: .*(B, T).*got (3,)"),
    (lambda: unimix_sample(zeros(2, 3, 4), zeros(2, 4), 0.01), "unimix_sample: uniform must be (2, 3), got (2, 4)"),
    (lambda: unimix_sample(zeros(2, 3, 4), zeros(2, 3), 1.5), "unimix_sample: unimix must be in [0, 1], got 1.5"),
    (lambda: unimix_kl(zeros(2, 3, 4), zeros(2, 4, 3), 0.01, 1.0), "unimix_kl: .*(2, 3, 4), (2, 4, 3)"),
    (lambda: unimix_kl(zeros(1, 2, 3), zeros(1, 2, 3), -0.1, 1.0), "unimix_kl: unimix must be in [0, 1], got -0.1"),
    (lambda: unimix_kl(zeros(1, 2, 3), zeros(1, 2, 3), 0.1, -1.0), "unimix_kl: free_nats must be at least 0, got -1.0"),
    (lambda: gru((2, 2, 6), 11), "block_gru: .*got .*(11,)"),
    (lambda: gru((2, 3, 6), 12), "block_gru: .*got .*(2, 3, 6)"),
    (lambda: observe(deter=zeros(3, N.D)), "observe_sequence: .*got ((3,)"),
    (lambda: observe(is_first=zeros(N.B, 4).bool()), "observe_sequence: .*(2, 4)"),
    (lambda: observe(uniform=zeros(N.B, N.T, 5)), "observe_sequence: .*(2, 3, 5)"),
    (lambda: imagine(zeros(N.B, 3).int(), NOISE), "imagine_sequence: .*got .*(2, 3)"),
    (lambda: imagine(STOCH, zeros(N.B, N.T, 1)), "imagine_sequence: .*got .*(2, 3, 1)"),
]


@pytest.mark.parametrize("call, message", WRONG)
def test_inputs_that_do_not_fit_are_named(call: Callable[[], object], message: str) -> None:
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises(ValueError, match=f"^{pattern}"):
        call()


def test_ops_take_what_fits() -> None:
    observe()
    imagine(STOCH, NOISE)
    gru((2, 2, 6), 12)


def test_report_says_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setenv("FASTDREAMER_KERNELS", "reference")
    said = fastdreamer_kernels.report(cpu, torch.float32)
    assert said.partition("; ")[0] == "kernels: reference"
    assert ("not built" in said) == (_native.library is None)
    monkeypatch.delenv("FASTDREAMER_KERNELS")
    if _native.library is not None:
        assert (
            fastdreamer_kernels.report(cpu, torch.float32) == f"kernels: native ({_native.isa}); reference for norm_act"
        )


def test_the_environment_names_a_backend_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on a GPU draws some of its noise on the CPU, and some of its ops have no kernel in Triton."""
    monkeypatch.setattr(_dispatch, "INTERPRETED", False)
    monkeypatch.setenv("FASTDREAMER_KERNELS", "triton")
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    fastest = "reference" if _native.library is None else "native"
    assert _dispatch._choose("philox", "cpu", torch.float32) == fastest
    assert _dispatch._choose("philox", "cuda", torch.float32) == "triton"
    assert _dispatch._choose("twohot_mean", "cuda", torch.float32) == "reference"
    with pytest.raises(ValueError, match=r"^kernels: backend of philox on cpu in float32 must be one of .*'triton'$"):
        _dispatch._choose("philox", "cpu", torch.float32, "triton")
    assert fastdreamer_kernels.report(gpu, torch.bfloat16).startswith("kernels: triton; reference for")
    for device, name in ((cpu, "triton"), (gpu, "native")):
        monkeypatch.setenv("FASTDREAMER_KERNELS", name)
        with pytest.raises(
            ValueError, match=rf"^FASTDREAMER_KERNELS must be one of .* on {device.type}, got '{name}'$"
        ):
            fastdreamer_kernels.report(device, torch.float32)


@pytest.mark.parametrize("value", ["cuda", "Reference"])
def test_unknown_backend_in_the_environment(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FASTDREAMER_KERNELS", value)
    message = rf"kernels: backend of unimix_sample on cpu in float32 must be one of .*reference, got {value!r}"
    with pytest.raises(ValueError, match=f"^{message}$"):
        unimix_sample(zeros(1, 2, 3), zeros(1, 2), 0.01)


def test_backend_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that names its backend is not asked twice by the environment."""
    with pytest.raises(ValueError, match=r"one of .*reference, got 'fast'"):
        unimix_sample(zeros(1, 2, 3), zeros(1, 2), 0.01, backend="fast")
    monkeypatch.setenv("FASTDREAMER_KERNELS", "fast")
    index = unimix_sample(zeros(1, 2, 3), zeros(1, 2), 0.01, backend="reference").drawn
    assert index.tolist() == [[0, 0]]


def test_an_empty_name_in_the_environment_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDREAMER_KERNELS", "")
    index = unimix_sample(zeros(1, 2, 3), zeros(1, 2), 0.01).drawn
    assert index.tolist() == [[0, 0]]
