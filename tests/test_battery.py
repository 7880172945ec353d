"""The battery of benchmarks, dry: every section runs on a CPU, says true things, can go on, and fails aloud."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import battery, battery_sections
from bench.battery_sections import Call
from bench.battery_updates import DRY, count_flops, row_config
from bench.workload import ACT, OBS, Task
from fastdreamer.agent import Agent
from fastdreamer.config import LossConfig, ModelConfig

Found = dict[str, Any]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Found]:
    """The folder of a dry run, and its battery.json."""
    folder = tmp_path_factory.mktemp("battery")
    assert battery.main(["--dry-run", "--out", str(folder)]) == 0
    return folder, json.loads((folder / "battery.json").read_text())


def parameters(task: Task) -> int:
    agent = Agent(OBS[task], ACT, DRY, LossConfig(), torch.float32)
    return sum(param.numel() for param in agent.official_parameters().values())


def test_every_section_is_there_and_the_table_names_the_hardware(found: tuple[Path, Found]) -> None:
    folder, merged = found
    assert set(merged) == {"machine", "dry_run", "command", *battery.SECTIONS}
    assert not any(battery.failed(merged[name]) for name in battery.SECTIONS)
    table = (folder / "battery.md").read_text()
    assert table.startswith(f"# {merged['machine']['hardware']} (dry run)\n")
    assert merged["command"] in table and f"torch {torch.__version__}" in table


def test_updates(found: tuple[Path, Found]) -> None:
    rows = found[1]["updates"]["rows"]
    assert [row["task"] for row in rows] == ["vector", "image"]
    for row in rows:
        assert row["params"] == parameters(row["task"])
        assert 0 < row["ms_p50"] <= row["ms_p99"] and row["updates"] == 20
        assert 1 < row["first_update_s"] < 60, "from the start of the process on"
        assert row["tflop_per_s"] == pytest.approx(row["gflop"] / row["ms_p50"], rel=0.01)
        assert row["graph_nodes"] is row["host_syncs"] is row["peak_allocated_gb"] is None


def test_the_loop(found: tuple[Path, Found]) -> None:
    rows = found[1]["loop"]["rows"]
    assert [row["ratio_wanted"] for row in rows] == [2.0, 8.0]
    for row in rows:
        assert row["ratio_realised"] == pytest.approx(row["ratio_wanted"], rel=0.1)
        assert (row["schedule"], row["lag_min"], row["lag_max"]) == ("sync", 0, 0)
        assert row["agent_steps_per_s"] * row["ratio_wanted"] == pytest.approx(8 * row["updates_per_s"], rel=0.1)
        assert row["frames_per_s"] >= row["agent_steps_per_s"] > 0
        assert (row["env"] == "WalkerWalk-v1") == (row["envpool"] == "present")


def test_another_program_is_timed_in_turns(found: tuple[Path, Found]) -> None:
    (row,) = found[1]["peers"]["rows"]
    assert row["peer"] == "ourselves" and row["params"] == [parameters("vector")] * 2
    for name in ("ours_ms", "theirs_ms", "theirs_over_ours"):
        median, least, most = row[name]
        assert 0 < least <= median <= most
    assert 0.2 < row["theirs_over_ours"][0] < 5, "the same program"
    assert all(1 < seconds < 60 for seconds in row["startup_s"])


def test_tests_and_ops(found: tuple[Path, Found]) -> None:
    tests, ops = found[1]["tests"], found[1]["ops"]["rows"]
    assert tests["skipped"] == tests["tests"] > 8 and tests["passed"] == tests["failures"] == 0
    (reference,) = [row for row in ops if row["backend"] == "reference"]
    for row in ops:
        assert row["op"].startswith("lambda_return") and row["us"] > 0
        assert row["ratio"] == pytest.approx(row["us"] / reference["us"], rel=1e-2)


def test_a_second_call_goes_on_where_the_first_one_ended(
    found: tuple[Path, Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, merged = found
    calls: list[str] = []

    def planted(name: str) -> Any:
        def section(call: Call) -> Found:
            calls.append(name)
            return {"note": "again", "rows": []}

        return section

    monkeypatch.setattr(battery, "SECTIONS", {name: planted(name) for name in battery.SECTIONS})
    arguments = ["--dry-run", "--out", str(folder)]
    assert battery.main(arguments) == 0 and calls == []
    assert json.loads((folder / "battery.json").read_text())["updates"] == merged["updates"]
    (folder / "battery-loop.json").unlink()
    assert battery.main(arguments) == 0 and calls == ["loop"]
    assert battery.main([*arguments, "--section", "ops", "tests"]) == 0 and sorted(calls[1:]) == ["ops", "tests"]
    (folder / "battery-loop.json").unlink()
    assert battery.main([*arguments, "--budget", "0"]) == 0 and len(calls) == 3
    assert "call again" in json.loads((folder / "battery.json").read_text())["loop"]["left_out"]


def test_what_fails_is_recorded_and_the_rest_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def fails(call: Call) -> Found:
        raise RuntimeError("of the section")

    def works(call: Call) -> Found:
        done.append("")
        return {"rows": []}

    sections = dict.fromkeys(battery.SECTIONS, works) | {"updates": fails}
    monkeypatch.setattr(battery, "SECTIONS", sections)
    assert battery.main(["--dry-run", "--out", str(tmp_path)]) == 1
    assert len(done) == 4
    assert json.loads((tmp_path / "battery.json").read_text())["updates"]["error"] == "RuntimeError: of the section"


def test_a_row_that_crashes_costs_itself_alone(tmp_path: Path) -> None:
    row = battery_sections.row("battery_loop", Call(True, {}), ratio=-1)
    assert row["ratio"] == -1 and "run.train_ratio" in row["error"]
    with pytest.raises(RuntimeError, match="ended with 3"):
        battery_sections._against("broken", [sys.executable, "-c", "raise SystemExit(3)"], Call(True, {}))


@pytest.mark.parametrize("peer", ["name", "=command", "name="])
def test_a_peer_needs_a_name_and_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], peer: str) -> None:
    with pytest.raises(SystemExit) as caught:
        battery.main(["--dry-run", "--out", str(tmp_path), "--peer", peer])
    assert caught.value.code == 2 and f"--peer must be NAME=COMMAND, got {peer!r}" in capsys.readouterr().err


def test_flops_are_those_of_the_layers() -> None:
    """Twice as many steps take twice as many; size1m takes 29.1 GFLOP, counted before there were kernels."""
    config = row_config("size1m", dry=False)
    assert count_flops(config, "vector") / 1e9 == pytest.approx(29.1, abs=0.1)
    assert config.model == ModelConfig(size="size1m")
