"""What every file needs on its way to the disk."""

import errno
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

READ_BYTES = 1 << 20


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file that is on the disk when this returns. Raises OSError where that fails."""
    try:
        safetensors.torch.save_file(dict(tensors), path)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error
    sync(path)


def sync(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def crc32(path: Path) -> int:
    """The checksum of a file as a replay index names it."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            value = zlib.crc32(block, value)
    return value
