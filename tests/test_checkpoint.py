"""Checkpoints: what is saved comes back bit by bit, the newest two are kept, nothing is unpickled."""

import builtins
import hashlib
import json
import math
import os
import pickle
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import Tensors, assert_same, make_tensors, names, save_full, write_chunk
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdreamer import checkpoint, disk
from fastdreamer.checkpoint import CheckpointError, latest, load_into, save
from fastdreamer.disk import crc32

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.bool,
]


def test_everything_comes_back(tmp_path: Path) -> None:
    path = save_full(tmp_path, 123000)
    assert path == tmp_path / "checkpoints" / "step-000123000"
    found = latest(tmp_path)
    assert found.path == path
    assert_same(make_tensors(123000), found.tensors)
    assert found.state == {"step": 123000}
    assert found.replay is not None
    assert found.replay["cursor"] == 123000


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 1, 5)])
def test_every_dtype_and_shape_comes_back(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    save(tmp_path, 1, {"model": {"x": tensor}}, {})
    assert_same({"model": {"x": tensor}}, latest(tmp_path).tensors)


def test_bits_survive_that_comparison_does_not_see(tmp_path: Path) -> None:
    odd = torch.tensor([0x7FC00001, 0x7F800001, -0x80000000, 1, 0x00400000], dtype=torch.int32).view(torch.float32)
    save(tmp_path, 1, {"model": {"x": odd}}, {})  # two NaNs, -0, the smallest denormals
    assert torch.equal(latest(tmp_path).tensors["model"]["x"].view(torch.int32), odd.view(torch.int32))


def test_views_and_ties_and_parameters_can_be_saved(tmp_path: Path) -> None:
    flat = torch.arange(24.0)
    tensors: Tensors = {"model": {"a": flat[:12].view(3, 4), "b": flat[12:], "whole": flat, "t": flat.view(4, 6).t()}}
    tensors["optim"] = {
        "p": torch.nn.Parameter(torch.ones(2)),
        "cl": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    tensors["carry"] = {}
    save(tmp_path, 1, tensors, {})
    assert_same(tensors, latest(tmp_path).tensors)


Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(state=st.dictionaries(st.text(), Json, max_size=4))
def test_any_json_state_comes_back(state: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tmp_path_factory.mktemp("run")
    save(run, 1, {}, state)
    assert latest(run).state == state


def test_a_nan_in_the_state_does_not_stop_a_run(tmp_path: Path) -> None:
    save(tmp_path, 1, {}, {"best": math.nan})
    assert math.isnan(latest(tmp_path).value("best", float))


def test_state_that_is_not_json_is_refused_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    save_full(tmp_path, 1)
    with pytest.raises(ValueError, match="a checkpoint cannot hold Tensor"):
        save(tmp_path, 2, make_tensors(), {"x": torch.zeros(1)})
    assert latest(tmp_path).state == {"step": 1}
    save_full(tmp_path, 3)
    assert names(tmp_path) == ["step-000000001", "step-000000003"]  # and what the failed save left is gone


def test_the_manifest_describes_every_file(tmp_path: Path) -> None:
    path = save_full(tmp_path, 5)
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert manifest["format"] == 1
    expected = {"model.safetensors", "optim.safetensors", "carry.safetensors", "state.json", "replay/index.json"}
    assert manifest["files"].keys() == expected
    for name, entry in manifest["files"].items():
        data = (path / name).read_bytes()
        assert entry["bytes"] == len(data)
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    assert manifest["files"]["model.safetensors"]["tensors"] == {
        "dyn/gru/kernel": ["float32", [3, 4]],
        "dyn/gru/bias": ["float32", [4]],
    }
    assert manifest["files"]["carry.safetensors"]["tensors"]["deter"] == ["bfloat16", [2, 5]]
    assert "tensors" not in manifest["files"]["state.json"]


def test_files_then_manifest_then_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str]]] = []
    rename, write = os.rename, checkpoint._write_json

    def watch_rename(source: Path, target: Path) -> None:
        seen.append((f"rename {Path(target).name}", checkpoint._files(Path(source))))
        rename(source, target)

    def watch_write(path: Path, data: dict[str, object]) -> None:
        seen.append((path.name, checkpoint._files(path.parent)))
        write(path, data)

    monkeypatch.setattr(os, "rename", watch_rename)
    monkeypatch.setattr(checkpoint, "_write_json", watch_write)
    save_full(tmp_path, 7)
    data = ["carry.safetensors", "model.safetensors", "optim.safetensors", "replay/index.json", "state.json"]
    assert seen[-2:] == [("MANIFEST.json", data), ("rename step-000000007", ["MANIFEST.json", *data])]


@pytest.mark.parametrize("call", ["safetensors.torch.save_file", "fastdreamer.checkpoint._write_json", "os.rename"])
def test_a_save_that_fails_keeps_the_older_checkpoint(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_full(tmp_path, 1)

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(call, full_disk)
        save_full(tmp_path, 2)
    assert latest(tmp_path).state == {"step": 1}
    save_full(tmp_path, 3)
    assert names(tmp_path) == ["step-000000001", "step-000000003"]


def test_the_newest_two_are_kept_and_the_chunks_they_need(tmp_path: Path) -> None:
    shared = write_chunk(tmp_path, "shared.safetensors", b"shared")
    for step in (10, 20, 1_000_000_000, 3_000_000_000):
        crc = write_chunk(tmp_path, f"own-{step}.safetensors", b"own")
        save(tmp_path, step, {}, {}, {"chunks": {f"own-{step}.safetensors": crc, "shared.safetensors": shared}})
    assert names(tmp_path) == ["step-1000000000", "step-3000000000"]
    assert names(tmp_path, "replay") == [
        "own-1000000000.safetensors",
        "own-3000000000.safetensors",
        "shared.safetensors",
    ]
    assert latest(tmp_path).path.name == "step-3000000000"


def test_only_chunks_are_pruned(tmp_path: Path) -> None:
    write_chunk(tmp_path, "notes.txt", b"mine")
    write_chunk(tmp_path, "unused.safetensors", b"old")
    save_full(tmp_path, 1)
    assert names(tmp_path, "replay") == ["chunk-1-0.safetensors", "chunk-1-1.safetensors", "notes.txt"]


def test_no_chunk_is_deleted_while_a_kept_index_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (save_full(tmp_path, 1) / "replay" / "index.json").write_text("{")
    save_full(tmp_path, 2)
    assert len(names(tmp_path, "replay")) == 4
    assert "not pruned" in caplog.messages[0]
    save_full(tmp_path, 3)
    assert len(names(tmp_path, "replay")) == 4  # those of 2 and 3


def test_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1, make_tensors(1), {"try": 1})
    save(tmp_path, 1, make_tensors(2), {"try": 2})
    assert latest(tmp_path).state == {"try": 2}
    assert names(tmp_path) == ["step-000000001"]


def test_a_future_that_the_run_has_left_is_deleted(tmp_path: Path) -> None:
    for step in (100, 300):
        save_full(tmp_path, step)
    (tmp_path / "checkpoints" / "step-000000300" / "state.json").write_text("damaged")
    assert latest(tmp_path).state == {"step": 100}  # the run resumes there
    save_full(tmp_path, 200)
    assert names(tmp_path) == ["step-000000100", "step-000000200"]
    assert latest(tmp_path).state == {"step": 200}


def test_networks_can_be_loaded_without_their_replay(tmp_path: Path) -> None:
    save_full(tmp_path, 2)
    shutil.rmtree(tmp_path / "replay")
    found = latest(tmp_path, with_replay=False)
    assert_same(make_tensors(2), found.tensors)
    assert found.replay is None
    with pytest.raises(CheckpointError, match="none of 1 checkpoints can be used"):
        latest(tmp_path)


@pytest.mark.parametrize("prepare", [lambda run: None, lambda run: (run / "checkpoints").mkdir()])
def test_a_run_without_a_checkpoint_is_one_line(prepare: Callable[[Path], None], tmp_path: Path) -> None:
    prepare(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint in") as caught:
        latest(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_save_that_was_killed_is_no_checkpoint(tmp_path: Path) -> None:
    path = save_full(tmp_path, 2)
    shutil.copytree(path, path.with_name(".tmp-1-abcdef00"))
    (path.parent / "step-1x").mkdir()
    shutil.rmtree(path)
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        latest(tmp_path)


def test_loading_unpickles_and_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_full(tmp_path, 2)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a checkpoint must be read as data")

    for module, name in [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")]:
        monkeypatch.setattr(module, name, refuse)
    for name in ("eval", "exec"):
        monkeypatch.setattr(builtins, name, refuse)
    assert_same(make_tensors(2), latest(tmp_path).tensors)


def test_load_into_copies_in_place(tmp_path: Path) -> None:
    save_full(tmp_path, 2)
    model = torch.nn.ParameterDict({"dyn/gru/kernel": torch.zeros(3, 4), "dyn/gru/bias": torch.zeros(4)})
    before = {name: parameter.data_ptr() for name, parameter in model.items()}
    load_into(model, latest(tmp_path).tensors["model"], "model.safetensors")
    assert torch.equal(model["dyn/gru/kernel"], torch.arange(12.0).view(3, 4) + 2)
    assert {name: parameter.data_ptr() for name, parameter in model.items()} == before
    assert model["dyn/gru/bias"].requires_grad


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"a": torch.ones(2), "b": torch.ones(3, 4)}, r"m: tensor b: expected float32 \(3, 5\), got float32 \(3, 4\)"),
        (
            {"a": torch.ones(2), "b": torch.ones(3, 5).int()},
            r"m: tensor b: expected float32 \(3, 5\), got int32 \(3, 5\)",
        ),
        ({"a": torch.ones(2)}, r"m: tensor b: expected float32 \(3, 5\), got nothing"),
        (
            {"a": torch.ones(2), "b": torch.ones(3, 5), "c": torch.ones(())},
            r"m: tensor c: expected nothing, got float32 \(\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_copied(source: dict[str, Tensor], message: str) -> None:
    target = {"a": torch.zeros(2), "b": torch.zeros(3, 5)}
    with pytest.raises(ValueError, match=message):
        load_into(target, source, "m")
    assert all(bool((tensor == 0).all()) for tensor in target.values())


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("updates", int, "updates: expected int, got nothing"),
        ("step", float, "step: expected float, got 7"),
        ("done", int, "done: expected int, got True"),
    ],
)
def test_state_of_another_type_is_named(name: str, kind: type, message: str, tmp_path: Path) -> None:
    save(tmp_path, 1, {}, {"step": 7, "done": True, "rate": 1.0, "names": ["a"]})
    found = latest(tmp_path)
    assert (found.value("step", int), found.value("rate", float), found.value("names", list)) == (7, 1.0, ["a"])
    with pytest.raises(ValueError, match=message):
        found.value(name, kind)


def test_crc32_reads_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "READ_BYTES", 7)
    (tmp_path / "x").write_bytes(data := bytes(range(100)))
    assert crc32(tmp_path / "x") == zlib.crc32(data)
