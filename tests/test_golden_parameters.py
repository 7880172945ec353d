"""Names, shapes, counts and initial values of all parameters against the official tables."""

import math

import pytest
import torch
from golden_arrays import EXACT, Golden, Tolerance
from golden_modules import official_layout, official_names
from torch import Tensor, nn

from fastdreamer.agent import Agent
from fastdreamer.config import LossConfig, ModelConfig
from fastdreamer.nets import STAGES
from fastdreamer.noise import Noise, Stream
from fastdreamer.spaces import Space, Spaces

COUNTS, SHAPES, STATS = "param_counts.csv", "param_shapes.csv", "init_stats_size12m.csv"
NETWORKS = ("enc", "dyn", "dec", "rew", "con", "pol", "val")
ACTING = ("enc", "dyn", "dec", "pol")
"""What the official code copies to its actors: the column policy_subset."""
WALKER: Spaces = {"orientations": Space("vector", (14,)), "height": Space("vector"), "velocity": Space("vector", (9,))}
TORQUES: Spaces = {"action": Space("vector", (6,))}


def image(side: int, channels: int) -> Spaces:
    return {"image": Space("image", (side, side, channels))}


def buttons(classes: int) -> Spaces:
    return {"action": Space("discrete", (), classes)}


TASKS = {
    "atari100k_6act_64rgb": (image(64, 3), buttons(6)),
    "atari_18act_96gray": (image(96, 1), buttons(18)),
    "crafter_17act_64rgb": (image(64, 3), buttons(17)),
    "dmc_vision_walker_6act_64rgb": (image(64, 3), TORQUES),
    "dmc_proprio_walker": (WALKER, TORQUES),
    "procgen_15act_96rgb": (image(96, 3), buttons(15)),
}


def build(size: str, task: str) -> dict[str, nn.Parameter]:
    """Every trained parameter by its official name, without memory."""
    obs, act = TASKS[task]
    with torch.device("meta"):
        agent = Agent(obs, act, ModelConfig(size=size), LossConfig(), torch.float32)  # type: ignore[arg-type]  # from a file
    return agent.official_parameters()


@pytest.mark.parametrize("task", TASKS)
def test_counts_of_every_size(golden: Golden, task: str) -> None:
    """Per network, and of the networks that the official code copies to its actors."""
    rows = [
        row for row in golden.read_table(COUNTS, "task", "size", "total", *NETWORKS, "policy_subset") if row[0] == task
    ]
    assert rows, task
    for _, size, *official in rows:
        params = build(size, task)
        counts = {net: sum(p.numel() for name, p in params.items() if name.startswith(f"{net}/")) for net in NETWORKS}
        actual = [sum(p.numel() for p in params.values()), *counts.values(), sum(counts[net] for net in ACTING)]
        golden.compare(
            f"{COUNTS}: {size} {task}", torch.tensor(actual), torch.tensor([int(n) for n in official]), EXACT
        )


def test_every_task_of_the_tables_is_known(golden: Golden) -> None:
    named = {task for table in (COUNTS, SHAPES) for (task,) in golden.read_table(table, "task")}
    assert named == set(TASKS)


def test_names_and_shapes(golden: Golden) -> None:
    tables: dict[tuple[str, str], dict[str, tuple[str, str, str]]] = {}
    for size, task, name, *rest in golden.read_table(SHAPES, "size", "task", "name", "shape", "count", "dtype"):
        tables.setdefault((size, task), {})[name] = (rest[0], rest[1], rest[2])
    for (size, task), official in tables.items():
        params = build(size, task)
        assert sorted(params) == sorted(official), (size, task)
        for name, (shape, count, dtype) in official.items():
            parameter, what = params[name], f"{SHAPES}: {size} {task} {name}"
            golden.compare(what, torch.tensor(official_layout(parameter).shape), parse_shape(shape), EXACT)
            golden.compare(what, torch.tensor(parameter.numel()), torch.tensor(int(count)), EXACT)
            assert parameter.dtype == getattr(torch, dtype), name


def parse_shape(text: str) -> Tensor:
    return torch.tensor([int(length) for length in text.split("x")])


def test_initial_values(golden: Golden) -> None:
    """Mean, spread and bound of every tensor; both sides are samples, so small tensors have wide limits."""
    columns = ("name", "shape", "fan_in", "mean", "std", "absmax", "std_times_sqrt_fan", "absmax_times_sqrt_fan")
    table = golden.read_table(STATS, *columns)
    agent = initialized({name: parse_shape(shape).tolist() for name, shape, *_ in table})
    params = agent.official_parameters() | official_names(agent.behavior.slowval, "slowval/")
    assert sorted(params) == sorted(row[0] for row in table)
    for name, shape, fan_in, *official in table:
        value = official_layout(params[name].detach())
        fan = math.sqrt(float(fan_in)) if fan_in else 1.0
        std, largest = value.std(correction=0), value.abs().max()
        spread, bound, elements = float(official[1]), float(official[2]), value.numel()
        golden.compare(f"{name}: shape", torch.tensor(value.shape), parse_shape(shape), EXACT)
        # Four standard errors of the difference of two samples of a normal that is cut at two deviations.
        mean_error, std_error = 5.7 * spread / elements**0.5, 3.3 / elements**0.5
        bound_error = 50 / elements if spread else 0.0  # a constant is exact
        golden.compare(f"{name}: mean", value.mean(), torch.tensor(float(official[0])), Tolerance(1e-3, mean_error))
        golden.compare(f"{name}: std", std, torch.tensor(spread), Tolerance(std_error, 1e-6))
        golden.compare(f"{name}: largest", largest, torch.tensor(bound), Tolerance(bound_error, 1e-6))
        if official[3]:
            scaled, scaled_bound = (torch.tensor(float(text)) for text in official[3:])
            golden.compare(f"{name}: std x fan", std * fan, scaled, Tolerance(std_error, 1e-4))
            golden.compare(f"{name}: largest x fan", largest * fan, scaled_bound, Tolerance(bound_error, 1e-4))


def initialized(shapes: dict[str, list[int]]) -> Agent:
    """A fresh agent of the table's spaces: an image, a vector, a discrete and a continuous action."""
    side = 2 ** len(STAGES) * math.isqrt(shapes["dec/sp0/bias"][0] // shapes["dec/spnorm/scale"][0])
    vectors = [name.split("/")[2] for name in shapes if name.startswith("dec/vec/") and name.endswith("pred/bias")]
    obs = image(side, shapes["dec/imgout/bias"][0])
    obs |= {key: Space("vector", tuple(shapes[f"dec/vec/{key}/pred/bias"])) for key in vectors}
    act: Spaces = {}
    for name in shapes:
        if name.startswith("pol/head/") and name.endswith("logits/bias"):
            act[name.split("/")[2]] = Space("discrete", (), shapes[name][0])
        elif name.startswith("pol/head/") and name.endswith("mean/bias"):
            act[name.split("/")[2]] = Space("vector", tuple(shapes[name]))
    agent = Agent(obs, act, ModelConfig(size="size12m"), LossConfig(), torch.float32)
    agent.initialize(Noise(0, Stream.INIT))
    return agent
