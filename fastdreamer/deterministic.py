"""The same bits from the same seed, on one machine: torch set up so that nothing it computes depends on timing."""

import os

import torch


def make_deterministic() -> None:
    """For the rest of this process; before it first uses a GPU. Raises RuntimeError later, in an op that cannot be so.

    Source: pytorch.org, "Reproducibility". Our own kernels have neither atomics nor autotuning.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    # Filled with NaN, the ring's memory would be committed before it is used.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # made at run time
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
