"""Observations as the agent sees them: uint8 HWC images, float32 vectors, int32 classes from 0; checked on the way."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces
from PIL import Image

from fastdreamer.env_spaces import Tree
from fastdreamer.env_step import AnyArray, AnySpace, Arrays, EnvError, require_finite
from fastdreamer.spaces import Space, Spaces

# Four poolings leave the encoder a final resolution of 3..16 (SPEC 2.4).
SIDES = range(48, 257, 16)
# A smaller uint8 array is a grid of symbols or a list of bytes, not a picture.
SMALLEST_SIDE = 32
ALLOWED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these"


@dataclass(frozen=True)
class ImageKey:
    """uint8 pixels (N, H, W, C), (N, C, H, W) or (N, H, W), resized where `side` says so."""

    space: Space
    channels_first: bool
    resized: bool

    def decode(self, name: str, value: AnyArray) -> AnyArray:
        if value.ndim == 3:
            value = value[..., None]
        if self.channels_first:
            value = _channels_last(value)
        return _resize(value, self.space.shape[0]) if self.resized else np.ascontiguousarray(value)


@dataclass(frozen=True)
class VectorKey:
    """Anything numeric, as float32."""

    space: Space

    def decode(self, name: str, value: AnyArray) -> AnyArray:
        with np.errstate(over="ignore"):
            vector = value.astype(np.float32, copy=False).reshape(-1, *self.space.shape)
        require_finite(f'observation "{name}"', vector)
        return vector


@dataclass(frozen=True)
class ClassKey:
    """Integers start .. start + classes - 1, handed on as 0 .. classes - 1."""

    space: Space
    start: int

    def decode(self, name: str, value: AnyArray) -> AnyArray:
        index = value.astype(np.int64).reshape(-1, *self.space.shape) - self.start
        wrong = (index < 0) | (index >= self.space.classes)
        if wrong.any():
            env, last = int(np.argwhere(wrong)[0, 0]), self.start + self.space.classes - 1
            got = int(index[wrong][0]) + self.start
            raise EnvError(f'env {env}: observation "{name}" is {got}, outside its space {self.start}..{last}')
        return index.astype(np.int32)


class ObservationCodec:
    """The observation keys of one kind of environment."""

    def __init__(self, leaves: dict[str, AnySpace], resize: int = 0) -> None:
        """`resize`: side in pixels that every image gets, 0 for none. Raises EnvError for what cannot be observed."""
        if resize and resize not in SIDES:
            raise EnvError(f"env.options.resize must be one of {_listed(SIDES)}, got {resize}")
        self._keys = {name: _observation_key(name, leaf, resize) for name, leaf in leaves.items()}
        if not self._keys:
            raise EnvError("the observation space is empty")
        self.spaces: Spaces = {name: key.space for name, key in self._keys.items()}

    def decode(self, raw: Arrays) -> Arrays:
        """Batches (N, ...) in the environment's dtype and layout to those of `spaces`; EnvError for a bad value."""
        return {name: key.decode(name, raw[name]) for name, key in self._keys.items()}


def observation_tree(space: AnySpace) -> Tree:
    """The keys of an observation space; a bare one is "image" or "vector"."""
    return Tree(space, bare="image" if _is_picture(space) else "vector")


def keep_keys(leaves: dict[str, AnySpace], keys: str) -> dict[str, AnySpace]:
    """The leaves named in the comma-separated `keys`, all for an empty string. Raises EnvError for an unknown one."""
    names = [name.strip() for name in keys.split(",") if name.strip()]
    for name in names:
        if name not in leaves:
            raise EnvError(f'env.options.keys: there is no observation "{name}", only {", ".join(leaves)}')
    return {name: leaf for name, leaf in leaves.items() if not names or name in names}


def _observation_key(name: str, leaf: AnySpace, resize: int) -> ImageKey | VectorKey | ClassKey:
    if isinstance(leaf, spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete) and 0 in leaf.shape:
        raise EnvError(f'observation "{name}" has shape {leaf.shape}, no elements; leave it out with env.options.keys')
    match leaf:
        case spaces.Box() if leaf.dtype == np.uint8 and len(leaf.shape) > 3:
            raise EnvError(f'observation "{name}" is uint8 of shape {leaf.shape}; an image has 2 or 3 axes')
        case spaces.Box() if _is_picture(leaf):
            return _image_key(name, leaf.shape, resize)
        case spaces.Box() if leaf.dtype.kind in "fiub":
            return VectorKey(Space("vector", leaf.shape))
        case spaces.MultiBinary():
            return VectorKey(Space("vector", leaf.shape))
        case spaces.Discrete():
            return ClassKey(Space("discrete", (), int(leaf.n)), int(leaf.start))
        case spaces.MultiDiscrete():
            classes, start = int(leaf.nvec.flat[0]), int(leaf.start.flat[0])
            return ClassKey(Space("discrete", leaf.shape, classes), start)
    kind = f"{leaf.dtype} Box" if isinstance(leaf, spaces.Box) else type(leaf).__name__
    raise EnvError(f'observation "{name}" is a {kind}; allowed: {ALLOWED}; leave it out with env.options.keys')


def _is_picture(leaf: AnySpace) -> bool:
    if not isinstance(leaf, spaces.Box) or leaf.dtype != np.uint8 or len(leaf.shape) not in (2, 3):
        return False
    return min(_height_width(leaf.shape)) >= SMALLEST_SIDE


def _height_width(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[1], shape[2]) if _channels_first(shape) else (shape[0], shape[1])


def _channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] < min(shape[1:])


def _image_key(name: str, shape: tuple[int, ...], resize: int) -> ImageKey:
    height, width = _height_width(shape)
    if not resize and (height != width or height not in SIDES):
        raise EnvError(
            f'observation "{name}" is {height}x{width} pixels; an image must be square with a side of'
            f" {_listed(SIDES)}: choose that size in env.options, or set env.options.resize"
        )
    channels = 1 if len(shape) == 2 else shape[0] if _channels_first(shape) else shape[2]
    side = resize or height
    return ImageKey(Space("image", (side, side, channels)), _channels_first(shape), (height, width) != (side, side))


def _channels_last(images: AnyArray) -> AnyArray:
    """(N, C, H, W) to (N, H, W, C); plane by plane, which is four times faster than copying the transposed array."""
    num_envs, channels, height, width = images.shape
    out = np.empty((num_envs, height, width, channels), images.dtype)
    for channel in range(channels):
        out[..., channel] = images[:, channel]
    return out


def _resize(images: AnyArray, side: int) -> AnyArray:
    """(N, H, W, C) to (N, side, side, C), bilinear with Pillow's own low-pass filter, channel by channel."""
    num_envs, channels = images.shape[0], images.shape[3]
    out = np.empty((num_envs, side, side, channels), np.uint8)
    for env in range(num_envs):
        for channel in range(channels):
            plane = Image.fromarray(np.ascontiguousarray(images[env, :, :, channel]))
            out[env, :, :, channel] = np.asarray(plane.resize((side, side), Image.Resampling.BILINEAR))
    return out


def _listed(values: Iterable[int]) -> str:
    first, second, *_, last = values
    return f"{first}, {second}, ..., {last}"
