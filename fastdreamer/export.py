"""`python -m fastdreamer.export RUN [--out FOLDER]`: the policy's step, as policy.onnx and policy.pt2.

    obs_KEY, is_first, deter, stoch, prev_KEY, observe, noise   ->   action_KEY, next_deter, next_stoch, next_KEY

One episode (N = 1) in float32. What goes out as next_* comes in again at the next step: deter and stoch as they are,
next_KEY as prev_KEY; zeros at first, where is_first is true. observe (1, S) is uniform in [0, 1); noise (1, elements)
too for classes, standard normal for continuous actions. Both files compute what `fastdreamer.load(run).act` does, by
the same functions; the command plays a thousand steps with each beside it and says how far they are apart.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastdreamer.agent import ActNoise, ActState, Agent
from fastdreamer.batch import State
from fastdreamer.cli import Parser, fail
from fastdreamer.spaces import Space
from fastdreamer.trained import load
from fastdreamer_kernels import forced

STEPS, EPISODE = 1000, 50
"""Of the comparison, and between its resets."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
Arrays = dict[str, NDArray[np.generic]]
Policy = Callable[[Arrays], Arrays]


class Difference(NamedTuple):
    """Between two policies: the largest of a continuous action, and how often classes were others."""

    action: float
    classes: int


class PolicyStep(nn.Module):
    """`Agent.act` on flat, named tensors, and the actions as an environment takes them."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.agent, self.act = agent, agent.world.act

    def forward(
        self, obs: dict[str, Tensor], is_first: Tensor, deter: Tensor, stoch: Tensor, prev: dict[str, Tensor],
        observe: Tensor, noise: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        state = ActState(State(deter, stoch), prev)
        action, after = self.agent.act(obs, is_first, state, ActNoise(observe, noise))
        executed = [_executed(self.act[key], value) for key, value in action.items()]
        return *executed, after.world.deter, after.world.stoch.int(), *action.values()


def main(argv: list[str]) -> int:
    """The exit code: 0, or 2 where the run cannot be read, a package is missing or nothing be written."""
    parser = Parser("export", "Write the policy of a run as ONNX and as a torch.export package.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument("--out", type=Path, default=Path("policy"), help="a folder that is made, policy by default")
    words = parser.parse_args(argv)
    try:
        agent = load(words.run).agent
        if agent.dtype != torch.float32:
            fail("model.precision must be auto or float32 for an export, got bfloat16")
        words.out.mkdir(parents=True, exist_ok=True)
        policies = export(agent, words.out)
    except ValueError as error:
        fail(error)
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        fail(f"the export needs the package {error.name}: pip install {' '.join(PACKAGES)}")
    except OSError as error:
        fail(f"--out {words.out}: cannot be written: {error.strerror or error}")
    for name, policy in policies.items():
        found = difference(agent, policy)
        size = sum(path.stat().st_size for path in words.out.glob(f"{name}*"))
        print(
            f"{words.out / name} ({size / 1e6:.1f} MB): {STEPS} steps, actions differ by at most {found.action:.1e},"
            f" classes {found.classes} times"
        )
    return 0


def export(agent: Agent, folder: Path) -> dict[str, Policy]:
    """Writes both files; name -> what it computes, by the names of its inputs and outputs.

    Raises ModuleNotFoundError where a package for ONNX is missing, OSError where nothing can be written.
    """
    import onnxruntime

    step, example = PolicyStep(agent).eval(), example_inputs(agent)
    inputs, outputs = list(named_inputs(agent)), output_names(agent)
    with forced("reference"), _quiet(), torch.no_grad():
        program = torch.export.export(step, example)
        torch.export.save(program, folder / "policy.pt2")
        torch.onnx.export(
            program, example, folder / "policy.onnx", dynamo=True, input_names=inputs, output_names=outputs
        )
        module = torch.export.load(folder / "policy.pt2").module()
    session = onnxruntime.InferenceSession(folder / "policy.onnx", providers=["CPUExecutionProvider"])

    def run_onnx(feed: Arrays) -> Arrays:
        return dict(zip(outputs, session.run(outputs, feed), strict=True))

    def run_torch(feed: Arrays) -> Arrays:
        results = module(*unflatten(agent, {name: torch.from_numpy(value) for name, value in feed.items()}))
        return {name: value.numpy() for name, value in zip(outputs, results, strict=True)}

    return {"policy.onnx": run_onnx, "policy.pt2": run_torch}


def named_inputs(agent: Agent) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> shape and type of every input, in the order of `PolicyStep.forward`."""
    dims, pol = agent.world.dyn.dims, agent.behavior.pol
    elements = sum(key.elements for key in pol.keys)
    return {
        **{f"obs_{key}": ((1, *space.shape), space.dtype) for key, space in agent.world.obs.items()},
        "is_first": ((1,), "bool"),
        "deter": ((1, dims.deter), "float32"),
        "stoch": ((1, dims.stoch), "int32"),
        **{f"prev_{key}": ((1, *space.shape), space.dtype) for key, space in pol.spaces.items()},
        "observe": ((1, dims.stoch), "float32"),
        "noise": ((1, elements), "float32"),
    }


def output_names(agent: Agent) -> list[str]:
    """Of what `PolicyStep.forward` returns, in its order."""
    keys = list(agent.behavior.pol.spaces)
    return [*(f"action_{key}" for key in keys), "next_deter", "next_stoch", *(f"next_{key}" for key in keys)]


def example_inputs(agent: Agent) -> tuple[object, ...]:
    """Zeros."""
    inputs = named_inputs(agent).items()
    return unflatten(agent, {name: torch.zeros(shape, dtype=getattr(torch, kind)) for name, (shape, kind) in inputs})


def unflatten(agent: Agent, feed: dict[str, Tensor]) -> tuple[object, ...]:
    """The arguments of `PolicyStep.forward` out of tensors by name."""
    obs = {key: feed[f"obs_{key}"] for key in agent.world.obs}
    prev = {key: feed[f"prev_{key}"] for key in agent.behavior.pol.spaces}
    return obs, feed["is_first"], feed["deter"], feed["stoch"], prev, feed["observe"], feed["noise"]


def difference(agent: Agent, policy: Policy, seed: int = 0) -> Difference:
    """How far `policy` is from `Agent.act` over STEPS recurrent steps of random observations, with resets."""
    rng, act = np.random.default_rng(seed), agent.behavior.pol
    named, outputs, step = named_inputs(agent), output_names(agent), PolicyStep(agent).eval()
    carried = [{name: np.zeros(shape, kind) for name, (shape, kind) in named.items()} for _ in range(2)]
    largest, others = 0.0, 0
    for at in range(STEPS):
        fresh = {f"obs_{key}": _random(space, rng) for key, space in agent.world.obs.items()}
        fresh["is_first"] = np.array([at % EPISODE == 0])
        fresh["observe"] = rng.random(named["observe"][0], np.float32)
        draws = [rng.random if key.classes else rng.standard_normal for key in act.keys]
        noise = [draw((1, key.elements), np.float32) for draw, key in zip(draws, act.keys, strict=True)]
        fresh["noise"] = np.concatenate(noise, 1)
        theirs, ours = (feed | fresh for feed in carried)
        with torch.no_grad():
            results = step(*unflatten(agent, {name: torch.from_numpy(value) for name, value in ours.items()}))
        found = policy(theirs), {name: value.numpy() for name, value in zip(outputs, results, strict=True)}
        for key, space in act.spaces.items():
            apart = np.abs(found[0][f"action_{key}"].astype(np.float64) - found[1][f"action_{key}"])
            others += int((apart > 0).sum()) if space.classes else 0
            largest = max(largest, 0.0 if space.classes else float(apart.max()))
        carried = [_carry(result, list(act.spaces)) for result in found]
    return Difference(largest, others)


def _carry(result: Arrays, keys: list[str]) -> Arrays:
    carry = {"deter": result["next_deter"], "stoch": result["next_stoch"]}
    return carry | {f"prev_{key}": result[f"next_{key}"] for key in keys}


def _executed(space: Space, value: Tensor) -> Tensor:
    """The action within its bounds; a copy, for one tensor cannot be two outputs."""
    if space.kind == "discrete":
        return value.clone()
    low, high = (torch.tensor(bound).reshape(space.shape) for bound in (space.low, space.high))
    return low + (value.clamp(-1, 1) + 1) / 2 * (high - low)


def _random(space: Space, rng: np.random.Generator) -> NDArray[np.generic]:
    shape = (1, *space.shape)
    match space.kind:
        case "image":
            return rng.integers(256, size=shape, dtype=np.uint8)
        case "vector":
            return rng.standard_normal(shape, np.float32)
        case "discrete":
            return rng.integers(space.classes, size=shape, dtype=np.int32)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's words about its progress, its own insides and packages that it does not need."""
    logging.disable(logging.WARNING)
    stdout = sys.stdout
    try:
        with open(os.devnull, "w") as sys.stdout, warnings.catch_warnings(action="ignore"):
            yield
    finally:
        sys.stdout = stdout
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
