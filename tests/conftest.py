import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from cuda_fence import Fence

# Read when triton is imported: without a GPU its kernels run in the interpreter.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"

pytest_plugins = ["golden_plugin"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel forgets to write is NaN, or the lowest integer."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoning(getattr(owner, name)))


def poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    from kernel_cases import poison  # not before TRITON_INTERPRET is set

    return lambda *args, **options: poison(allocate(*args, **options))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="the kernels are compiled for the GPU")),
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(INTERPRETED, reason="interpreted")]),
    ]
)
def fence(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator["Fence"]:
    """What a Triton kernel allocates lies between guards, which are checked at the end."""
    from cuda_fence import Fence  # not before TRITON_INTERPRET is set

    fence = Fence(request.param)
    monkeypatch.setattr(torch, "empty", fence.empty)
    monkeypatch.setattr(torch, "empty_like", fence.empty_like)
    yield fence
    fence.check()
