"""Returns, the return normaliser and the slow critic against the official arrays."""

import pytest
import torch
from golden_arrays import FORWARD, Arrays, Golden, Tolerance
from torch import Tensor, nn

from fastdreamer.behavior import RETURN_PERCENTILES, ReturnNormalizer
from fastdreamer.optim import LaProp
from fastdreamer_kernels import lambda_return
from fastdreamer_kernels.laprop_agc.reference import SLOW_RATE

STATISTICS = Tolerance(2e-4, 1e-6)
"""The forward tolerance with less absolute room: early statistics are near 1e-3."""
SLOW = Tolerance(2e-6, 1e-6)
"""Some units in the last place of values near 25, of which one call moves a few percent."""
EVERY3_RATE, EVERY3 = 0.1, 3


@pytest.mark.parametrize("case", ["imag", "replay"])
def test_lambda_returns(golden: Golden, case: str) -> None:
    arrays = golden.open("lambda_return.npz")
    read = {key: arrays.read(f"{case}:{key}") for key in ("last", "term", "rew", "val", "boot", "disc", "lam")}
    # `val` is the column that the official function takes and never uses: returns bootstrap from `boot`.
    cont = (1 - read["term"].float()) * read["disc"].float()
    lam = (1 - read["last"].float()) * read["lam"].float()
    arrays.compare(f"{case}:ret", lambda_return(read["rew"], cont, read["boot"], lam), FORWARD)


def test_return_normalizer(golden: Golden) -> None:
    arrays = golden.open("normalize.npz")
    normalizer = ReturnNormalizer(enabled=True)
    rows = []
    for x in arrays.read("x"):
        normalizer.update(x)
        rows.append(torch.stack([*normalizer.stats(), normalizer.lo, normalizer.hi]))
    offset, scale, lo, hi = torch.stack(rows, 1)
    arrays.compare_group("ret_default:", {"offset": offset, "scale": scale, "lo": lo, "hi": hi}, STATISTICS)


def test_no_normalizer(golden: Golden) -> None:
    arrays = golden.open("normalize.npz")
    normalizer = ReturnNormalizer(enabled=False)
    rows = []
    for x in arrays.read("x"):
        normalizer.update(x)
        rows.append(torch.stack(normalizer.stats()))
    offset, scale = torch.stack(rows, 1)
    arrays.compare_group("none:", {"offset": offset, "scale": scale}, STATISTICS)


def running(values: Tensor, rate: float) -> Tensor:
    """Exponential moving averages (N, ...) from zero."""
    average, averages = torch.zeros_like(values[0]), []
    for value in values:
        average = average + rate * (value - average)
        averages.append(average)
    return torch.stack(averages)


@pytest.mark.parametrize(
    "variant, rate, limit, debias", [("perc_debias", 0.01, 1e-8, True), ("perc_fast", 0.3, 1.0, False)]
)
def test_percentiles_that_no_preset_uses(golden: Golden, variant: str, rate: float, limit: float, debias: bool) -> None:
    arrays = golden.open("normalize.npz")
    x = arrays.read("x").flatten(1)
    points = torch.quantile(x, torch.tensor(RETURN_PERCENTILES), dim=1).T
    lo, hi = running(points, rate).unbind(1)
    corr = running(torch.ones(len(x)), rate)
    offset, upper = (lo / corr, hi / corr) if debias else (lo, hi)
    expected = {"lo": lo, "hi": hi, "offset": offset, "scale": (upper - offset).clamp(min=limit)}
    arrays.compare_group(f"{variant}:", expected | ({"corr": corr} if debias else {}), STATISTICS)


def test_mean_and_std_that_no_preset_uses(golden: Golden) -> None:
    arrays = golden.open("normalize.npz")
    x = arrays.read("x").flatten(1)
    mean, squares = running(x.mean(1), 0.01), running(x.square().mean(1), 0.01)
    corr = running(torch.ones(len(x)), 0.01)
    offset = mean / corr
    scale = (squares / corr - offset.square()).clamp(min=0).sqrt().clamp(min=1e-8)
    expected = {"mean": mean, "sqrs": squares, "corr": corr, "offset": offset, "scale": scale}
    arrays.compare_group("meanstd_debias:", expected, STATISTICS)


def read_sources(arrays: Arrays, variant: str, rate: float) -> tuple[Tensor, Tensor]:
    """The source at every call, and the slow value before the first."""
    arrays.read(f"{variant}:start")  # empty: the start is what the first average began from
    source, slow = arrays.read(f"{variant}:source"), arrays.read(f"{variant}:slow")
    return source, (slow[0] - rate * source[0]) / (1 - rate)


def test_slow_critic(golden: Golden) -> None:
    arrays = golden.open("slow_target.npz")
    source, start = read_sources(arrays, "default", SLOW_RATE)
    fast, slow = nn.Parameter(torch.zeros_like(start)), start.clone()
    optimizer = LaProp({"bias": fast}, lr=0.0, warmup=0, agc=0.3, slow={"bias": slow})
    history = []
    for value in source:
        fast.data.copy_(value)
        fast.grad = torch.zeros_like(value)
        optimizer.step()
        history.append(slow.clone())
    arrays.compare("default:slow", torch.stack(history), SLOW)
    arrays.compare("default:count", torch.tensor(len(history)), FORWARD)


def test_slow_critic_that_moves_every_third_call(golden: Golden) -> None:
    """The product moves it at every call; here the first call moves it and the next two do not, by formula."""
    arrays = golden.open("slow_target.npz")
    source, value = read_sources(arrays, "every3", EVERY3_RATE)
    history = []
    for call, fast in enumerate(source):
        if call % EVERY3 == 0:
            value = (1 - EVERY3_RATE) * value + EVERY3_RATE * fast
        history.append(value)
    arrays.compare("every3:slow", torch.stack(history), SLOW)
    arrays.compare("every3:count", torch.tensor(len(history)), FORWARD)
