"""`python -m fastdreamer.dream RUN [--out FOLDER]`: what the world model of a run sees, and what it expects.

One episode is played. The model observes it all: the reconstruction. From every SEGMENT steps on it observes CONTEXT
steps only and then dreams on under the actions that were taken: the open loop. Images become dream.mp4, with truth,
reconstruction, open loop and its error side by side; numbers become dream.html, with reward and continue. What the
environment draws of the episode is episode-0.mp4.
"""

import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastdreamer.agent import Agent
from fastdreamer.batch import State
from fastdreamer.cli import Parser, fail
from fastdreamer.env import Env, Step
from fastdreamer.evaluate import EVAL, evaluation_camera
from fastdreamer.nets import concat_vectors
from fastdreamer.noise import Noise, Stream
from fastdreamer.spaces import Space
from fastdreamer.steps import ActStep
from fastdreamer.trained import load
from fastdreamer.video import Film, Video, colours

SEGMENT, CONTEXT = 50, 5
SCALE, GAP = 4, 4
"""Pixels of the video per pixel of an image, and between two images."""

Array = NDArray[np.generic]


class Recorded(NamedTuple):
    """T records of one episode: obs and prev_action (T, *shape) per key, reward and cont (T,) float32."""

    obs: dict[str, Array]
    prev_action: dict[str, Array]
    reward: Array
    cont: Array


class Seen(NamedTuple):
    """Per key (T, *shape) what the decoder shows, in the observation's own units; reward and cont (T,)."""

    obs: dict[str, Array]
    reward: Array
    cont: Array


def main(argv: list[str]) -> int:
    """The exit code: 0, or 2 where the run has no decoder, cannot be read or nothing be written."""
    parser = Parser("dream", "Show what the world model of a run sees and expects.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument("--steps", type=int, default=200, help="at most, of one episode, 200 by default")
    parser.add_argument("--seed", type=int, default=0, help="of the episode and of the dream, 0 by default")
    parser.add_argument("--out", type=Path, default=Path("dream"), help="a folder that is made, dream by default")
    words = parser.parse_args(argv)
    try:
        if words.steps < CONTEXT + 1:
            raise ValueError(f"--steps must be at least {CONTEXT + 1}, got {words.steps}")
        trained = load(words.run, seed=words.seed)
        agent, config = trained.agent, trained.config
        if not config.loss.decoder:
            raise ValueError(f"{words.run}: loss.decoder is 0: this run has no decoder to dream with")
        words.out.mkdir(parents=True, exist_ok=True)
        camera = evaluation_camera(config, 1, words.seed)
        with closing(camera.env) as env, closing(Film(camera, words.out)) as film:
            truth = record(agent, env, words.steps, words.seed, lambda step: film.add(step, [0]))
        seen, dreamed = reconstruct(agent, truth, words.seed)
        written = [*film.paths, *write(words.out, agent, truth, seen, dreamed)]
    except ValueError as error:
        fail(error)
    except ModuleNotFoundError as error:
        if error.name not in ("av", "plotly"):
            raise
        fail(f"the dream needs the package {error.name}: pip install {error.name}")
    except OSError as error:
        fail(f"--out {words.out}: cannot be written: {error.strerror or error}")
    print(f"{', '.join(map(str, written))}: {len(truth.reward)} steps, {CONTEXT} of every {SEGMENT} observed")
    return 0


def record(
    agent: Agent, env: Env, steps: int, seed: int, watch: Callable[[Step], None] = lambda step: None
) -> Recorded:
    """An episode of the sampling policy, or its first steps; `watch` is given each record."""
    act = ActStep(agent, env.num_envs, seed, EVAL)
    seen: list[Step] = []
    prev = [{key: value[0].numpy() for key, value in agent.initial(1).action.items()}]
    while len(seen) < steps:
        step = env.recv()
        if seen and step.is_first[0]:  # it was cut
            break
        seen.append(step)
        watch(step)
        if step.is_last[0]:
            break
        action = act(step)
        env.send(action)
        prev.append({key: value[0] for key, value in action.items()})
    return Recorded(
        {key: np.stack([step.obs[key][0] for step in seen]) for key in agent.world.obs},
        {key: np.stack([action[key] for action in prev[: len(seen)]]) for key in agent.world.act},
        np.array([step.reward[0] for step in seen], np.float32),
        np.array([not step.is_terminal[0] for step in seen], np.float32),
    )


@torch.no_grad()
def reconstruct(agent: Agent, truth: Recorded, seed: int) -> tuple[Seen, Seen]:
    """What the model makes of every record that it observes, and of those that it dreams."""
    world, length = agent.world, len(truth.reward)
    obs, prev_action = (
        {key: torch.from_numpy(value)[None] for key, value in table.items()} for table in (truth.obs, truth.prev_action)
    )
    is_first = torch.zeros(1, length, dtype=torch.bool)
    is_first[0, 0] = True
    uniform = Noise(seed, Stream.OBSERVE).uniform(1, length, world.dyn.dims.stoch)
    start = world.dyn.initial(1, agent.dtype, torch.device("cpu"))
    states, _, _ = world.observe(obs, start, prev_action, is_first, uniform)
    action = concat_vectors(prev_action, world.act, 2, squish=False)
    noise = Noise(seed, Stream.IMAGINE).uniform(1, length, world.dyn.dims.stoch)
    deter, stoch = states.deter.clone(), states.stoch.clone()
    for begin in range(0, length, SEGMENT):
        dreams = slice(begin + CONTEXT, min(begin + SEGMENT, length))
        if dreams.start < dreams.stop:
            last = State(states.deter[:, dreams.start - 1], states.stoch[:, dreams.start - 1])
            dream = world.dyn.follow(last, action[:, dreams], noise[:, dreams])
            deter[:, dreams], stoch[:, dreams] = dream.deter, dream.stoch.to(stoch.dtype)
    return _see(agent, states), _see(agent, State(deter, stoch))


def _see(agent: Agent, states: State) -> Seen:
    world, discount = agent.world, 1 - 1 / agent.config.discount_horizon
    onehot = F.one_hot(states.stoch.long(), world.dyn.dims.classes).to(states.deter.dtype).flatten(-2)
    shown = {key: _in_units(world.obs[key], value[0]) for key, value in world.dec(states.deter, onehot).items()}
    return Seen(shown, world.reward(states)[0].numpy(), (world.cont(states)[0] / discount).clamp(max=1).numpy())


def _in_units(space: Space, value: Tensor) -> Array:
    match space.kind:
        case "image":
            return (value.float() * 255).round().clamp(0, 255).byte().numpy()
        case "vector":
            return (value.float().sign() * torch.expm1(value.float().abs())).numpy()
        case "discrete":
            return value.argmax(-1).int().numpy()


def write(folder: Path, agent: Agent, truth: Recorded, seen: Seen, dreamed: Seen) -> list[Path]:
    """The files, one per image key, and one for everything else."""
    written = []
    for key, space in agent.world.obs.items():
        if space.kind == "image":
            path = folder / ("dream.mp4" if key == "image" else f"dream-{key.replace('/', '-')}.mp4")
            write_video(path, pictures(truth.obs[key], seen.obs[key], dreamed.obs[key]))
            written.append(path)
    path = folder / "dream.html"
    path.write_text(page(agent, truth, seen, dreamed), encoding="utf-8")
    return [*written, path]


def pictures(truth: Array, seen: Array, dreamed: Array) -> NDArray[np.uint8]:
    """(T, height, width, 3): truth, reconstruction, open loop, its error; a green bar where the open loop observes."""
    error = np.abs(dreamed.astype(np.int16) - truth.astype(np.int16)).astype(np.uint8)
    columns = [colours(part).repeat(SCALE, 1).repeat(SCALE, 2) for part in (truth, seen, dreamed, error)]
    length, height, width, _ = columns[0].shape
    picture = np.zeros((length, height + 2 * GAP, 4 * width + 5 * GAP, 3), np.uint8)
    for at, column in enumerate(columns):
        left = GAP + at * (width + GAP)
        picture[:, GAP : GAP + height, left : left + width] = column
    observes = np.arange(length) % SEGMENT < CONTEXT
    left = GAP + 2 * (width + GAP)
    picture[observes, :GAP, left : left + width] = (0, 255, 0)
    return picture


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]]) -> None:
    """Of pictures (height, width, 3)."""
    with closing(Video(path)) as video:
        for frame in frames:
            video.add(frame)


def page(agent: Agent, truth: Recorded, seen: Seen, dreamed: Seen) -> str:
    """Every number over the steps: as it was, reconstructed, and in the open loop; green where that observes."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    rows = {
        f"{key} {index}" if space.elements > 1 else key: [
            table.obs[key].reshape(len(truth.reward), -1)[:, index] for table in (truth, seen, dreamed)
        ]
        for key, space in agent.world.obs.items()
        if space.kind != "image"
        for index in range(space.elements)
    }
    rows |= {name: [getattr(table, name) for table in (truth, seen, dreamed)] for name in ("reward", "cont")}
    figure = make_subplots(rows=len(rows), cols=1, shared_xaxes=True, subplot_titles=list(rows))
    styles = (("truth", "#222222"), ("reconstruction", "#1f77b4"), ("open loop", "#d62728"))
    for row, values in enumerate(rows.values(), 1):
        for (name, color), value in zip(styles, values, strict=True):
            line = go.Scatter(y=value.tolist(), name=name, line={"color": color}, legendgroup=name, showlegend=row == 1)
            figure.add_trace(line, row=row, col=1)
    for begin in range(0, len(truth.reward), SEGMENT):
        figure.add_vrect(begin, begin + CONTEXT - 1, fillcolor="#2ca02c", opacity=0.2, line_width=0)
    figure.update_layout(title="A dream: observed where it is green, then imagined", height=220 * len(rows) + 120)
    return str(figure.to_html(include_plotlyjs=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
