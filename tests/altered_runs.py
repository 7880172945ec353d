"""A run folder with one checkpoint, to be altered so that its hashes still fit."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from test_loop import tiny_config
from torch import Tensor

from fastdreamer import checkpoint
from fastdreamer.config import EnvConfig
from fastdreamer.disk import crc32
from fastdreamer.loop import Training

Tensors = dict[str, Tensor]
Table = dict[str, Any]


def make_run(folder: Path) -> None:
    """A tiny run, saved in the middle of its episodes."""
    config = tiny_config(folder, steps=10**6)
    config = replace(config, env=EnvConfig(id="fake_envs:Walk", num_envs=2))
    training = Training(config, None)
    while training.progress.updates < 2:
        training.advance()
    training.save(folder)
    training.env.close()
    (folder / "config.json").write_text(json.dumps(config.to_json()))


class AlteredRun:
    """A copy of a run folder."""

    def __init__(self, source: Path, folder: Path) -> None:
        shutil.copytree(source, folder)
        self.folder = folder
        (self.path,) = (folder / "checkpoints").iterdir()

    def tensors(self, group: str, change: Callable[[Tensors], object]) -> None:
        """Changes the tensors of a group; its file goes where none is left."""
        path = self.path / f"{group}.safetensors"
        tensors = load_file(path) if path.exists() else {}
        change(tensors)
        path.unlink(missing_ok=True)
        if tensors:
            save_file({name: value.contiguous() for name, value in tensors.items()}, path)
        self.seal()

    def table(self, name: str, change: Callable[[Table], object]) -> None:
        """Changes a JSON file of the checkpoint, or config.json."""
        path = self.folder / name if name == "config.json" else self.path / name
        table = json.loads(path.read_text())
        change(table)
        path.write_text(json.dumps(table))
        self.seal()

    def chunk(self, kind: str, change: Callable[[Tensors], object]) -> None:
        """Changes the tensors of the first file of a kind in the replay, and its checksum."""
        index = json.loads((self.path / "replay/index.json").read_text())
        name = min(name for name in index["chunks"] if name.startswith(kind))
        path = self.folder / "replay" / name
        tensors = load_file(path)
        change(tensors)
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)
        self.table("replay/index.json", lambda table: table["chunks"].update({name: crc32(path)}))

    def seal(self) -> None:
        """A manifest that fits whatever the files hold now."""
        files = {}
        for name in checkpoint._files(self.path):
            if name != checkpoint.MANIFEST:
                readable = name.endswith(checkpoint.TENSORS) and self._readable(self.path / name)
                shapes = checkpoint._describe(load_file(self.path / name)) if readable else None
                files[name] = checkpoint._entry(self.path / name, shapes)
        manifest = {"format": checkpoint.FORMAT, "files": files}
        (self.path / checkpoint.MANIFEST).write_text(json.dumps(manifest))

    @staticmethod
    def _readable(path: Path) -> bool:
        try:
            load_file(path)
        except (OSError, ValueError, checkpoint.SafetensorError):
            return False
        return True
