"""Every kind of damage to a checkpoint is noticed, and the next older one is used."""

import hashlib
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import assert_same, make_tensors, save_full
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdreamer import checkpoint
from fastdreamer.checkpoint import CheckpointError, latest, load, save

FILES = [
    "model.safetensors",
    "optim.safetensors",
    "carry.safetensors",
    "state.json",
    "replay/index.json",
    "MANIFEST.json",
]
CHUNK = "../../replay/chunk-2-0.safetensors"


def flip_first(path: Path) -> None:
    flip(path, 0, 1)


def flip(path: Path, at: int, mask: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= mask
    path.write_bytes(data)


def flip_last(path: Path) -> None:
    flip(path, -1, 0x80)


def flip_middle(path: Path) -> None:
    flip(path, path.stat().st_size // 2, 0x10)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"}")


def remove(path: Path) -> None:
    path.unlink()


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"step": 1}))


DAMAGE = [flip_first, flip_last, flip_middle, truncate, empty, lengthen, remove, make_folder, make_pickle]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", [*FILES, CHUNK])
def test_damage_to_any_file_is_noticed_and_the_older_checkpoint_used(
    name: str, damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_full(tmp_path, 1)
    path = save_full(tmp_path, 2)
    damage((path / name).resolve())
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    # a damaged manifest may blame any file, every other file is named itself
    assert ("step-000000002" if name == "MANIFEST.json" else Path(name).name) in str(caught.value)
    found = latest(tmp_path)
    assert found.state == {"step": 1}
    assert_same(make_tensors(1), found.tensors)
    assert [(record.levelno, record.name) for record in caplog.records] == [(logging.WARNING, "fastdreamer.checkpoint")]
    assert caplog.messages == [f"checkpoint rejected: {caught.value}"]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_and_no_cut_is_missed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tmp_path_factory.mktemp("run")
    path = save_full(run, 2)
    target = (path / data.draw(st.sampled_from([*FILES, CHUNK]))).resolve()
    size = target.stat().st_size
    if data.draw(st.booleans()):
        flip(target, data.draw(st.integers(0, size - 1)), 1 << data.draw(st.integers(0, 7)))
    else:
        target.write_bytes(target.read_bytes()[: data.draw(st.integers(0, size - 1))])
    with pytest.raises(CheckpointError):
        load(path)


@pytest.mark.parametrize("extra", ["model2.safetensors", "replay/other.json", "deep/er/x.pkl", ".hidden"])
def test_an_extra_file_is_noticed(extra: str, tmp_path: Path) -> None:
    path = save_full(tmp_path, 2)
    (path / extra).parent.mkdir(parents=True, exist_ok=True)
    (path / extra).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"'{extra}': not in MANIFEST.json"):
        load(path)


def test_swapped_files_are_noticed(tmp_path: Path) -> None:
    path = save_full(tmp_path, 2)
    model, carry = (path / name for name in ("model.safetensors", "carry.safetensors"))
    swap = model.read_bytes()
    model.write_bytes(carry.read_bytes())
    carry.write_bytes(swap)
    with pytest.raises(CheckpointError, match=r"carry\.safetensors: \d+ bytes, expected \d+"):
        load(path)


def rewrite_manifest(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Changes the manifest, and makes the hashes fit whatever the files hold now."""
    manifest = json.loads((path / "MANIFEST.json").read_text())
    for name, entry in manifest["files"].items():
        data = (path / name).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(manifest)
    (path / "MANIFEST.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(format=2), "format 2, this version reads 1"),
        (lambda manifest: manifest.pop("format"), "format None, this version reads 1"),
        (lambda manifest: manifest.pop("files"), "no table of files"),
        (lambda manifest: manifest.update(files={"state.json": 1}), "no table of files"),
        (lambda manifest: manifest["files"].pop("state.json"), "'state.json': not in MANIFEST.json"),
        (lambda manifest: manifest["files"].update({"../../x\n": {}}), r"'\.\./\.\./x\\n': missing"),
        (
            lambda manifest: manifest["files"]["model.safetensors"]["tensors"].update(x=["float32", [1]]),
            "model.safetensors: its tensors are not those of the manifest",
        ),
    ],
)
def test_a_manifest_that_lies_is_noticed(
    change: Callable[[dict[str, object]], object], message: str, tmp_path: Path
) -> None:
    path = save_full(tmp_path, 2)
    rewrite_manifest(path, change)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def huge_header(path: Path) -> None:
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")


def huge_shape(path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


@pytest.mark.parametrize("damage", [huge_header, huge_shape, make_pickle, empty], ids=lambda damage: damage.__name__)
def test_hostile_tensors_with_a_fitting_manifest_are_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = save_full(tmp_path, 2)
    damage(path / "model.safetensors")
    rewrite_manifest(path, lambda manifest: None)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "nonsense", "\xff"])
def test_hostile_json_with_a_fitting_manifest_is_refused(text: str, tmp_path: Path) -> None:
    path = save_full(tmp_path, 2)
    (path / "state.json").write_text(text, encoding="latin-1")
    rewrite_manifest(path, lambda manifest: None)
    with pytest.raises(CheckpointError, match=r"state\.json: not (a )?JSON"):
        load(path)


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"chunks": []},
        {"chunks": {"../x": 1}},
        {"chunks": {"a/b": 1}},
        {"chunks": {"..": 1}},
        {"chunks": {"x": "1"}},
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(index: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plain file names and their crc32"):
        save(tmp_path, 1, {}, {}, index)
    path = save_full(tmp_path, 2)
    (path / "replay" / "index.json").write_text(json.dumps(index))
    rewrite_manifest(path, lambda manifest: None)
    with pytest.raises(CheckpointError, match="plain file names and their crc32"):
        load(path)


def test_an_index_of_a_chunk_that_was_not_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"chunk lost\.safetensors is not in"):
        save(tmp_path, 1, {}, {}, {"chunks": {"lost.safetensors": 1}})


def test_an_older_one_is_counted_among_those_that_can_be_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "KEEP", 3)
    for step in (1, 2, 3):
        save_full(tmp_path, step)
    assert [latest(tmp_path, back=back).state["step"] for back in (0, 1, 2, 3)] == [3, 2, 1, 1]
    flip_first(latest(tmp_path).path / "state.json")
    assert [latest(tmp_path, back=back).state["step"] for back in (0, 1, 2)] == [2, 1, 1]
