"""Nested gymnasium spaces as flat keys: Dict and Tuple levels are joined by "/".

A MultiDiscrete whose elements differ in size is one key per element, "<key>/0" and so on.
"""

from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from gymnasium import spaces

from fastdreamer.env_step import AnyArray, AnySpace, Arrays, EnvError


class Tree:
    """A space and its leaves; values can be those of one environment or a batch (N, ...)."""

    def __init__(self, space: AnySpace, bare: str) -> None:
        """`bare`: the key of a space that is a leaf itself. Raises EnvError where two leaves get the same key."""
        self._space = space
        self._root = "" if isinstance(space, spaces.Dict | spaces.Tuple) else bare
        self.leaves: dict[str, AnySpace] = {}
        for key, leaf in _leaves(space, self._root):
            if key in self.leaves:
                raise EnvError(f'two parts of its space have the same flat key "{key}"')
            self.leaves[key] = leaf

    def split(self, value: object) -> dict[str, object]:
        """The leaves of a nested value by flat key. Raises EnvError where its structure is not that of the space."""
        return dict(_split(self._space, self._root, value))

    def join(self, leaves: Arrays) -> object:
        """The nested batch of (N, ...) arrays by flat key."""
        return _join(self._space, self._root, leaves)


def as_numbers(value: object, what: str, leaf: AnySpace) -> AnyArray:
    """An array of numbers, of whatever shape and dtype. Raises EnvError for any other value of `what`."""
    with suppress(RuntimeError, TypeError, ValueError):  # a ragged list, a tensor on a GPU or with a gradient
        array = np.asarray(value)
        if array.dtype.kind in "biufc":
            return array
    got = value.dtype if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
    raise EnvError(f"{what} must be {leaf.dtype} of shape {leaf.shape}, got {got}")


def _leaves(space: AnySpace, name: str) -> Iterator[tuple[str, AnySpace]]:
    match space:
        case spaces.Dict():
            for key, child in space.spaces.items():
                yield from _leaves(child, _below(name, key))
        case spaces.Tuple():
            for at, child in enumerate(space.spaces):
                yield from _leaves(child, _below(name, at))
        case spaces.MultiDiscrete() if _ragged(space):
            for index in np.ndindex(space.nvec.shape):
                yield _below(name, *index), spaces.Discrete(int(space.nvec[index]), start=int(space.start[index]))
        case _:
            yield name, space


def _split(space: AnySpace, name: str, value: object) -> Iterator[tuple[str, object]]:
    match space:
        case spaces.Dict():
            if not isinstance(value, dict) or value.keys() != space.spaces.keys():
                got = f"the keys {sorted(map(str, value))}" if isinstance(value, dict) else f"a {type(value).__name__}"
                expected = sorted(map(str, space.spaces))
                raise EnvError(f"{_named(name)} must be a dict with the keys {expected}, got {got}")
            for key, child in space.spaces.items():
                yield from _split(child, _below(name, key), value[key])
        case spaces.Tuple():
            if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
                got = f"{len(value)} parts" if isinstance(value, tuple | list) else f"a {type(value).__name__}"
                raise EnvError(f"{_named(name)} must be a tuple of {len(space.spaces)} parts, got {got}")
            for at, child in enumerate(space.spaces):
                yield from _split(child, _below(name, at), value[at])
        case spaces.MultiDiscrete() if _ragged(space):
            array = as_numbers(value, _named(name), space)
            if array.shape[-space.nvec.ndim :] != space.nvec.shape:
                raise EnvError(f"{_named(name)} must have shape {space.nvec.shape}, got {array.shape}")
            for index in np.ndindex(space.nvec.shape):
                yield _below(name, *index), array[(..., *index)]
        case _:
            yield name, value


def _join(space: AnySpace, name: str, leaves: Arrays) -> object:
    match space:
        case spaces.Dict():
            return {key: _join(child, _below(name, key), leaves) for key, child in space.spaces.items()}
        case spaces.Tuple():
            return tuple(_join(child, _below(name, at), leaves) for at, child in enumerate(space.spaces))
        case spaces.MultiDiscrete() if _ragged(space):
            columns = [leaves[_below(name, *index)] for index in np.ndindex(space.nvec.shape)]
            return np.stack(columns, axis=1).reshape(-1, *space.nvec.shape)
        case _:
            return leaves[name]


def _ragged(space: spaces.MultiDiscrete) -> bool:
    return len({*zip(space.nvec.flat, space.start.flat, strict=True)}) > 1


def _below(name: str, *keys: str | int) -> str:
    return "/".join([*([name] if name else []), *map(str, keys)])


def _named(name: str) -> str:
    return f'observation "{name}"' if name else "the observation"
