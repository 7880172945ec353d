"""Layers, encoder and decoder. Parameters carry the official names and layout. Source: SPEC 2.1, 2.2, 2.4, 2.5.

Parameters are float32 and are cast where they are used; the dtype of the input decides what is computed.
Images are (..., H, W, C) everywhere; kernels of convolutions are (out, in, 5, 5), channels last.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdreamer.noise import Noise
from fastdreamer.spaces import Space, Spaces
from fastdreamer_kernels import mlp, norm_act
from fastdreamer_kernels.functional import Layer, Projection, block_linear, linear

TRUNCATION = 1.1368  # restores the standard deviation that cutting a normal at 2 takes away
STAGES = (2, 3, 4, 4)  # image channels per stage, in units of depth
# Which of the five taps of a kernel on upsampled pixels fall on each of three small pixels, for even and odd outputs.
PHASES = (
    ((1.0, 1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 1.0, 0.0), (0.0, 0.0, 0.0, 0.0, 1.0)),
    ((1.0, 0.0, 0.0, 0.0, 0.0), (0.0, 1.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0, 1.0)),
)

M = TypeVar("M", bound=nn.Module)


class Halves(torch.autograd.Function):
    """bfloat16 copies of float32 parameters that are there already, in place of a cast; gradients are cast as usual."""

    @staticmethod
    def forward(ctx: Any, kernel: Tensor, bias: Tensor, half: Tensor, half_bias: Tensor) -> tuple[Tensor, Tensor]:
        return half.view_as(half), half_bias.view_as(half_bias)

    @staticmethod
    def backward(ctx: Any, kernel: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return kernel.float(), bias.float(), None, None


class Kernel(nn.Module):
    """A kernel and its bias, filled by `initialize`: std outscale / sqrt(fan_in), cut at two standard deviations.

    halves: bfloat16 copies of both, where the optimizer keeps such.
    """

    def __init__(self, shape: tuple[int, ...], units: int, fan_in: int, outscale: float = 1.0) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(units))
        self.std = outscale / math.sqrt(fan_in)
        self.halves: Projection | None = None

    def weights(self, dtype: torch.dtype) -> Projection:
        """Kernel and bias in the compute dtype."""
        if self.halves is not None and dtype == self.halves.kernel.dtype:
            return Projection(*Halves.apply(self.kernel, self.bias, *self.halves))  # type: ignore[no-untyped-call]  # torch's
        return Projection(self.kernel.to(dtype), self.bias.to(dtype))


class Linear(Kernel):
    """(..., inputs) -> (..., units)."""

    def __init__(self, inputs: int, units: int, outscale: float = 1.0) -> None:
        super().__init__((inputs, units), units, inputs, outscale)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, *self.weights(x.dtype))


class BlockLinear(Kernel):
    """`blocks` groups of consecutive features, each with its own kernel; the fan-in is the whole input's."""

    def __init__(self, inputs: int, units: int, blocks: int) -> None:
        super().__init__((blocks, inputs // blocks, units // blocks), units, inputs)

    def forward(self, x: Tensor) -> Tensor:
        kernel, bias = self.weights(x.dtype)
        return block_linear(x, kernel) + bias


class Conv(Kernel):
    """5x5, stride 1, same padding: (N, H, W, inputs) -> (N, H, W, units)."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__((units, inputs, 5, 5), units, 25 * inputs)
        self.kernel.data = self.kernel.data.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        kernel, bias = self.weights(x.dtype)
        return F.conv2d(x.permute(0, 3, 1, 2), kernel, bias, padding=2).permute(0, 2, 3, 1)


class UpConv(Conv):
    """Nearest-neighbour upsampling, then the convolution: (N, H, W, inputs) -> (N, 2H, 2W, units).

    On upsampled pixels the 5x5 window sees only 3x3 different values, so each of the four phases of the output is a 3x3
    convolution of the small image, whose kernel sums taps of the large one: 9 products instead of 25.
    """

    fold: Tensor

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__(inputs, units)
        self.register_buffer("fold", torch.tensor(PHASES), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        fold = self.fold
        kernel = torch.einsum("pay,qbx,oiyx->opqiab", fold, fold, self.kernel).flatten(0, 2).to(x.dtype)
        bias = self.bias.to(x.dtype).repeat_interleave(4)
        phases = F.conv2d(x.permute(0, 3, 1, 2), kernel.contiguous(memory_format=torch.channels_last), bias, padding=1)
        return F.pixel_shuffle(phases, 2).permute(0, 2, 3, 1)


class Norm(nn.Module):
    """The scale of an RMSNorm."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(units))


class Named(nn.Module, Generic[M]):
    """Modules by key. Any key is allowed, also one that is the name of an attribute of `nn.Module`."""

    def __init__(self, modules: Mapping[str, M]) -> None:
        super().__init__()
        self._modules.update(modules)

    def __getitem__(self, key: str) -> M:
        return self._modules[key]  # type: ignore[return-value]  # an M, as given

    def values(self) -> Iterator[M]:
        """The modules, in the order of their keys' insertion."""
        return iter(self._modules.values())  # type: ignore[arg-type]  # as above


class MLP(nn.Module):
    """`layers` times linear -> norm -> act, (..., inputs) -> (..., units); parameters linear{i}, norm{i}."""

    def __init__(self, inputs: int, units: int, layers: int) -> None:
        super().__init__()
        self.layers = layers
        for i in range(layers):
            self.add_module(f"linear{i}", Linear(inputs if i == 0 else units, units))
            self.add_module(f"norm{i}", Norm(units))

    def weights(self, dtype: torch.dtype) -> tuple[Layer, ...]:
        """Every layer's weights in the compute dtype."""
        return tuple(layer_weights(self, f"linear{i}", f"norm{i}", dtype) for i in range(self.layers))

    def forward(self, x: Tensor, stoch: Tensor | None = None, output: Linear | None = None) -> Tensor:
        """(..., inputs) -> (..., units), or the width of the output; a state is x, its deter, and its classes stoch."""
        return mlp(self.weights(x.dtype), None if output is None else output.weights(x.dtype), x, stoch)


def layer_weights(module: nn.Module, kernel: str, norm: str, dtype: torch.dtype) -> Layer:
    """The weights of one linear -> norm -> act layer whose two parts are submodules of `module`."""
    return Layer(*kernel_weights(module, kernel, dtype), norm_scale(module, norm))


def kernel_weights(module: nn.Module, name: str, dtype: torch.dtype) -> Projection:
    """Kernel and bias of a submodule in the compute dtype."""
    part = getattr(module, name)
    assert isinstance(part, Kernel)
    return part.weights(dtype)


def norm_scale(module: nn.Module, name: str) -> Tensor:
    """The scale of a submodule."""
    part = getattr(module, name)
    assert isinstance(part, Norm)
    return part.scale


@torch.no_grad()
def initialize(module: nn.Module, noise: Noise) -> None:
    """Fills every kernel with its truncated normal, in the order of the names: the same values on every device."""
    for _, part in sorted(module.named_modules()):
        if isinstance(part, Kernel):
            below = 0.5 * (1 + math.erf(-2 / math.sqrt(2)))  # mass of a normal below -2
            u = noise.uniform(part.kernel.numel()).double() * (1 - 2 * below) + below
            part.kernel.copy_((torch.special.ndtri(u) * TRUNCATION * part.std).float().view(part.kernel.shape))


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def onehot(index: Tensor, classes: int) -> Tensor:
    """(...) -> (..., classes) float32; an index of -1 (absent) gives zeros."""
    return (index.unsqueeze(-1) == torch.arange(classes, device=index.device)).float()


def concat_vectors(values: dict[str, Tensor], spaces: Spaces, lead: int, squish: bool) -> Tensor:
    """Every non-image key, flattened and joined in alphabetical order: (..., sum of widths) float32.

    `lead` counts the leading batch axes. Discrete values become one-hot; floats go through symlog if `squish`,
    and -inf (absent) becomes 0. Source: SPEC 2.2.
    """
    parts = []
    for key in sorted(spaces):
        value, space = values[key], spaces[key]
        if space.kind == "discrete":
            parts.append(onehot(value, space.classes).flatten(lead))
        elif space.kind == "vector":
            value = value.reshape(*value.shape[:lead], -1).float()
            value = torch.where(torch.isneginf(value), 0.0, value)
            parts.append(symlog(value) if squish else value)
    return torch.cat(parts, -1)


class Encoder(nn.Module):
    """Observations (B, T, ...) -> tokens (B, T, E): vectors through an MLP, images through four pooled stages."""

    def __init__(self, spaces: Spaces, units: int, depth: int) -> None:
        super().__init__()
        self.images, self.vectors = split_spaces(spaces)
        self.width = 0
        if self.vectors:
            inputs = sum(space.width for space in self.vectors.values())
            for i in range(3):
                self.add_module(f"mlp{i}", Linear(inputs if i == 0 else units, units))
                self.add_module(f"mlp{i}norm", Norm(units))
            self.width += units
        if self.images:
            channels = sum(space.shape[2] for space in self.images.values())
            for i, stage in enumerate(STAGES):
                self.add_module(f"cnn{i}", Conv(channels, depth * stage))
                self.add_module(f"cnn{i}norm", Norm(depth * stage))
                channels = depth * stage
            height, width = image_resolution(self.images)
            self.width += height * width * channels

    def forward(self, obs: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        tokens = []
        if self.vectors:
            x = concat_vectors(obs, self.vectors, 2, squish=True).to(dtype)
            layers = tuple(layer_weights(self, f"mlp{i}", f"mlp{i}norm", dtype) for i in range(3))
            tokens.append(mlp(layers, None, x))
        if self.images:
            pixels = torch.cat([obs[key] for key in self.images], -1)  # (B, T, H, W, C)
            x = pixels.flatten(0, 1).to(dtype) / 255 - 0.5
            for i in range(len(STAGES)):
                x = self.get_submodule(f"cnn{i}")(x)
                x = F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
                x = norm_act(x, norm_scale(self, f"cnn{i}norm"))
            tokens.append(x.flatten(1).unflatten(0, pixels.shape[:2]))
        return torch.cat(tokens, -1)


class Decoder(nn.Module):
    """deter (B, T, D) and one-hot stoch (B, T, S*K) -> one prediction per observation key, in the compute dtype.

    image     (B, T, H, W, C) in (0, 1)
    vector    (B, T, *shape): predicts symlog of the value
    discrete  (B, T, *shape, classes): logits
    """

    def __init__(self, spaces: Spaces, deter: int, stoch: int, units: int, depth: int, blocks: int) -> None:
        super().__init__()
        self.images, self.vectors = split_spaces(spaces)
        if self.vectors:
            self.mlp = MLP(stoch + deter, units, 3)
            self.vec = Named(
                {key: Named({_output(space): Linear(units, space.width)}) for key, space in self.vectors.items()}
            )
        if self.images:
            self.height, self.width = image_resolution(self.images)
            channels = depth * STAGES[-1]
            if channels % blocks:
                allowed = f"{STAGES[-1]} x model.depth must be a multiple of model.blocks {blocks}"
                raise ValueError(f"model.depth: for images {allowed}, got {depth}")
            size = self.height * self.width * channels
            self.sp0 = BlockLinear(deter, size, blocks)
            self.sp1 = Linear(stoch, 2 * units)
            self.sp1norm = Norm(2 * units)
            self.sp2 = Linear(2 * units, size)
            self.spnorm = Norm(channels)
            for i in reversed(range(len(STAGES) - 1)):
                self.add_module(f"conv{i}", UpConv(channels, depth * STAGES[i]))
                self.add_module(f"conv{i}norm", Norm(depth * STAGES[i]))
                channels = depth * STAGES[i]
            self.imgout = UpConv(channels, sum(space.shape[2] for space in self.images.values()))

    def forward(self, deter: Tensor, stoch: Tensor) -> dict[str, Tensor]:
        predictions = {}
        if self.vectors:
            x = self.mlp(torch.cat([stoch, deter], -1))
            for key, space in self.vectors.items():
                out = self.vec[key][_output(space)](x)
                shape = (*space.shape, space.classes) if space.kind == "discrete" else space.shape
                predictions[key] = out.reshape(*x.shape[:2], *shape)
        if self.images:
            pixels = self._decode_images(deter.flatten(0, 1), stoch.flatten(0, 1)).unflatten(0, deter.shape[:2])
            channels = [space.shape[2] for space in self.images.values()]
            predictions.update(zip(self.images, pixels.split(channels, -1), strict=True))
        return predictions

    def _decode_images(self, deter: Tensor, stoch: Tensor) -> Tensor:
        blocks = self.sp0.kernel.shape[0]
        x = self.sp0(deter).view(-1, blocks, self.height, self.width, self.spnorm.scale.numel() // blocks)
        x = x.permute(0, 2, 3, 1, 4).flatten(3)  # (N, h, w, blocks * channels / blocks)
        spatial = self.sp2(norm_act(self.sp1(stoch), self.sp1norm.scale))
        x = norm_act(x + spatial.view(x.shape), self.spnorm.scale)
        for i in reversed(range(len(STAGES) - 1)):
            x = self.get_submodule(f"conv{i}")(x)
            x = norm_act(x, norm_scale(self, f"conv{i}norm"))
        return torch.sigmoid(self.imgout(x))


def split_spaces(spaces: Spaces) -> tuple[Spaces, Spaces]:
    """Image keys and the other keys, each in alphabetical order."""
    keys = sorted(spaces)
    images = {key: spaces[key] for key in keys if spaces[key].kind == "image"}
    return images, {key: spaces[key] for key in keys if key not in images}


def image_resolution(images: Spaces) -> tuple[int, int]:
    """Height and width after the four halvings. Raises ValueError where they cannot be halved or do not agree."""
    sizes = {key: space.shape[:2] for key, space in images.items()}
    height, width = next(iter(sizes.values()))
    if len(set(sizes.values())) > 1:
        raise ValueError(f"observations: image keys must share one height and width, got {sizes}")
    scale = 2 ** len(STAGES)
    if any(side % scale or not 3 <= side // scale <= 16 for side in (height, width)):
        allowed = f"multiples of {scale} from {3 * scale} to {16 * scale}"
        raise ValueError(f"observations: image sides must be {allowed} pixels, got {height}x{width}")
    return height // scale, width // scale


def _output(space: Space) -> str:
    return "logits" if space.kind == "discrete" else "pred"
