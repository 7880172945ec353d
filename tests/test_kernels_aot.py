"""Every Triton kernel compiled for a real GPU without one: nothing spills, tensor cores are used, budgets hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[1]
BUDGETS = ROOT / "bench" / "kernel_budgets.json"


def kernels_check(*options: str | Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: here triton interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.kernels_check", "--arch", "90", "--size", "size12m", "--budget", *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_kernels_compile_within_their_budgets() -> None:
    result = kernels_check(BUDGETS)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_kernel_beyond_its_budget_is_named(tmp_path: Path) -> None:
    budgets = json.loads(BUDGETS.read_text())
    for kernels in budgets.values():
        kernels["lambda_return/_lambda_return_kernel/1"]["registers"] //= 2
    tight = tmp_path / "budgets.json"
    tight.write_text(json.dumps(budgets))
    result = kernels_check(tight, "--op", "lambda_return")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "sm_90 size12m lambda_return/_lambda_return_kernel/1:" in result.stdout
    assert "_lambda_return_kernel/0:" not in result.stdout
