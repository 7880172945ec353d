"""Checkpoints to save and to compare: every kind of file, with tensors that carry the step."""

import zlib
from pathlib import Path

import torch
from torch import Tensor

from fastdreamer.checkpoint import save

Tensors = dict[str, dict[str, Tensor]]


def make_tensors(seed: float = 0.0) -> Tensors:
    return {
        "model": {"dyn/gru/kernel": torch.arange(12.0).view(3, 4) + seed, "dyn/gru/bias": torch.zeros(4) + seed},
        "optim": {"step": torch.tensor(seed), "mu/dyn/gru/kernel": torch.ones(3, 4)},
        "carry": {"stoch": torch.arange(6, dtype=torch.uint8).view(2, 3), "deter": torch.ones(2, 5).bfloat16()},
    }


def write_chunk(run: Path, name: str, data: bytes) -> int:
    (run / "replay").mkdir(parents=True, exist_ok=True)
    (run / "replay" / name).write_bytes(data)
    return zlib.crc32(data)


def save_full(run: Path, step: int) -> Path:
    """A checkpoint with every kind of file; its tensors and state carry the step."""
    chunks = {
        f"chunk-{step}-{i}.safetensors": write_chunk(run, f"chunk-{step}-{i}.safetensors", b"x" * 50) for i in (0, 1)
    }
    return save(run, step, make_tensors(step), {"step": step}, {"chunks": chunks, "cursor": step})


def equal(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))
    )


def assert_same(a: Tensors, b: Tensors) -> None:
    assert a.keys() == b.keys()
    for group in a:
        assert a[group].keys() == b[group].keys()
        for name in a[group]:
            assert equal(a[group][name].contiguous(), b[group][name]), f"{group} {name}"


def names(run: Path, where: str = "checkpoints") -> list[str]:
    return sorted(path.name for path in (run / where).iterdir())
