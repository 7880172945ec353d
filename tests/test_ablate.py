"""An ablation runs what it says, once, and compares it."""

import json
from pathlib import Path

import pytest

from fastdreamer import ablate
from fastdreamer.ablate import VARIANTS, Job, main, planned, table
from fastdreamer.cli import parse
from fastdreamer.presets import PRESETS

CHANGED = {
    "no decoder loss": {"loss.decoder": 0.0},
    "no uniform mix": {"model.unimix": 0.0, "model.actor_unimix": 0.0},
    "horizon 5": {"loss.horizon": 5},
    "horizon 30": {"loss.horizon": 30},
    "normal heads": {"model.heads": "normal"},
    "no continue prediction": {"loss.use_cont": False},
    "no return normalisation": {"loss.retnorm": False},
    "free nats 0": {"loss.free_nats": 0.0},
    "free nats 1": {"loss.free_nats": 1.0},
    "free nats 3": {"loss.free_nats": 3.0},
}


def test_each_run_changes_what_its_name_says(tmp_path: Path) -> None:
    jobs = list(planned("cartpole", 2, 7000, tmp_path))
    assert [job.variant for job in jobs] == ["baseline", *CHANGED] * 2  # its horizon is 15
    base = PRESETS["cartpole"].to_json()
    for job in jobs:
        config = parse(["cartpole", *job.flags]).config
        found = {
            f"{group}.{name}": value
            for group in ("env", "model", "loss", "optim", "replay")
            for name, value in config.to_json()[group].items()
            if value != base[group][name]
        }
        assert found == CHANGED.get(job.variant, {})
        assert (config.run.steps, config.run.solved, config.run.dir) == (7000, None, str(job.folder))
    assert len({job.folder for job in jobs}) == len(jobs) == 22
    assert [parse(["cartpole", *job.flags]).config.run.seed for job in jobs] == [0] * 11 + [1] * 11


def test_it_goes_on_where_it_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny = ("--model.deter=16", "--model.hidden=8", "--model.units=8", "--run.eval_episodes=1", "--run.threads=1")
    monkeypatch.setattr(ablate, "VARIANTS", {"baseline": tiny, "horizon 5": (*tiny, "--loss.horizon=5")})
    words = ["cartpole", "--seeds", "1", "--steps", "560", "--out", str(tmp_path / "all")]
    train = ablate.train
    monkeypatch.setattr(ablate, "train", lambda preset, job: train(preset, job) or 130 * (job.variant == "horizon 5"))
    assert main(words) == 130
    assert "the same command goes on" in capfd.readouterr().out
    done = (tmp_path / "all" / "cartpole-baseline-0" / "summary.json").stat().st_mtime_ns
    monkeypatch.setattr(ablate, "train", train)
    assert main(words) == 0
    said = capfd.readouterr().out
    assert (tmp_path / "all" / "cartpole-baseline-0" / "summary.json").stat().st_mtime_ns == done
    assert "first update" not in said and "horizon 5" in said
    assert (tmp_path / "all" / "report.html").stat().st_size > 4e6


def test_a_run_with_a_checkpoint_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []

    class Result:
        returncode = 3

    monkeypatch.setattr(ablate.subprocess, "run", lambda command, check: called.append(command[3:]) or Result())
    job = Job("baseline", tmp_path / "run", ("--run.seed=1",))
    assert ablate.train("cartpole", job) == 3
    (tmp_path / "run" / "checkpoints" / "step-000000010").mkdir(parents=True)
    assert ablate.train("cartpole", job) == 3
    assert called == [["cartpole", "--run.seed=1"], ["--resume", str(tmp_path / "run")]]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        ablate.train("cartpole", job._replace(folder=tmp_path / "empty"))


def test_the_table_is_of_the_evaluations(tmp_path: Path) -> None:
    jobs = []
    for variant, seed, score in (("baseline", 0, 100.0), ("baseline", 1, 300.0), ("horizon 5", 0, 50.0)):
        folder = tmp_path / f"{variant}{seed}"
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps({"eval_return": score}))
        jobs.append(Job(variant, folder, ()))
    rows = [line.split() for line in table(jobs).splitlines()[1:]]
    assert rows == [["baseline", "200.0", "100.0", "300.0", "2"], ["horizon", "5", "50.0", "50.0", "50.0", "1"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pole"], f"PRESET must be one of {', '.join(PRESETS)}, got 'pole'"),
        (["cartpole", "--seeds", "0"], "--seeds must be at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and capsys.readouterr().err == f"fastdreamer: error: {message}\n"


def test_every_variant_is_a_command() -> None:
    for flags in VARIANTS.values():
        parse(["cartpole", *flags])
