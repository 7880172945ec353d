"""The ops of fastdreamer: one folder each, holding its contract and its reference in plain PyTorch."""

from fastdreamer_kernels._dispatch import report
from fastdreamer_kernels.block_gru import block_gru
from fastdreamer_kernels.imagine_sequence import imagine_sequence
from fastdreamer_kernels.lambda_return import lambda_return
from fastdreamer_kernels.observe_sequence import observe_sequence
from fastdreamer_kernels.unimix_kl import unimix_kl
from fastdreamer_kernels.unimix_sample import unimix_sample

__all__ = [
    "block_gru",
    "imagine_sequence",
    "lambda_return",
    "observe_sequence",
    "report",
    "unimix_kl",
    "unimix_sample",
]
