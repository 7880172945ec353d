"""An environment is checked without training: what it is like, or the one line that says what is wrong with it."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastdreamer import check_env


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(check_env, "STEPS", 60)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert check_env.main([*arguments, "--env.num_envs=2"]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("id", ["CartPole-v1", "gym:CartPole-v1"])
def test_what_an_environment_is_like(capsys: pytest.CaptureFixture[str], id: str) -> None:
    lines = said(capsys, id)
    assert lines[:3] == [
        "observation vector: vector 4", "action action: discrete one of 2 classes",
        "60 steps of 2 environments, rewards from 1 to 1",
    ]  # fmt: skip
    episodes, _, mean = lines[3].partition(" episodes, mean return ")
    assert 2 <= int(episodes) <= 13 and 8 < float(mean) < 60
    assert lines[4] == f"ok: python -m fastdreamer.train --env.id {id}"


def test_continuous_actions_and_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "gym:Pendulum-v1")
    assert lines[:2] == ["observation vector: vector 3", "action action: vector 1"]
    assert lines[3] == "no episode ended"


BROKEN = {
    "shape": 'env 1: observation "speed" must have shape (2,), got (3,)',
    "dtype": 'env 1: observation "class"',
    "key": "env 1: the observation must be a dict with the keys ['class', 'speed'], got the keys ['class']",
    "nan": 'env 1: observation "speed" is not finite (got nan)',
    "huge": 'env 1: observation "speed" is not finite (got inf)',
    "class": 'env 1: observation "class"',
    "reward nan": "env 1: reward is not finite (got nan)",
    "reward none": "reward",
    "space": 'observation "speed" must have shape (2,), got (4,)',
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str], how: str) -> None:
    with pytest.raises(SystemExit) as caught:
        said(capsys, "fake_envs:Bad", f"--env.options.how={how}")
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    assert error.startswith("fastdreamer: error: env.id fake_envs:Bad: ") and BROKEN[how] in error


@pytest.mark.parametrize("arguments", [[], ["--env.num_envs=2"]])
def test_an_environment_must_be_named(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        check_env.main(arguments)
    assert caught.value.code == 2 and "name an environment" in capsys.readouterr().err


def test_it_needs_no_torch() -> None:
    program = (
        "import sys; from fastdreamer import check_env; check_env.STEPS = 5; "
        "check_env.main(['CartPole-v1']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
