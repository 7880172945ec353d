"""Videos beside a run: which checkpoints are filmed, which are kept, and that none of it stops the run."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_trained import tiny_config

from fastdreamer import filming
from fastdreamer.config import Config
from fastdreamer.filming import Filming, kept_folders
from fastdreamer.loop import Training
from fastdreamer.run import run


def filmed_config(folder: Path, videos: int = 2, **changes: object) -> Config:
    config = tiny_config(folder)
    return replace(config, run=replace(config.run, videos=videos, **changes))


def fake_films(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Films are made by a program that is `code`, given the folder to write as its last argument."""
    popen = subprocess.Popen
    fake = SimpleNamespace(Popen=lambda words, **rest: popen([sys.executable, "-c", code, words[-1]], **rest))
    monkeypatch.setattr(filming, "subprocess", fake)


def never() -> bool:
    return False


WRITES = """import os, sys
found = os.getpriority(os.PRIO_PROCESS, 0), os.environ["CUDA_VISIBLE_DEVICES"], os.environ.get("FASTDREAMER_KERNELS")
open(sys.argv[-1] + "/episode-0.mp4", "w").write(repr(found))
"""


def test_a_run_films_its_evaluation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    with caplog.at_level(logging.INFO):
        assert run(filmed_config(folder), resume=False, started=0.0) == 0
    assert f"videos: after each evaluation, in {folder}/videos; the newest 2 are kept" in caplog.messages
    assert caplog.messages[-1] == f"videos of step 90: {folder}/videos/step-90"
    newest = kept_folders(folder / "videos")[-1]
    assert sorted(path.name for path in newest.iterdir()) == ["dream.html", "episode-0.mp4"]
    assert not (folder / "videos" / "making").exists()
    machine = json.loads((folder / "machine.jsonl").read_text())
    assert machine["step"] == 0 and machine["cpu"]


def test_the_newest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_films(monkeypatch, WRITES)
    films = Filming(filmed_config(tmp_path), tmp_path)
    films.note_checkpoint(5)  # before any evaluation
    assert films.look() and not (tmp_path / "videos").exists()
    for step in (90, 100, 110):
        films.note_evaluation()
        films.note_checkpoint(step)
        films.wait(never)
        films.note_checkpoint(step + 1)  # no other evaluation came between
        films.wait(never)
    assert [path.name for path in kept_folders(tmp_path / "videos")] == ["step-100", "step-110"]
    assert (tmp_path / "videos/step-110/episode-0.mp4").exists()
    films.note_evaluation()
    films.note_checkpoint(110)  # a run that went back films a step again
    films.wait(never)
    assert len(kept_folders(tmp_path / "videos")) == 2


def test_a_film_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDREAMER_KERNELS", "triton")
    fake_films(monkeypatch, f"import time\ntime.sleep(0.5)\n{WRITES}")
    films = Filming(filmed_config(tmp_path), tmp_path)
    films.note_evaluation()
    films.note_checkpoint(10)
    assert not films.look()
    films.note_evaluation()
    films.note_checkpoint(20)
    assert not films.wants_checkpoint()
    films.wait(never)
    films.note_checkpoint(30)
    films.wait(never)
    assert [path.name for path in kept_folders(tmp_path / "videos")] == ["step-10", "step-30"]
    # the lowest priority, no GPU, no kernels of one
    assert (tmp_path / "videos/step-10/episode-0.mp4").read_text() == "(19, '', None)"


def test_what_fails_costs_the_film_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_films(monkeypatch, "import sys; print('first'); sys.exit('fastdreamer: error: no such thing')")
    films = Filming(filmed_config(tmp_path), tmp_path)
    films.note_evaluation()
    films.note_checkpoint(10)
    films.wait(never)
    assert caplog.messages == ["no videos of step 10: fastdreamer: error: no such thing"]
    (tmp_path / "other").write_text("a file, where the folder videos should be made")
    films = Filming(filmed_config(tmp_path), tmp_path / "other")
    films.note_evaluation()
    films.note_checkpoint(20)
    assert caplog.messages[1:] == ["no videos of step 20: Not a directory"]


def test_a_run_that_is_stopped_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_films(monkeypatch, "import time; time.sleep(600)")
    films = Filming(filmed_config(tmp_path), tmp_path)
    films.note_evaluation()
    films.note_checkpoint(10)
    films.wait(lambda: True)
    process = films._process
    films.close()
    assert process.returncode is not None and list((tmp_path / "videos").iterdir()) == [tmp_path / "videos" / "log.txt"]


def test_where_there_are_none_a_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for config in (filmed_config(tmp_path, videos=0), filmed_config(tmp_path, eval_episodes=0)):
        assert Filming(config, tmp_path).reason == "no videos: run.videos or run.eval_episodes is 0"
    monkeypatch.setattr(filming, "PACKAGES", ("av", "no_such_package"))
    films = Filming(filmed_config(tmp_path), tmp_path)
    assert films.reason == "no videos, they need: pip install no_such_package"
    films.note_evaluation()
    films.note_checkpoint(10)
    assert not films.wants_checkpoint() and not (tmp_path / "videos").exists()


def test_a_run_saves_once_for_a_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not for an evaluation that comes while the one before is filmed, which takes until the end here."""
    summary = tmp_path / "run" / "summary.json"
    fake_films(monkeypatch, f"import os, time\nwhile not os.path.exists({str(summary)!r}): time.sleep(0.05)\n{WRITES}")
    saved: list[int] = []
    begin = Training.begin_save

    def counted(self: Training, folder: Path) -> object:
        saved.append(self.env_steps)
        return begin(self, folder)

    monkeypatch.setattr(Training, "begin_save", counted)
    assert (
        run(filmed_config(tmp_path / "run", eval_every=60, eval_episodes=1, steps=300), resume=False, started=0.0) == 0
    )
    first_update = filmed_config(tmp_path).first_update
    assert saved == [first_update, 60, 300]
    assert [path.name for path in kept_folders(tmp_path / "run" / "videos")] == ["step-60", "step-300"]
