"""The battery of benchmarks, dry: every section runs on a CPU, says true things, can go on, and fails aloud."""

import functools
import json
import math
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import battery, battery_loop, battery_sections
from bench.battery_sections import Call, Section
from bench.battery_updates import DRY, count_flops, count_syncs, row_config
from bench.protocol import Served
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
    machine = merged["machine"]
    assert set(merged) == {"machine", "dry_run", "command", *battery.SECTIONS}
    assert not any(battery.failed(merged[name]) or "left_out" in merged[name] for name in battery.SECTIONS)
    assert {row["hardware"] for name in battery.SECTIONS for row in merged[name]["rows"]} == {machine["hardware"]}
    table = (folder / "battery.md").read_text()
    assert table.startswith(f"# {machine['hardware']} (dry run)\n")
    assert merged["command"] in table and f"torch {torch.__version__}" in table
    assert 1e-4 < machine["matmul_tflop_per_s"] < 100 and 0.1 < machine["copy_gb_per_s"] < 1e4


def test_updates(found: tuple[Path, Found]) -> None:
    rows, machine = found[1]["updates"]["rows"], found[1]["machine"]
    assert [(row["part"], row["task"]) for row in rows] == [("size1m", "vector"), ("size12m", "image")]
    assert "compiled: left out" in found[1]["updates"]["note"]
    for row in rows:
        assert row["params"] == parameters(row["task"])
        assert 0 < row["ms_p50"] <= row["ms_p99"] and row["updates"] == 20
        assert 0 < row["capture_s"] < row["first_update_s"] < 60 and row["first_update_s"] > 1, "from the process on"
        assert row["tflop_per_s"] == pytest.approx(row["gflop"] / row["ms_p50"], rel=0.02)
        assert row["mfu"] == pytest.approx(row["tflop_per_s"] / machine["matmul_tflop_per_s"], rel=0.02, abs=1e-6)
        assert 0 < row["mfu"] < 1
        assert row["graph_nodes"] is row["host_syncs"] is row["peak_allocated_gb"] is None


def test_the_loop(found: tuple[Path, Found]) -> None:
    rows = found[1]["loop"]["rows"]
    assert [row["ratio_wanted"] for row in rows] == [2.0, 8.0]
    for row in rows:
        check_loop(row)
        assert (row["env"] == "WalkerWalk-v1") == (row["envpool"] == "present")


def check_loop(row: Found) -> None:
    assert row["ratio_realised"] == pytest.approx(row["ratio_wanted"], rel=0.1)
    assert (row["schedule"], row["lag_min"], row["lag_max"]) == ("sync", 0, 0)
    assert row["agent_steps_per_s"] * row["ratio_wanted"] == pytest.approx(8 * row["updates_per_s"], rel=0.1)
    assert row["frames_per_s"] >= row["agent_steps_per_s"] > 0


@pytest.mark.parametrize("task", ["vector", "image"])
def test_the_loop_with_a_stand_in_for_envpool(task: Task) -> None:
    config = battery_loop.loop_config(battery_loop.STANDIN[task], "size1m", 4.0, dry=True)
    check_loop(battery_loop.measure(config, 0.0, 0.1))


def test_another_program_is_timed_in_turns(found: tuple[Path, Found]) -> None:
    (row,) = found[1]["peers"]["rows"]
    assert row["part"] == "ourselves" and row["params"] == [parameters("vector")] * 2
    for name in ("ours_ms", "theirs_ms", "theirs_over_ours"):
        median, least, most = row[name]
        assert 0 < least <= median <= most
    assert 0.2 < row["theirs_over_ours"][0] < 5, "the same program"
    assert all(1 < seconds < 60 for seconds in row["startup_s"])


def test_tests_and_ops(found: tuple[Path, Found]) -> None:
    (tests,), (ops,) = found[1]["tests"]["rows"], found[1]["ops"]["rows"]
    assert tests["skipped"] == tests["tests"] > 8 and tests["passed"] == tests["failures"] == 0
    (reference,) = [each for each in ops["ops"] if each["backend"] == "reference"]
    for each in ops["ops"]:
        assert each["op"].startswith("lambda_return") and each["us"] > 0
        assert each["ratio"] == pytest.approx(each["us"] / reference["us"], rel=1e-2)


def planted(calls: list[str], name: str, *parts: str, error: Exception | None = None) -> Any:
    """A section of parts that only say that they were called, or fail."""

    def work(part: str, limit: float) -> Found:
        calls.append(part)
        if error is not None:
            raise error
        return {"limit": limit}

    return lambda call: Section({part: functools.partial(work, part) for part in parts or (name,)})


def test_a_second_call_goes_on_where_the_first_one_ended(
    found: tuple[Path, Found], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(found[0], folder)
    arguments, calls = ["--dry-run", "--out", str(folder)], list[str]()
    names = {name: [row["part"] for row in found[1][name]["rows"]] for name in battery.SECTIONS}
    monkeypatch.setattr(battery, "SECTIONS", {name: planted(calls, name, *parts) for name, parts in names.items()})
    assert battery.main(arguments) == 0 and calls == []
    assert json.loads((folder / "battery.json").read_text())["updates"]["rows"] == found[1]["updates"]["rows"]
    battery.write_rows(folder / "battery-loop.json", found[1]["loop"]["rows"][:1])  # killed in between
    assert battery.main([*arguments, "--budget", "0"]) == 0 and calls == []
    merged = json.loads((folder / "battery.json").read_text())
    assert merged["loop"]["left_out"] == [names["loop"][1]] and "call again" in (folder / "battery.md").read_text()
    assert battery.main(arguments) == 0 and calls == names["loop"][1:]
    assert battery.main([*arguments, "--section", "ops", "tests"]) == 0
    assert sorted(calls[1:]) == sorted(names["ops"] + names["tests"])


def test_a_folder_is_that_of_one_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    battery.write_rows(tmp_path / "battery-ops.json", [{"part": "size1m", "hardware": "another"}])
    assert battery.main(["--dry-run", "--out", str(tmp_path)]) == 2
    assert "holds results of another" in capsys.readouterr().err


def test_what_fails_is_recorded_and_the_rest_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sections = {name: planted(calls, name) for name in battery.SECTIONS}
    sections["updates"] = planted(calls, "updates", error=RuntimeError(f"in {battery_sections.ROOT}/bench"))
    monkeypatch.setattr(battery, "SECTIONS", sections)
    assert battery.main(["--dry-run", "--out", str(tmp_path), "--peer", "other=secret --place"]) == 1
    assert calls == list(battery.SECTIONS)
    merged = json.loads((tmp_path / "battery.json").read_text())
    assert merged["updates"]["rows"][0]["error"] == "RuntimeError: in bench"
    assert merged["command"].endswith("--peer other=...") and "secret" not in (tmp_path / "battery.md").read_text()


def test_what_lacks_time_is_left_out_and_what_takes_too_long_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(battery, "SECTIONS", {"loop": planted(calls, "loop", "a", "b", error=TimeoutError("late"))})
    monkeypatch.setattr(battery, "table", str)
    arguments = ["--dry-run", "--out", str(tmp_path), "--budget"]
    assert battery.main([*arguments, "100"]) == 0 and calls == ["a"]
    assert json.loads((tmp_path / "battery.json").read_text())["loop"] == {"rows": [], "left_out": ["a", "b"]}
    assert battery.main([*arguments, "1000"]) == 1 and calls[1:] == ["a", "b"]
    assert battery.read_rows(tmp_path / "battery-loop.json")[1]["error"] == "TimeoutError: late"


def test_a_row_that_crashes_says_why_and_one_that_hangs_is_ended() -> None:
    with pytest.raises(RuntimeError, match=r"run\.train_ratio"):
        battery_sections.row("battery_loop", True, {"ratio": -1}, 60)
    hangs = "import subprocess; print('begun', flush=True); subprocess.run(['sleep', '1000'])"
    with pytest.raises(TimeoutError, match="took more than 3 s; last: begun"):
        battery_sections.finish([sys.executable, "-c", hangs], 3, dry=True)


SPEAKS = """
import json, sys, time
print(json.dumps({"ready": True, "params": 7}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request.get("quit"):
        break
    if request["updates"] > 2:
        time.sleep(1000)
    print(json.dumps({"wall_ms": 5.0}), flush=True)
"""


def test_another_program_need_not_say_more_than_its_time_and_may_not_hang() -> None:
    with Served([sys.executable, "-c", SPEAKS], 60) as served:
        cost = served.run(1)
        assert served.params == 7 and cost.wall_ms == 5 and math.isnan(cost.cpu_ms)
    assert served.process.returncode == 0
    with Served([sys.executable, "-c", SPEAKS], 60) as served:
        served._ends = time.perf_counter() + 0.2
        with pytest.raises(TimeoutError, match="took too long"):
            served.run(3)
    assert served.process.returncode == -signal.SIGKILL
    with pytest.raises(RuntimeError, match="ended with 3"):
        Served([sys.executable, "-c", "raise SystemExit(3)"])


@pytest.mark.parametrize("peer", ["name", "=command", "name="])
def test_a_peer_needs_a_name_and_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], peer: str) -> None:
    with pytest.raises(SystemExit) as caught:
        battery.main(["--dry-run", "--out", str(tmp_path), "--peer", peer])
    assert caught.value.code == 2 and f"--peer must be NAME=COMMAND, got {peer!r}" in capsys.readouterr().err


def test_without_peers_the_section_says_so_and_a_gpu_has_every_part() -> None:
    call = Call(False, {})
    assert battery_sections.peers(call) == Section({}, "no peers were given")
    sizes = ["size1m", "size12m", "size50m", "size200m"]
    assert list(battery_sections.updates(call).parts) == [*sizes, *(f"{size} compiled" for size in sizes)]
    assert list(battery_sections.loop(call).parts) == ["size1m 32", "size1m 512", "size12m 32", "size12m 512"]
    assert "test_cuda_steps.py" in battery_sections.tests(call).parts
    assert len(battery_sections.ops(call).parts) == 4


def test_only_waits_are_counted_as_host_syncs() -> None:
    """torch 2.13: the first call of set_sync_debug_mode warns as well, about itself."""
    prototype = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations"
    assert count_syncs([prototype, "called a synchronizing CUDA operation (Triggered internally)", "else"]) == 1


def test_flops_are_those_of_the_layers() -> None:
    """Twice as many steps take twice as many; size1m takes 29.1 GFLOP, counted before there were kernels."""
    config = row_config("size1m", dry=False)
    assert count_flops(config, "vector") / 1e9 == pytest.approx(29.1, abs=0.1)
    assert config.model == ModelConfig(size="size1m")
