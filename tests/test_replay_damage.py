"""A saved ring that is damaged or belongs to another kind of run is refused with one line that says what is wrong."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_replay import DETER, STOCH, Index, filled, make_ring, save
from safetensors.torch import load_file, save_file

from fastdreamer import replay_files
from fastdreamer.replay import Replay
from fastdreamer.spaces import Space


@pytest.fixture(autouse=True)
def chunks_of_three() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_files, "CHUNK", 3)
        yield


OTHER_RINGS: list[tuple[dict[str, Any], str]] = [
    ({"num_envs": 3}, "saved with num_envs 2, but this run has 3"),
    ({"batch_length": 5}, "saved with batch_length 4, but this run has 5"),
    ({"deter": 8}, "saved with deter torch.float32 (4,), but this run has torch.float32 (8,)"),
    ({"stoch": 4}, "saved with stoch torch.uint8 (3,), but this run has torch.uint8 (4,)"),
    ({"dtype": torch.bfloat16}, "saved with deter torch.float32 (4,), but this run has torch.bfloat16 (4,)"),
    ({"obs": {"a": Space("vector", (4,))}}, "saved with obs/a torch.float32 (3,), but this run has torch.float32 (4,)"),
    ({"obs": {"a": Space("image", (3,))}}, "saved with obs/a torch.float32 (3,), but this run has torch.uint8 (3,)"),
    ({"obs": {"b": Space("vector", (3,))}}, "saved with obs/a torch.float32 (3,), but this run has None"),
    ({"act": {"a": Space("discrete", (), 2)}}, "saved with action/a None, but this run has torch.int32 ()"),
]


@pytest.mark.parametrize("changed, message", OTHER_RINGS, ids=[message[11:28] for _, message in OTHER_RINGS])
def test_a_ring_of_another_kind_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    arguments = {"obs": {"a": Space("vector", (3,))}, "act": {}, "deter": DETER, "stoch": STOCH, "num_envs": 2}
    arguments |= {"capacity": 50, "batch_size": 3, "batch_length": 4, "seed": 0}
    index = save(Replay(**arguments), tmp_path)
    with pytest.raises(ValueError, match=f"^replay: {re.escape(message)}$"):
        Replay(**arguments | changed).load(tmp_path, index)


def test_only_a_new_ring_takes_a_saved_one(tmp_path: Path) -> None:
    ring, _ = filled(10)
    index = save(ring, tmp_path)
    with pytest.raises(ValueError, match=r"^replay\.load needs a new ring, this one holds 10 records$"):
        ring.load(tmp_path, index)


@pytest.mark.parametrize("name", ["chunks", "ring", "length", "first", "served", "plans"])
def test_an_index_without_an_entry_is_refused(tmp_path: Path, name: str) -> None:
    ring, _ = filled(10)
    index = save(ring, tmp_path)
    del index[name]
    with pytest.raises(ValueError, match=rf"^replay index: {name}: expected a \w+, got None$"):
        make_ring().load(tmp_path, index)


@pytest.mark.parametrize("kind", ["records", "latents"])
def test_a_file_that_is_not_in_the_index_is_missed(tmp_path: Path, kind: str) -> None:
    ring, _ = filled(10)
    index: Index = save(ring, tmp_path)
    del index["chunks"][sorted(name for name in index["chunks"] if name.startswith(kind))[1]]
    with pytest.raises(ValueError, match=rf"^{tmp_path}: no file of {kind} holds record 3$"):
        make_ring().load(tmp_path, index)


def test_a_file_that_begins_too_late_is_refused(tmp_path: Path) -> None:
    ring, _ = filled(40, num_envs=2, capacity=10, batch_length=4)
    index: Index = save(ring, tmp_path)
    with pytest.raises(ValueError, match=rf"^{tmp_path}: no file of records holds record 30$"):
        make_ring(num_envs=2, capacity=10, batch_length=4).load(tmp_path, index | {"first": index["first"] - 1})


DAMAGES = {
    "gone": (None, "cannot be read: "),
    "empty": (b"", "cannot be read: "),
    "noise": (bytes(range(256)) * 8, "cannot be read: "),
    "short": (-1, "cannot be read: "),
    "a tensor too few": ({"reward": None}, "no reward"),
    "a tensor too many": ({"sound": torch.zeros(2, 3)}, "the ring has no sound"),
    "a shape": ({"reward": torch.zeros(2, 2)}, "reward: expected torch.float32 (2, 3), got torch.float32 (2, 2)"),
    "a type": ({"reward": torch.zeros(2, 3).int()}, "reward: expected torch.float32 (2, 3), got torch.int32 (2, 3)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, damage: str) -> None:
    content, message = DAMAGES[damage]
    ring, _ = filled(10)
    index: Index = save(ring, tmp_path)
    path = tmp_path / next(name for name in index["chunks"] if name.startswith("records-0000000003"))
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, int):
        path.write_bytes(path.read_bytes()[:content])
    else:
        tensors = load_file(path) | content
        save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, path)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {message}')}.*$") as error:
        make_ring().load(tmp_path, index)
    assert "\n" not in str(error.value)
