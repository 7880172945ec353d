"""Where results are stored, what of the machine goes into them, and the ratio to the reference."""

import os
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

from bench.hardware import hardware

torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "1")))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_storage = f"file://bench/results/{hardware()}"


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """The hardware and the versions, not the host."""
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads(), "hardware": hardware()}
    keep = {key: machine_info[key] for key in ("machine", "python_version", "system")}
    machine_info.clear()
    machine_info.update(keep, **versions)


def pytest_benchmark_update_json(benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Adds the ratio to the reference in the same group; drops what names a checkout."""
    output_json.pop("commit_info", None)
    medians = {
        (each["group"], each["extra_info"]["backend"]): each["stats"]["median"] for each in output_json["benchmarks"]
    }
    for each in output_json["benchmarks"]:
        if reference := medians.get((each["group"], "reference")):  # it may have failed
            each["extra_info"]["ratio"] = round(each["stats"]["median"] / reference, 4)
