"""Videos have the pictures of their episodes, each at its place, and what cannot be seen is said."""

from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from picture_envs import Clock
from test_trained import saved_training, tiny_config

from fastdreamer.evaluate import evaluate, evaluation_camera, evaluation_env, film, main
from fastdreamer.trained import load
from fastdreamer.video import Video, colours


def read_video(path: Path) -> NDArray[np.int64]:
    """(T, height, width, 3)."""
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(np.int64)


def test_pictures_keep_their_order_and_odd_sides_get_a_line_of_black(tmp_path: Path) -> None:
    video = Video(tmp_path / "a.mp4")
    for at in range(12):
        video.add(np.full((31, 41, 3), 20 * at, np.uint8))
    with pytest.raises(ValueError, match=r"one size, got 42x30 after 42x32"):
        video.add(np.zeros((30, 42, 3), np.uint8))
    video.close()
    pictures = read_video(tmp_path / "a.mp4")
    assert pictures.shape == (12, 32, 42, 3)
    assert np.abs(pictures[:, 4:28, 4:38].mean((1, 2, 3)) - 20 * np.arange(12)).max() < 3


def test_colours_are_the_newest_three_or_one_thrice() -> None:
    stack = np.arange(2 * 2 * 6, dtype=np.uint8).reshape(2, 2, 6)
    assert colours(stack)[0, 0].tolist() == [3, 4, 5]
    assert colours(stack[..., :1])[1, 1].tolist() == [18, 18, 18]
    assert colours(stack[..., :2])[0, 1].tolist() == [7, 7, 7]


@pytest.mark.parametrize("name, size", [("Clock", (240, 240)), ("Drawn", (32, 42))])
def test_a_film_is_of_every_episode_that_counts(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    """Of what an environment draws, or else of the image that it observes, from the reset to the last step."""
    saved_training(tmp_path / "run", f"picture_envs:{name}")
    trained = load(tmp_path / "run")
    scores = film(trained, 4, 0, tmp_path / "videos")
    with closing(evaluation_env(trained.config, 4, 0)) as env:
        assert scores == evaluate(trained.agent, env, 4, 0)
    paths = sorted((tmp_path / "videos").iterdir())
    assert [path.name for path in paths] == [f"episode-{at}.mp4" for at in range(4)]
    for path in paths:
        pictures = read_video(path)
        assert pictures.shape == (Clock.LENGTH + 1, *size, 3)
        right = pictures[:, 6 : size[0] - 6, size[1] * 5 // 8 : size[1] - 6].mean((1, 2, 3))
        assert np.abs(right - 10 * np.arange(Clock.LENGTH + 1)).max() < 4


def test_what_shows_nothing_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved_training(tmp_path / "run", "Catch-v0")
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "run"), "--video", "--out", str(tmp_path / "videos")])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("fastdreamer: error: there is nothing to see: env.id Catch-v0: cannot render: ")
    camera = evaluation_camera(tiny_config(tmp_path, "fake_envs:Walk"), 1, 0)
    assert camera.picture(camera.env.recv(), 0) is None and "render_mode" in camera.reason
    camera.env.close()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved_training(tmp_path / "run", "CartPole-v1")
    words = [str(tmp_path / "run"), "--episodes", "2"]
    assert main(words) == 0
    plain = capsys.readouterr().out
    assert main([*words, "--video", "--out", str(tmp_path / "videos")]) == 0
    videos, same = capsys.readouterr().out.split("\n", 1)
    assert videos == f"2 videos: {tmp_path / 'videos' / 'episode-0.mp4'} ..." and same == plain
    assert read_video(tmp_path / "videos" / "episode-1.mp4").shape[1:] == (400, 600, 3)
