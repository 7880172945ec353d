"""What could take its process down, tried in a process of its own: rendering, leaving while environments step."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastdreamer.env import make_env
from fastdreamer.presets import PIXELS

NO_DRIVER = "no EGL driver is installed, which rendering needs: apt install libegl-mesa0 libgl1-mesa-dri"
VENDORS = [Path(folder) / "glvnd/egl_vendor.d" for folder in ("/usr/share", "/etc", "/usr/local/share")]

RENDER = """
import json, sys
from env_rollout import play
from fastdreamer.env import EnvError, make_env
id, options = sys.argv[1], json.loads(sys.argv[2])
try:
    env = make_env(id, num_envs=2, seed=0, options=options)
except EnvError as error:
    print(json.dumps(str(error)))
    sys.exit()
rows = play(env, 5)
images = [record.obs["image"] for row in rows for record in row]
shapes = {(*image.shape, str(image.dtype)) for image in images}
contrast = min(float(image.std()) for image in images)
ends = [(record.is_last, record.is_terminal) for record in rows[0]]
print(json.dumps([sorted(env.obs_space), sorted(shapes), contrast, len({image.tobytes() for image in images}), ends]))
"""
"""Prints what two environments show in five records, or why they cannot be made."""

LEAVE = """
import json, sys
import numpy as np
from fastdreamer.env import make_env
id, options, way = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
if __name__ == "__main__":
    env = make_env(id, num_envs=3, seed=0, options=options)
    if way != "before the first recv":
        env.recv()
        env.send({"action": np.zeros(3, int)})
    if way != "without close":
        env.close()
    print("left")
"""


def run_python(
    code: str, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **(environment or {}), "PYTHONPATH": path},
    )


@pytest.mark.parametrize("id", ["WalkerWalk-v1", "QuadrupedWalk-v1"])
def test_pixels_show_something_or_the_missing_driver_is_named(id: str) -> None:
    done = run_python(RENDER, id, json.dumps({**PIXELS, "max_episode_steps": 3}))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    if not any(folder.is_dir() and any(folder.iterdir()) for folder in VENDORS):
        assert answer.startswith(f"env.id {id}: {NO_DRIVER}")
        return
    keys, shapes, contrast, different, ends = answer
    assert keys == ["image"] and shapes == [[64, 64, 3, "uint8"]]
    assert contrast > 5 and different > 5
    assert ends == [[False, False]] * 3 + [[True, False], [False, False]]


@pytest.mark.parametrize("options", [PIXELS, {"render_mode": "rgb_array"}])
def test_without_a_driver_rendering_is_refused_in_one_line(options: dict[str, object]) -> None:
    nowhere = {"__EGL_VENDOR_LIBRARY_DIRS": "/nonexistent", "__EGL_VENDOR_LIBRARY_FILENAMES": ""}
    done = run_python(RENDER, "WalkerWalk-v1", json.dumps(options), environment=nowhere)
    assert done.returncode == 0, done.stderr
    error = json.loads(done.stdout)
    assert error.startswith(f"env.id WalkerWalk-v1: {NO_DRIVER}") and "\n" not in error


@pytest.mark.parametrize("way", ["close right after send", "without close", "before the first recv"])
@pytest.mark.parametrize("id, options", [("Pong-v5", {"resize": 64}), ("gym:CartPole-v1", {})])
def test_leaving_while_environments_step(id: str, options: dict[str, object], way: str) -> None:
    done = run_python(LEAVE, id, json.dumps(options), way)
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr


def test_processes_end_in_silence_where_nobody_takes_their_answer(capfd: pytest.CaptureFixture[str]) -> None:
    env = make_env("fake_envs:Counter", num_envs=2, seed=0, options={"vectorization": "async"})
    step = env.recv()
    env.send({"action": np.zeros(len(step.reward), np.int32)})
    time.sleep(0.5)  # their answers lie in the pipes
    env.close()
    assert capfd.readouterr().err == ""
