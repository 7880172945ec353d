"""R10: a checkpoint that does not fit the run is refused in one line that names what differs, and how."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from altered_runs import AlteredRun, make_run
from torch import Tensor

from fastdreamer.train import main

Bar = Callable[[str, bool], None]
Change = Callable[[AlteredRun], object]
TENSORS = {
    "model": ["dyn/dyngru/kernel", "pol/mlp/linear0/kernel", "slowval/head/logits/kernel", "enc/mlp0/kernel"],
    "optim": ["step", "mu/dyn/dyngru/kernel", "nu/dyn/dyngru/kernel"],
    "carry": ["retnorm/lo", "retnorm/hi"],
    "acting": ["deter", "stoch", "action/action"],
}


def described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def altered_tensors() -> dict[str, tuple[Change, str]]:
    """Every way in which a tensor of each group may not fit; a question mark stands for what the run has."""
    cases: dict[str, tuple[Change, str]] = {}
    for group, names in TENSORS.items():
        for name in names:
            ways: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
                "missing": (lambda tensors, name=name: tensors.pop(name), f"tensor {name}: expected ?, got nothing"),
                "another shape": (
                    lambda tensors, name=name: tensors.update({name: tensors[name].new_zeros(3, 1, 2)}),
                    f"tensor {name}: expected ?, got",
                ),
                "another dtype": (
                    lambda tensors, name=name: tensors.update({name: tensors[name].to(torch.int16)}),
                    f"tensor {name}: expected ?, got int16",
                ),
            }
            for way, (change, message) in ways.items():
                cases[f"{group}/{name}: {way}"] = (lambda run, g=group, c=change: run.tensors(g, c), message)
        cases[f"{group}: one more"] = (
            lambda run, g=group: run.tensors(g, lambda tensors: tensors.update(extra=torch.zeros(2))),
            "tensor extra: expected nothing, got float32 (2,)",
        )
        cases[f"{group}: none"] = (lambda run, g=group: run.tensors(g, dict.clear), "got nothing")
    return cases


def config(group: str, **values: object) -> Change:
    return lambda run: run.table("config.json", lambda table: table[group].update(values))


def state(name: str, *path: str, value: object = ...) -> Change:
    """state.json, or the index, with an entry of another value, or without it."""

    def change(table: dict[str, Any]) -> None:
        for key in path[:-1]:
            table = table[key]
        if value is ...:
            del table[path[-1]]
        else:
            table[path[-1]] = value

    return lambda run: run.table(name, change)


STATE, INDEX = "state.json", "replay/index.json"
OTHERS: dict[str, tuple[Change, str]] = {
    "deter": (config("model", deter=32), "dyn/dynin0/kernel: expected float32 (32, 8), got float32 (16, 8)"),
    "hidden": (config("model", hidden=16), "dyn/dynin0/kernel: expected float32 (16, 16), got float32 (16, 8)"),
    "units": (config("model", units=16), "expected"),
    "stoch": (config("model", stoch=8), "expected"),
    "classes": (config("model", classes=8), "expected"),
    "size": (config("model", deter=None, hidden=None, units=None, stoch=None, blocks=None), "expected"),
    "precision": (config("model", precision="bfloat16"), "deter: expected bfloat16 (2, 16), got float32"),
    "num_envs": (config("env", num_envs=3), "expected"),
    "batch_length": (config("replay", batch_length=9), "saved with batch_length 8, but this run has 9"),
    "another observation": (config("env", options={"show": "image"}), "cnn0/kernel: expected ?, got nothing"),
    "another action": (config("env", options={"act": "box"}), "expected"),
    "another action space": (config("env", options={"act": "equal"}), "expected"),
    "another environment": (config("env", id="gym:CartPole-v1"), "expected"),
    "newer format": (
        lambda run: (run.path / "MANIFEST.json").write_text('{"format": 7, "files": {}}'),
        "format 7, this version reads 1",
    ),
    "no state": (state(STATE, "noise"), "noise: expected a table, got None"),
    "no ring": (lambda run: ((run.path / INDEX).unlink(), run.seal()), f"{INDEX}: missing"),
    "a counter less": (state(STATE, "noise", "observe"), "noise: observe is missing"),
    "a counter more": (state(STATE, "noise", "dream", value=1), "noise: dream is unknown"),
    "a counter that is none": (state(STATE, "noise", "observe", value="1"), "observe: expected a count, got '1'"),
    "a negative counter": (state(STATE, "noise", "observe", value=-1), "observe: expected a count, got -1"),
    "a huge counter": (state(STATE, "noise", "observe", value=2**70), "observe: expected a count, got 1180"),
    "no progress": (state(STATE, "progress"), "progress: expected dict, got nothing"),
    "progress of another kind": (state(STATE, "progress", value=[1]), "progress: expected dict, got [1]"),
    "progress without updates": (state(STATE, "progress", "updates"), "progress: updates is missing"),
    "progress in words": (state(STATE, "progress", "train_seconds", value="long"), "train_seconds: expected a number"),
    "scores that are none": (state(STATE, "progress", "scores", value=[None]), "scores: expected a list of numbers"),
    "no ratio": (state(STATE, "train_ratio"), "train_ratio: expected dict, got nothing"),
    "a ratio of another kind": (state(STATE, "train_ratio", "previous", value=[]), "expected a number or none"),
    "an endless ratio": (state(STATE, "train_ratio", "previous", value=-1e15), "at which updates were due, got -1000"),
    "steps of another ring": (state(STATE, "env_steps", value=7), "env_steps 7, but its replay has"),
    "a state that is none": (
        lambda run: run.tensors("acting", lambda tensors: tensors["stoch"].fill_(4)),
        "acting: stoch must lie in 0..3, got 4..4",
    ),
    "a last action that is none": (
        lambda run: run.tensors("acting", lambda tensors: tensors["action/action"].fill_(-1)),
        "acting: action/action must lie in 0..3, got -1..-1",
    ),
    "a stored state that is none": (
        lambda run: run.chunk("latents", lambda tensors: tensors["stoch"].fill_(255)),
        "replay: stoch must lie in 0..3, got 255..255",
    ),
    "a stored action that is none": (
        lambda run: run.chunk("records", lambda tensors: tensors["action/action"].fill_(9)),
        "replay: action/action must lie in 0..3, got 9..9",
    ),
    "no episodes": (state(STATE, "episodes"), "episodes: expected dict, got nothing"),
    "episodes of others": (state(STATE, "episodes", "score", value=[1.0]), "score: expected 2 numbers, got 1"),
    "no environments": (state(STATE, "envs"), "envs: expected dict, got nothing"),
    "environments of others": (state(STATE, "envs", "began", value=[0]), "needs began, one of each of 2 environments"),
    "records that are none": (state(STATE, "envs", "records", value=-4), "holds '-4' where a count should be"),
    "no actions": (lambda run: run.tensors("envs", dict.clear), "has none of"),
    "actions of another kind": (
        lambda run: run.tensors("envs", lambda tensors: tensors.update(action=tensors["action"].float())),
        'action "action" must be integer, got float32',
    ),
    "actions of another name": (
        lambda run: run.tensors("envs", lambda tensors: tensors.update(jump=tensors.pop("action"))),
        "the action must have the keys ['action'], got ['jump']",
    ),
    "fewer actions": (
        lambda run: run.tensors("envs", lambda tensors: tensors.update(action=tensors["action"][1:])),
        "has action of shape",
    ),
    "no length": (state(INDEX, "length"), "length: expected a count, got None"),
    "a negative length": (state(INDEX, "length", value=-3), "length: expected a count, got -3"),
    "a huge length": (state(INDEX, "length", value=10**18), "no file of records holds record"),
    "first beyond length": (state(INDEX, "first", value=10**6), "first: expected at most"),
    "no chunks": (state(INDEX, "chunks"), "needs chunks: a table of plain file names"),
    "chunks that are none": (state(INDEX, "chunks", value=3), "needs chunks: a table of plain file names"),
    "facts of another ring": (state(INDEX, "ring", "num_envs", value=7), "saved with num_envs 7, but this run has 2"),
    "a record's shape": (
        lambda run: run.chunk("records", lambda tensors: tensors.update(reward=tensors["reward"][:, 1:])),
        "reward: expected torch.float32",
    ),
    "a record's key": (lambda run: run.chunk("records", lambda tensors: tensors.pop("reward")), "no reward"),
    "a state's dtype": (
        lambda run: run.chunk("latents", lambda tensors: tensors.update(deter=tensors["deter"].double())),
        "deter: expected torch.float32",
    ),
}  # fmt: skip
CASES = altered_tensors() | OTHERS


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "run"
    make_run(folder)
    return folder


def test_there_are_sixty_and_more() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    source: Path,
    bar: Bar,
    case: str,
) -> None:
    change, message = CASES[case]
    run = AlteredRun(source, tmp_path / "run")
    change(run)
    with pytest.raises(SystemExit) as caught:
        main(["--resume", str(run.folder)])
    said = capsys.readouterr().err
    told = said + " ".join(caplog.messages)  # where no checkpoint can be used, a warning has said why
    parts = message.split("?")
    held = caught.value.code == 2 and said.startswith("fastdreamer: error: ") and said.count("\n") == 1
    held = held and all(part in told for part in parts)
    bar("R10 mismatches", held)
    assert held, told
