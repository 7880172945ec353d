"""Chunks of the replay ring as files: named after their content, so a file that exists is never written again."""

import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastdreamer.checkpoint import crc32


class Chunk(NamedTuple):
    """A file of successive records of every environment."""

    name: str
    crc32: int


def write_chunk(folder: Path, kind: str, first: int, tensors: Mapping[str, Tensor]) -> Chunk:
    """Writes tensors (N, records, ...) that begin at record number `first` to folder/kind-first-crc32.safetensors.

    Raises OSError where that fails; a file of this name is there as a whole or not at all.
    """
    temporary = folder / f".tmp-{os.getpid()}-{secrets.token_hex(4)}.safetensors"
    packed = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(packed, temporary, metadata={"first": str(first)})
    crc = crc32(temporary)
    name = f"{kind}-{first:010}-{crc:08x}.safetensors"
    os.rename(temporary, folder / name)
    return Chunk(name, crc)


def read_chunk(path: Path) -> Iterator[tuple[int, str, Tensor]]:
    """Yields (number of the first record, key, tensor (N, records, ...)) of a chunk file, one tensor at a time.

    Raises ValueError where it cannot be read or is no chunk.
    """
    try:
        with safe_open(path, "pt") as file:
            first = int((file.metadata() or {})["first"])
            for key in file.keys():  # noqa: SIM118 (not a dict)
                yield first, key, file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    except KeyError as error:
        raise ValueError(f"{path}: not a chunk of replay: it does not say where it begins") from error
