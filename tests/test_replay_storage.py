"""Whether the ring fits into memory is known before it fills up."""

from pathlib import Path

import pytest
import torch
from fake_replay import make_ring

from fastdreamer import replay_storage
from fastdreamer.replay import Replay
from fastdreamer.replay_storage import Field, allocate, available_memory
from fastdreamer.spaces import Space

GB = 10**9
STAT = "anon 5\nactive_file 300\ninactive_file 200\n"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with 64 kB available and no control group; what is written under `cgroup` is believed."""
    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\nMemFree: 3 kB\nMemAvailable:     64 kB\n")
    (tmp_path / "cgroup/memory").mkdir(parents=True)
    monkeypatch.setattr(replay_storage, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(replay_storage, "CGROUP", tmp_path / "cgroup")
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


def test_the_system_says_what_is_available(system: Path) -> None:
    assert available_memory() == 64 * 1024


@pytest.mark.parametrize(
    "limit, available", [("max\n", 64 * 1024), ("100000\n", 64 * 1024), ("10000\n", 10000 - 4000 + 500)]
)
def test_a_control_group_may_allow_less_and_its_cached_files_do_not_count(
    system: Path, limit: str, available: int
) -> None:
    write(system / "cgroup", {"memory.max": limit, "memory.current": "4000\n", "memory.stat": STAT})
    assert available_memory() == available


def test_the_first_version_of_control_groups_counts_its_children(system: Path) -> None:
    stat = STAT + "total_active_file 600\ntotal_inactive_file 400\n"
    files = {"memory.limit_in_bytes": "10000\n", "memory.usage_in_bytes": "4000\n", "memory.stat": stat}
    write(system / "cgroup/memory", files)
    assert available_memory() == 10000 - 4000 + 1000


def test_without_linux_all_memory_counts(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (system / "meminfo").unlink()
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 7, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert available_memory() == 7 * 4096


def test_a_ring_that_cannot_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """5e6 windows of 16 environments and size200m need 312500 + 64 + 2 x 65 rows each, in files of 1024."""
    monkeypatch.setattr(replay_storage, "available_memory", lambda: 100 * GB)
    monkeypatch.setattr("fastdreamer.replay.allocate", lambda *_: pytest.fail("memory was taken"))
    spaces = {"image": Space("image", (64, 64, 3))}, {"action": Space("discrete", (), 18)}
    message = (
        r"^replay\.capacity: 5000000 windows of 16 environments need (\S+) GB of memory, but 100\.0 GB are available$"
    )
    for dtype, need in ((torch.bfloat16, 16), (torch.float32, 32)):
        with pytest.raises(ValueError, match=message) as error:
            Replay(
                *spaces, deter=8192, stoch=32, num_envs=16, capacity=5_000_000, batch_size=16, batch_length=64,
                seed=0, dtype=dtype,
            )  # fmt: skip
        record = 64 * 64 * 3 + 4 + 4 + 3 + 8192 * need // 8 + 32
        assert f"need {16 * 306 * 1024 * record / 1e9:.1f} GB" in str(error.value)


def test_a_ring_that_just_fits_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 2 * 1024  # the 25 + 4 + 2 x 5 that are needed, in whole files
    need = rows * (6 + 12 + 4 + 8 + 8 + 4 + 3 + 16 + 3)
    monkeypatch.setattr(replay_storage, "available_memory", lambda: need)
    make_ring()
    monkeypatch.setattr(replay_storage, "available_memory", lambda: need - 1)
    with pytest.raises(ValueError, match="need"):
        make_ring()


def test_every_field_has_the_type_of_its_space() -> None:
    spaces = [Space("image", (2, 3, 1)), Space("vector", (4,)), Space("discrete", (5,), 9)]
    fields = [Field.of(space) for space in spaces]
    assert fields == [((2, 3, 1), torch.uint8), ((4,), torch.float32), ((5,), torch.int32)]
    assert [field.bytes for field in fields] == [6, 16, 20]
    tensor = allocate({"a": fields[0]}, (7, 8), torch.device("cpu"))["a"]
    assert (tensor.shape, tensor.dtype) == ((7, 8, 2, 3, 1), torch.uint8)
