"""The ops of fastdreamer: one folder each, holding its contract and its reference in plain PyTorch."""

from fastdreamer_kernels._dispatch import forced, report
from fastdreamer_kernels.block_gru import block_gru
from fastdreamer_kernels.imagine_sequence import imagine_sequence
from fastdreamer_kernels.lambda_return import lambda_return
from fastdreamer_kernels.laprop_agc import laprop_agc
from fastdreamer_kernels.mlp import mlp
from fastdreamer_kernels.norm_act import norm_act
from fastdreamer_kernels.observe_sequence import observe_sequence
from fastdreamer_kernels.philox import philox
from fastdreamer_kernels.replay_gather import replay_gather
from fastdreamer_kernels.twohot import twohot_loss, twohot_mean
from fastdreamer_kernels.unimix_kl import unimix_kl
from fastdreamer_kernels.unimix_sample import unimix_sample

__all__ = [
    "block_gru",
    "forced",
    "imagine_sequence",
    "lambda_return",
    "laprop_agc",
    "mlp",
    "norm_act",
    "observe_sequence",
    "philox",
    "replay_gather",
    "report",
    "twohot_loss",
    "twohot_mean",
    "unimix_kl",
    "unimix_sample",
]
