"""Layers against the official arrays: symlog, norm, linear, block linear, convolution, MLP, pooling, upsampling."""

import pytest
import torch
import torch.nn.functional as F
from formulas import symexp
from golden_arrays import FORWARD, Golden
from golden_modules import fill, official_names

from fastdreamer.nets import MLP, BlockLinear, Conv, Linear, UpConv, symlog
from fastdreamer_kernels.functional import rms_norm


def test_symlog_and_symexp(golden: Golden) -> None:
    arrays = golden.open("scalars_dists.npz")
    arrays.compare("symlog_y", symlog(arrays.read("symlog_x")), FORWARD)
    arrays.compare("symexp_y", symexp(arrays.read("symexp_x")), FORWARD)


def test_rms_norm_of_vectors_and_images(golden: Golden) -> None:
    arrays = golden.open("rmsnorm.npz")
    arrays.compare("y", rms_norm(arrays.read("x"), arrays.read("param:n/scale")), FORWARD)
    arrays.compare("img_y", rms_norm(arrays.read("img"), arrays.read("param:n2/scale")), FORWARD)


def test_layer_norm_that_no_network_uses(golden: Golden) -> None:
    arrays = golden.open("rmsnorm.npz")
    x, scale, shift = arrays.read("x"), arrays.read("param:n3/scale"), arrays.read("param:n3/shift")
    arrays.compare("layer_y", F.layer_norm(x, x.shape[-1:], scale, shift, eps=1e-4), FORWARD)


LAYERS = {
    "linear": Linear(24, 7),
    "block": BlockLinear(24, 16, 4),
    "mlp": MLP(24, 9, 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(golden: Golden, name: str) -> None:
    arrays, module = golden.open("layers.npz"), LAYERS[name]
    fill(official_names(module), arrays.group(f"param:{name}/"))
    arrays.compare(f"out:{name}", module(arrays.read("x")), FORWARD)


def test_linear_with_a_shape_as_output(golden: Golden) -> None:
    arrays, module = golden.open("layers.npz"), Linear(24, 12)
    fill(official_names(module), arrays.group("param:lintup/"))
    arrays.compare("out:linear_tuple", module(arrays.read("x")).unflatten(-1, (3, 4)), FORWARD)


def test_convolution(golden: Golden) -> None:
    arrays, module = golden.open("layers.npz"), Conv(3, 4)
    fill(official_names(module), arrays.group("param:conv5/"))
    arrays.compare("out:conv5", module(arrays.read("img")), FORWARD)


def test_max_pool_and_upsampling(golden: Golden) -> None:
    arrays = golden.open("layers.npz")
    img = arrays.read("img")
    arrays.compare("pool", F.max_pool2d(img.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1), FORWARD)
    identity = UpConv(img.shape[-1], img.shape[-1])
    identity.kernel.data[:, :, 2, 2] = torch.eye(img.shape[-1])
    arrays.compare("upsample", identity(img), FORWARD)
