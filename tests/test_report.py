"""The page and the table of `python -m fastdreamer.report`: their numbers are those of the runs."""

import base64
import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastdreamer import report
from fastdreamer.config import Config
from fastdreamer.metrics import JsonlWriter
from fastdreamer.presets import PRESETS
from fastdreamer.report import binned, curves, grouped, main, official_curve, read_run, task_of

LOSSES = [f"loss/{name}" for name in ("dyn", "rep", "policy", "value")]


def write_run(path: Path, config: Config, seed: int = 0, records: int = 20, last: int = 1000) -> Path:
    """Interval i, at step last * i / records, has every loss = i + seed; its one episode returned 10 * i + seed."""
    path.mkdir(parents=True)
    config = replace(config, run=replace(config.run, seed=seed, dir=str(path)))
    (path / "config.json").write_text(json.dumps(config.to_json()))
    with JsonlWriter(path / "metrics.jsonl") as writer:
        for i in range(1, records + 1):
            step = last * i // records
            writer.write({"step": step, "episode/return": 10 * i + seed})
            means = {"episode/return": -1e9} | {name: i + seed for name in LOSSES}  # the mean of an interval
            writer.write({"step": step, "frame": 4 * step, "update": i, "elapsed": 60.0 * i, **means})
    return path


def page_data(path: Path) -> dict:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_has_the_numbers_of_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cartpole = PRESETS["cartpole"]
    other = replace(cartpole, loss=replace(cartpole.loss, horizon=5))
    runs = [write_run(tmp_path / f"a{seed}", cartpole, seed) for seed in (0, 3)] + [write_run(tmp_path / "b", other)]
    assert main([*map(str, runs), "--out", str(tmp_path / "page.html")]) == 0
    assert "runs: 3" in capsys.readouterr().out
    data = page_data(tmp_path / "page.html")
    assert list(data["groups"]) == ["cartpole", "cartpole, loss.horizon 5"]
    group = data["groups"]["cartpole"]
    assert group["step"][0] == 5 and group["step"][-1] == 1000
    first, second = group["metrics"]["loss/dyn"]
    at = group["step"].index(500)
    assert (first[at], second[at], first[at - 1]) == (10, 13, None)
    assert [value for value in first if value is not None] == list(range(1, 21))
    assert [value for value in group["metrics"]["episode/return"][1] if value] == [10 * i + 3 for i in range(1, 21)]
    assert group["minutes"][0][at] == 10 and group["minutes"][0][0] == pytest.approx(0.1)
    assert [run["seed"] for run in data["runs"]] == [0, 3, 0]
    assert data["runs"][2]["config"]["loss"]["horizon"] == 5
    assert data["official"] == []


def test_the_table_has_every_value(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", PRESETS["cartpole"], seed=2)
    assert main([str(run), "--out", str(tmp_path / "page.html")]) == 0
    with (tmp_path / "page.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["metric"], int(row["step"])): float(row["value"]) for row in rows}
    assert found[("loss/value", 500)] == 12 and found[("episode/return", 1000)] == 202
    assert len(rows) == len(found) == 20 * (len(LOSSES) + 2)  # the episodes, and the minutes
    assert {row["run"] for row in rows} == {str(run)}


def test_the_page_asks_for_nothing_and_runs_no_text_of_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "<script>alert(1)</script>", PRESETS["cartpole"])
    assert main([str(run), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in page
    assert page_data(tmp_path / "page.html")["runs"][0]["run"] == str(run)
    assert re.findall(r"<(?:link|img|iframe|script)[^>]+(?:src|href)=", page[page.rindex("</style>") - 2000 :]) == []


def test_ten_long_runs_fit_into_eight_megabytes(tmp_path: Path) -> None:
    names = [f"metric/number{i}" for i in range(60)]
    rng, config = np.random.default_rng(0), PRESETS["cartpole"]
    for seed in range(10):
        write_run(tmp_path / str(seed), config, seed, records=1, last=1_000_000)
        with JsonlWriter(tmp_path / str(seed) / "metrics.jsonl") as writer:
            for step in range(2500, 1_000_001, 2500):
                writer.write({"step": step, **dict(zip(names, rng.normal(size=60).tolist(), strict=True))})
    assert main([*(str(tmp_path / str(seed)) for seed in range(10)), "--out", str(tmp_path / "page.html")]) == 0
    data = page_data(tmp_path / "page.html")["groups"]["cartpole"]["metrics"]
    assert all(None not in values for values in data["metric/number59"]) and len(data["metric/number59"]) == 10
    assert (tmp_path / "page.html").stat().st_size < 8e6


def test_a_bin_is_the_mean_of_what_lies_in_it() -> None:
    steps, values = np.array([1.0, 2, 3, 4, 9]), np.array([1.0, 3, 5, 6, 7])
    np.testing.assert_array_equal(binned(steps, values, np.array([0.0, 2, 4, 6, 8])), [2, 5.5, np.nan, np.nan])


def test_the_official_curve_is_that_of_the_task(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "pong", PRESETS["atari100k"]))
    curve = official_curve(run)
    assert curve is not None
    assert curve["label"] == "official code, atari100k pong, 5 seeds (April 2024 code)"
    # Four frames a step: the last bin of the official file ends at 400,000 frames.
    assert curve["step"][-1] == 100_000  # type: ignore[index]
    low, mean, high = (curve[name][-1] for name in ("low", "mean", "high"))  # type: ignore[index]
    assert low < mean < high and mean == pytest.approx((low + high) / 2, rel=1e-3)
    assert official_curve(read_run(write_run(tmp_path / "walker", PRESETS["dmc_proprio"]))) is None


@pytest.mark.parametrize(
    ("id", "task"),
    [
        ("Pong-v5", "pong"),
        ("MsPacman-v5", "ms_pacman"),
        ("WalkerWalk-v1", "walker_walk"),
        ("CoinrunHard-v0", "coinrun"),
    ],
)
def test_tasks_have_their_official_names(id: str, task: str) -> None:
    assert task_of(id) == task


def test_a_run_that_goes_on_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", PRESETS["cartpole"])
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step":2000,"loss/dyn":')
    run = read_run(path)
    assert run.metrics["loss/dyn"][0][-1] == 1000 and run.summary is None
    assert grouped([run]).keys() == {"cartpole"}
    (path / "metrics.jsonl").write_text("")
    assert curves([read_run(path)])["metrics"] == {}


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, missing = write_run(tmp_path / "run", PRESETS["cartpole"]), tmp_path / "no" / "x"
    for words, message in (
        ([tmp_path / "no"], f"{tmp_path / 'no' / 'config.json'}: cannot be read: No such file or directory"),
        ([run, "--out", missing], f"--out {missing}: cannot be written: No such file or directory"),
    ):
        with pytest.raises(SystemExit) as end:
            main([*map(str, words)])
        assert end.value.code == 2
        assert capsys.readouterr().err == f"fastdreamer: error: {message}\n"
    (run / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"metrics\.jsonl: cannot be read"):
        read_run(run)


def test_videos_are_in_the_page_as_long_as_they_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of every run before older ones; the others, and pages, are found from where the page lies."""
    runs = [write_run(tmp_path / "runs" / name, PRESETS["cartpole"]) for name in ("a", "b c")]
    for run in runs:
        for step in (9, 10):
            folder = run / "videos" / f"step-{step}"
            folder.mkdir(parents=True)
            (folder / "episode-0.mp4").write_bytes(bytes([step]) * 100)
        (folder / "dream.html").write_text("a page")
    (runs[0] / "machine.jsonl").write_text('{"step": 0, "cpu": "old"}\n{"step": 500, "cpu": "new"}\n')
    monkeypatch.setattr(report, "EMBEDDED", 250)
    (tmp_path / "pages").mkdir()
    assert main([*map(str, runs), "--out", str(tmp_path / "pages" / "page.html")]) == 0
    first, second = page_data(tmp_path / "pages" / "page.html")["runs"]
    for run, name in ((first, "a"), (second, "b%20c")):
        page, film, older = run["films"]
        assert page == {"step": "step-10", "name": "dream.html", "source": f"../runs/{name}/videos/step-10/dream.html"}
        assert (film["step"], film["name"]) == ("step-10", "episode-0.mp4")
        assert film["source"] == "data:video/mp4;base64," + base64.b64encode(b"\n" * 100).decode()
        assert older["source"] == f"../runs/{name}/videos/step-9/episode-0.mp4"
    assert [each["cpu"] for each in first["machines"]] == ["old", "new"] and second["machines"] == []
