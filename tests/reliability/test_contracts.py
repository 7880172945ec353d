"""R13: an environment that breaks gymnasium's contract is named in one line, at the first step that shows it."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import broken_envs
import numpy as np
import pytest
from broken_envs import STEPS

from fastdreamer import check_env
from fastdreamer.env import Env, EnvError, make_env

TESTS = Path(__file__).parents[1]
BAR = "R13 broken environments are named"
Bar = Callable[[str, bool], None]

KEYS = "the observation must be a dict with the keys ['class', 'eye', 'grid', 'pair', 'speed'], got "
SPEED = 'observation "speed" must be float32 of shape (2,), got '
STEP = "step() must return (observation, reward, terminated, truncated, info), got "
RESET = "reset() must return (observation, info), the interface of gymnasium, got "
TAKES = "its reset() must take seed and options, the interface of gymnasium"
PIXELS = "an image must be square with a side of 48, 64, ..., 256: choose that size in env.options, or set"
ALLOWED = "allowed: Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these; leave it out with"
ACTIONS = "allowed: Discrete, MultiDiscrete, MultiBinary, float Box with finite bounds, and Dict or Tuple of these"
BOUNDS = 'action "action" must have bounds low < high, finite and below 1e+06 in size, got '

STEPPED = {
    "class: float": 'observation "class" must be int64, got float64',
    "class: too high": 'observation "class" is 2, outside its space -1..1',
    "class: too low": 'observation "class" is -2, outside its space -1..1',
    "class: array": 'observation "class" must have shape (), got (1,)',
    "class: none": 'observation "class" must be int64 of shape (), got a NoneType',
    "grid: too high": 'observation "grid/1" is 2, outside its space 0..1',
    "grid: float": 'observation "grid/0" must be int64, got float64',
    "grid: shape": 'observation "grid" must have shape (2,), got (3,)',
    "grid: ragged": 'observation "grid" must be int64 of shape (2,), got a list',
    "pair: length": 'observation "pair" must be a tuple of 2 parts, got 1 parts',
    "pair: array": 'observation "pair" must be a tuple of 2 parts, got a ndarray',
    "pair: part": 'observation "pair/1" must have shape (1,), got (3,)',
    "speed: shape": 'observation "speed" must have shape (2,), got (3,)',
    "speed: scalar": 'observation "speed" must have shape (2,), got ()',
    "speed: complex": 'observation "speed" must be float32, got complex64',
    "speed: none": f"{SPEED}a NoneType",
    "speed: text": f"{SPEED}a str",
    "speed: dict": f"{SPEED}a dict",
    "speed: ragged": f"{SPEED}a list",
    "speed: objects": f"{SPEED}object",
    "speed: nan": 'observation "speed" is not finite (got nan)',
    "speed: infinite": 'observation "speed" is not finite (got -inf)',
    "speed: huge": 'observation "speed" is not finite (got inf)',
    "eye: width": 'observation "eye" must have shape (64, 64, 3), got (64, 48, 3)',
    "eye: channels first": 'observation "eye" must have shape (64, 64, 3), got (3, 64, 64)',
    "eye: float": 'observation "eye" must be uint8, got float32',
    "eye: int64": 'observation "eye" must be uint8, got int64',
    "eye: wraps": 'observation "eye" must be uint8, got 300',
    "more keys": f"{KEYS}the keys ['class', 'eye', 'grid', 'other', 'pair', 'speed']",
    "observation: none": f"{KEYS}a NoneType",
    "observation: array": f"{KEYS}a ndarray",
    "observation: fewer keys": f"{KEYS}the keys ['class', 'eye', 'grid', 'pair']",
    "reward: none": "reward must be a number, got None",
    "reward: vector": "reward must be a number, got array([0., 0.])",
    "reward: text": "reward must be a number, got 'high'",
    "reward: ragged": "reward must be a number, got [[1.0], [1.0, 2.0]]",
    "reward: complex": "reward must be a number, got 1j",
    "reward: nan": "reward is not finite (got nan)",
    "reward: infinite": "reward is not finite (got -inf)",
    "reward: huge": "reward is not finite (got inf)",
    "flag: array": "terminated must be a bool, got array([False, True])",
    "flag: none": "terminated must be a bool, got None",
    "flag: text": "terminated must be a bool, got 'False'",
    "flag: float": "terminated must be a bool, got 0.5",
    "step: four values": f"{STEP}4 values",
    "step: six values": f"{STEP}6 values",
    "step: list": f"{STEP}list",
    "step: observation": f"{STEP}dict",
    "step: nothing": f"{STEP}NoneType",
    "space: replaced": f"{KEYS}the keys ['speed']",
    "space: a key less": f"{KEYS}the keys ['class', 'eye', 'grid', 'pair']",
}
"""Of env 1, at its step STEPS + 1."""

AT_RESET = {
    "reset: bare": f"{RESET}dict",
    "reset: three values": f"{RESET}dict, dict, dict",
    "reset: info": f"{RESET}dict, NoneType",
    "reset: nothing": f"{RESET}NoneType",
    "reset: list": f"{RESET}list",
    "reset: shape": 'observation "speed" must have shape (2,), got (3,)',
}
"""Of env 1."""

MADE = {
    ("Spaces", "obs", "shape"): "its observation_space is (64, 64, 3), not a gymnasium Space",
    ("Spaces", "obs", "not square"): f'observation "image" is 64x80 pixels; {PIXELS} env.options.resize',
    ("Spaces", "obs", "side"): f'observation "image" is 84x84 pixels; {PIXELS} env.options.resize',
    ("Spaces", "obs", "small"): f'observation "image" is 40x40 pixels; {PIXELS} env.options.resize',
    ("Spaces", "obs", "stack"): 'observation "vector" is uint8 of shape (4, 64, 64, 3); an image has 2 or 3 axes',
    ("Spaces", "obs", "text"): f'observation "says" is a Text; {ALLOWED} env.options.keys',
    ("Spaces", "obs", "sequence"): f'observation "vector" is a Sequence; {ALLOWED} env.options.keys',
    ("Spaces", "obs", "no elements"): 'observation "vector" has shape (0,), no elements; leave it out with'
    " env.options.keys",
    ("Spaces", "obs", "no keys"): "the observation space is empty",
    ("Spaces", "obs", "clash"): 'two parts of its space have the same flat key "a/b"',
    ("Spaces", "act", "count"): "its action_space is 4, not a gymnasium Space",
    ("Spaces", "act", "no elements"): f"{BOUNDS}no elements",
    ("Spaces", "act", "no classes"): 'action "action" has shape (0,), no elements',
    ("Spaces", "act", "no keys"): "the action space is empty",
    ("Spaces", "act", "text"): f'action "action" is a Text; {ACTIONS}',
    ("Spaces", "act", "integers"): f'action "move" is a int32 Box; {ACTIONS}',
    ("Spaces", "act", "unbounded"): f"{BOUNDS}-inf..inf",
    ("Spaces", "act", "one point"): f"{BOUNDS}1..1",
    ("NoObservationSpace", "", ""): "its observation_space is None, not a gymnasium Space",
    ("NoActionSpace", "", ""): "its action_space is None, not a gymnasium Space",
    ("OldReset", "", ""): f"{TAKES}: got an unexpected keyword argument 'seed'",
    ("nothing", "", ""): "nothing returned a NoneType, not a gymnasium.Env",
    ("one_by_one", "", ""): "one_by_one returned a list, not a gymnasium.Env",
}
"""Where environments are made; no copy is to blame, so none is named."""

EVERY = [
    *[("Broken", "how", how, f"env 1: {message}", STEPS + 1) for how, message in STEPPED.items()],
    *[("Broken", "how", how, f"env 1: {message}", 0) for how, message in AT_RESET.items()],
    *[(*made, message, 0) for made, message in MADE.items()],
]
NAMES = [name if option == "how" else f"{factory} {option} {name}".strip() for factory, option, name, *_ in EVERY]
"""Factory, option, its value, the message, and how many records come before it."""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TESTS))


def step(env: Env) -> None:
    """One step, of actions that are all zero."""
    spaces = env.act_space.items()
    env.send({key: np.zeros((env.num_envs, *space.shape), np.int32) for key, space in spaces})


def test_every_way_to_break_is_tried() -> None:
    tables = (broken_envs.VALUES, broken_envs.WHOLE, broken_envs.REWARDS, broken_envs.FLAGS, broken_envs.TRANSITIONS)
    assert {how for how in STEPPED if not how.startswith("space")} == {how for table in tables for how in table}
    assert AT_RESET.keys() == broken_envs.RESETS.keys()
    for option, table in (("obs", broken_envs.OBSERVATIONS), ("act", broken_envs.ACTIONS)):
        assert {name for _, of, name in MADE if of == option} == table.keys()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factory, option, name, message, records", EVERY, ids=NAMES)
def test_it_is_named(bar: Bar, factory: str, option: str, name: str, message: str, records: int) -> None:
    id, seen, said = f"broken_envs:{factory}", 0, "nothing"
    try:
        env = make_env(id, num_envs=2, seed=0, options={option: name} if option else {})
        env.recv()
        while seen <= STEPS + 1:
            seen += 1
            step(env)
            env.recv()
    except EnvError as error:
        said = str(error)
    held = (said, seen) == (f"env.id {id}: {message}", records)
    bar(BAR, held)
    assert held, f"after {seen} records: {said}"


@pytest.mark.parametrize("factory, option, name, message, records", EVERY, ids=NAMES)
def test_check_env_says_the_same(
    capsys: pytest.CaptureFixture[str], bar: Bar, factory: str, option: str, name: str, message: str, records: int
) -> None:
    id = f"broken_envs:{factory}"
    options = [f"--env.options.{option}={name}"] if option else []
    with pytest.raises(SystemExit) as caught:
        check_env.main([id, "--env.num_envs=2", *options])
    said = capsys.readouterr().err
    held = (caught.value.code, said) == (2, f"fastdreamer: error: env.id {id}: {message}\n")
    bar(f"{BAR} by check_env", held)
    assert held, said


def test_copies_that_differ(bar: Bar) -> None:
    with pytest.raises(EnvError) as caught:
        make_env("broken_envs:Differing", num_envs=2, seed=0)
    held = re.fullmatch("env.id broken_envs:Differing: its copies cannot be run side by side: .+", str(caught.value))
    bar(BAR, held is not None)
    assert held


def test_what_is_right_is_not_refused() -> None:
    for factory in ("Broken", "Spaces"):
        env = make_env(f"broken_envs:{factory}", num_envs=2, seed=0)
        assert env.recv().is_first.all()
        for _ in range(STEPS + 2):
            step(env)
            record = env.recv()
            assert record.reward.tolist() == [1, 1] and not record.is_last.any()
            assert record.obs["class"].tolist() == [2, 2] and record.obs["pair/0"].tolist() == [1, 1]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_records_keep_what_the_environment_overwrites(bar: Bar, vectorization: str) -> None:
    env = make_env("broken_envs:Reused", num_envs=2, seed=0, options={"vectorization": vectorization})
    records = [env.recv().obs]
    for _ in range(4):
        step(env)
        records.append(env.recv().obs)
    env.close()
    assert env.obs_space["floats"].kind == "vector", "only uint8 is a picture"
    held = all(array.shape[0] == 2 and (array == at).all() for at, obs in enumerate(records) for array in obs.values())
    bar("R13 records keep their values", held)
    assert held


@pytest.mark.parametrize("how", ["speed: huge", "reward: ragged"])
def test_a_process_prints_that_line_alone_and_needs_no_torch(how: str) -> None:
    program = (
        "import sys\nfrom fastdreamer import check_env\n"
        "try: check_env.main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    )
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), str(TESTS.parent / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", program, "broken_envs:Broken", "--env.num_envs=2", f"--env.options.how={how}"],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout.splitlines()[-1] == "False"
    assert done.stderr == f"fastdreamer: error: env.id broken_envs:Broken: env 1: {STEPPED[how]}\n"
