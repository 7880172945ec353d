"""The command line: a preset, and a flag for every field of Config.

One checker serves flags and config.json: flags go into the preset's plain data, and `Config.from_json` reads it.
tyro makes the help. Nothing here imports torch, so that help and errors come at once.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass, replace
from math import isfinite
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, NamedTuple, NoReturn, get_args, get_type_hints

from fastdreamer import __version__
from fastdreamer.config import Config, EnvConfig, LossConfig, ModelConfig, OptimConfig, Option, ReplayConfig, RunConfig
from fastdreamer.presets import PRESETS

PROGRAM = "python -m fastdreamer.train"
SCRIPT = "fastdreamer-train"
"""The same as a program of its own, for a shell to complete."""
SHELLS = "bash", "zsh"
OPTIONS = "env.options"
SHORT = {"--deterministic": "run.deterministic"}
RESUMABLE = (
    "env.timeout", "run.steps", "run.device", "run.deterministic", "run.threads", "run.log_every", "run.save_every",
    "run.eval_episodes", "run.eval_every", "run.videos", "run.tracker", "run.solved",
)  # fmt: skip
"""What may change when a run goes on."""


class Job(NamedTuple):
    """What the command line asks for. `resume`: config.run.dir holds a run to go on with."""

    config: Config
    resume: bool


class _Words(NamedTuple):
    preset: str | None
    resume: str | None
    flags: dict[str, str]
    shell: str | None
    help: bool


class Parser(argparse.ArgumentParser):
    """Of a command that takes a run folder; a mistake is one line. `name`: the module."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(prog=f"python -m fastdreamer.{name}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        fail(message)


def fail(message: object, code: int = 2) -> NoReturn:
    """End the program with one line on stderr; exit code 2 is a user's mistake."""
    line = "".join(each if each.isprintable() else "?" for each in " ".join(str(message).split()))
    print(f"fastdreamer: error: {line}", file=sys.stderr)
    raise SystemExit(code)


def parse(argv: Sequence[str]) -> Job:
    """The job that `argv` (without the program) asks for.

    Raises SystemExit: 0 after --help and --version, 2 after a mistake, which `fail` has named.
    """
    if "--version" in argv:
        print(f"fastdreamer {__version__}")
        raise SystemExit(0)
    try:
        words = _split(argv)
        if words.shell is not None:
            _complete(words.shell)
        if words.help:
            _help(_preset(words))
        if words.resume is not None:
            return Job(_resumed(words, Path(words.resume)), resume=True)
        return Job(_changed(_preset(words), words.flags), resume=False)
    except ValueError as error:
        fail(error)


def _split(argv: Sequence[str]) -> _Words:
    """Take the words apart; a flag is its field's dotted name with a value, but for what stands alone in SHORT."""
    presets: list[str] = []
    flags: dict[str, str] = {}
    known = ["resume", "completion", *_hints(Config)]
    words = iter(argv)
    for word in words:
        if word in ("-h", "--help"):
            return _Words(next(iter(presets), None), None, {}, None, help=True)
        if word in SHORT:
            flags[SHORT[word]] = "true"
            continue
        if not word.startswith("-"):
            presets.append(word)
            continue
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        group, _, leaf = name.rpartition(".")
        if name not in known and not (group == OPTIONS and leaf.isidentifier()):
            raise ValueError(f"unknown flag {flag}{_closest(name.lstrip('_'), known, '--')}")
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise ValueError(f"{name} needs a value: {flag} VALUE")
        flags[name] = value
    if len(presets) > 1:
        raise ValueError(f"unexpected argument {presets[1]!r}: one preset, then flags with a value each")
    resume, shell = flags.pop("resume", None), flags.pop("completion", None)
    return _Words(next(iter(presets), None), resume, flags, shell, help=False)


def _preset(words: _Words) -> Config:
    name = "cartpole" if words.preset is None else words.preset
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}{_closest(name, PRESETS) or ', one of ' + ', '.join(PRESETS)}")
    return PRESETS[name]


def _resumed(words: _Words, run: Path) -> Config:
    """The config of a run folder, with the flags that may change in it."""
    if words.preset is not None:
        raise ValueError(f"--resume takes no preset, got {words.preset!r}: the run has its config")
    path = run / "config.json"
    try:
        saved = Config.from_json(json.loads(path.read_text()))
    except OSError as error:
        raise ValueError(f"--resume: cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    saved = replace(saved, run=replace(saved.run, dir=str(run)))
    config = _changed(saved, words.flags)
    before, after = dict(leaves(saved.to_json())), dict(leaves(config.to_json()))
    for name in words.flags:
        if name not in RESUMABLE and after[name] != before.get(name):
            raise ValueError(f"{name} cannot change when a run goes on, only {', '.join(RESUMABLE)} can")
    return config


def _changed(config: Config, flags: Mapping[str, str]) -> Config:
    data = config.to_json()
    hints = _hints(Config)
    for name, text in flags.items():
        *groups, leaf = name.split(".")
        node = data
        for group in groups:
            node = node[group]
        node[leaf] = _read(text, hints.get(name, Option))
    return Config.from_json(data)


def _read(text: str, hint: Any) -> object:
    """The value that a flag's text stands for; the text itself where it is none of the kinds, for the check to name."""
    kinds = get_args(hint) or (hint,)
    for kind in kinds:
        if kind is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind is NoneType and text.lower() == "none":
            return None
        if kind in (int, float):
            with suppress(ValueError):
                number = kind(text)
                if kind is int or isfinite(number) or str not in kinds:  # an option called nan is a word
                    return number
    with suppress(ValueError):
        if int in kinds and float(text).is_integer():  # 1e6
            return int(float(text))
    return text


def _hints(kind: Any, prefix: str = "") -> dict[str, Any]:
    """The type of each field of a dataclass by its dotted name, without those that are not one flag."""
    hints: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        hints |= _hints(hint, f"{prefix}{name}.") if is_dataclass(hint) else {prefix + name: hint}
    return {name: hint for name, hint in hints.items() if name not in ("preset", OPTIONS)}


def leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _closest(word: str, names: Iterable[str], dashes: str = "") -> str:
    """A question with the names most like the word; also by their last part, so that --lr finds --optim.lr."""
    parts = {part: name for name in names for part in (name, name.rpartition(".")[2])}
    found = dict.fromkeys(parts[part] for part in difflib.get_close_matches(word, parts, cutoff=0.7))
    return f", did you mean {' or '.join(dashes + name for name in found)}?" if found else ""


def _help(preset: Config) -> NoReturn:
    lines = [f"  {name:<12} {item.env.id:<34} {item.model.size}" for name, item in PRESETS.items()]
    _tyro(
        preset,
        ["--help"],
        f"{PROGRAM} [PRESET]",
        "Train DreamerV3.\n\nPresets (default cartpole; PRESET --help shows its values):\n" + "\n".join(lines),
    )


def _complete(shell: str) -> NoReturn:
    if shell not in SHELLS:
        raise ValueError(f"completion must be one of {', '.join(SHELLS)}, got {shell!r}")
    _tyro(PRESETS["cartpole"], ["--tyro-print-completion", shell], SCRIPT, "")


def _tyro(preset: Config, args: list[str], prog: str, description: str) -> NoReturn:
    import tyro  # only here: a run starts without it

    run_folder = tyro.conf.arg(metavar="RUN", help="Go on with the run in this folder, without a preset.")
    sample = replace(preset.env, options=preset.env.options or {"NAME": "VALUE"})

    @dataclass(frozen=True, kw_only=True)
    class Flags:
        resume: Annotated[str, run_folder] = ""
        env: EnvConfig = sample
        model: ModelConfig = preset.model
        loss: LossConfig = preset.loss
        optim: OptimConfig = preset.optim
        replay: ReplayConfig = preset.replay
        run: RunConfig = preset.run

    config = (tyro.conf.FlagConversionOff,)
    tyro.cli(Flags, args=args, prog=prog, description=description, config=config, use_underscores=True)
    raise AssertionError("tyro exits after its help and its completions")
