"""R12: values that are not finite, wherever they come from: skipped, rolled back, or exit 3; never in a file."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from spoilers import HUGE, SPOILERS, Spoiler
from test_loop import tiny_config
from torch import Tensor

from fastdreamer import cli, train
from fastdreamer.agent import Agent
from fastdreamer.config import Config, EnvConfig, ModelConfig, ReplayConfig
from fastdreamer.guard import MOST_SKIPPED, DivergedError, Guard
from fastdreamer.loop import Training
from fastdreamer.metrics import JsonlWriter, read_jsonl
from fastdreamer.run import Run
from fastdreamer.stop import Stop

Bar = Callable[[str, bool], None]
UPDATES, FROM = 16, 4
"""Updates of a run, and the first that is spoiled."""
AMOUNTS = {"once": {FROM}, "three": {*range(FROM, FROM + 3)}, "always": {*range(FROM, 99)}, "last": {UPDATES}}
IN_A_RING = tuple(place for place in SPOILERS if place.endswith("in the ring"))
UNSEEN_AT_THE_END = *IN_A_RING, "bfloat16 overflow"
"""Mended, or not noticed yet as they are finite."""
QUICK = {
    ("loss inf", "once"), ("gradient dyn/dyngru/kernel", "three"), ("world model", "always"), ("normaliser", "last"),
    ("state in the ring", "three"), ("reward in the ring", "always"), ("bfloat16 overflow", "three"),
    ("policy", "three"), ("reward inf", "once"), ("second moment", "once"),
}  # fmt: skip
PAIRS = [
    pytest.param(place, amount, marks=() if (place, amount) in QUICK else pytest.mark.slow)
    for place in SPOILERS
    for amount in AMOUNTS
]


def expected(place: str, amount: str) -> tuple[int, int]:
    """The exit code and the roll-backs."""
    spoiler = SPOILERS[place]
    if amount == "always" and spoiler.skips:
        return 3, 2
    if not spoiler.stays:
        return 0, int(amount == "three" and spoiler.skips)
    return 0, int(amount != "last" or place not in UNSEEN_AT_THE_END)


def make_config(folder: Path, precision: Literal["float32", "bfloat16"] = "float32") -> Config:
    """An update per step of its four environments from the first on."""
    config = tiny_config(folder)
    steps = 28 + 4 * (UPDATES - 1)
    return replace(
        config,
        env=EnvConfig(id="spoilers:Mixed", num_envs=4),
        model=replace(config.model, depth=2, precision=precision),
        replay=ReplayConfig(batch_size=3, batch_length=4),
        run=replace(config.run, train_ratio=3, steps=steps, log_every=1e-6, save_every=0, eval_episodes=0),
    )


class Spoiled:
    """A run of which some updates are spoiled."""

    def __init__(self, folder: Path, spoiler: Spoiler, updates: set[int], config: Config | None = None) -> None:
        folder.mkdir()
        self.folder, self.made = folder, 0
        self.training = Training(config or make_config(folder, spoiler.precision), None)
        update, step = self.training.learner.train.run, self.training.learner.train

        def spoiled() -> None:
            self.made += 1
            around = spoiler.around(self.training, spoiler.value) if self.made in updates else nullcontext()
            with around:
                update()

        step.run = spoiled
        self.error: DivergedError | None = None
        with JsonlWriter(folder / "metrics.jsonl") as writer:
            job = Run(self.training, folder, writer, Stop(), 0.0)
            try:
                job.train()
            except DivergedError as error:
                self.error = error
        self.training.env.close()

    def skipped(self) -> float:
        records = read_jsonl(self.folder / "metrics.jsonl")
        return sum(value for record in records if isinstance(value := record.get("opt/skipped"), float))

    def ends_well(self) -> bool:
        """Whether the last update learned."""
        *_, last = (record for record in read_jsonl(self.folder / "metrics.jsonl") if "opt/skipped" in record)
        return last["opt/skipped"] == 0 and isinstance(last["opt/loss"], float)


def not_finite(folder: Path) -> list[str]:
    """What no file of a run may hold; an absent observation is -inf."""
    found = []
    for path in folder.rglob("*.safetensors"):
        for name, tensor in load_file(path).items():
            if tensor.is_floating_point() and "diverged" not in path.name:
                absent = torch.isneginf(tensor) if name.startswith("obs/") else torch.zeros_like(tensor).bool()
                found += [f"{path.name} {name}"] if not (tensor.isfinite() | absent).all() else []
    return found


def dump_holds(spoiled: Spoiled) -> bool:
    """Whether the file that the error names has the batch as it was planned."""
    learner = spoiled.training.learner
    path = Path(str(spoiled.error).rpartition(": ")[2])
    dump, records = load_file(path), {key: ring.cpu() for key, ring in learner.replay.records.items()}
    rows = dump["record"][:, None] + 1 + torch.arange(4)
    plan = learner.train.skips.plan.cpu()
    return (
        path.parent == spoiled.folder
        and torch.equal(torch.stack([dump["env"], dump["record"]]), plan)
        and torch.allclose(dump["reward"], records["reward"][dump["env"][:, None], rows], equal_nan=True)
        and torch.equal(dump["obs/camera"], records["obs/camera"][dump["env"][:, None], rows])
        and dump.keys() >= {"deter", "stoch", "is_first", "is_last", "is_terminal", "action/turn", "action/jump"}
    )


def check(spoiled: Spoiled, place: str, amount: str, messages: list[str]) -> list[str]:
    """What is not as specified."""
    code, roll_backs = expected(place, amount)
    spoiler, wrong = SPOILERS[place], [f"on disk: {name}" for name in not_finite(spoiled.folder)]
    made = sum("rolled back to the checkpoint of step" in message for message in messages)
    if (3 if spoiled.error else 0, made) != (code, roll_backs):
        wrong.append(f"expected exit {code} and {roll_backs} roll-backs, got {spoiled.error} and {made}: {messages}")
    if not spoiler.stays and spoiler.skips:
        planned = len(AMOUNTS[amount] & {*range(1, spoiled.made + 1)})
        if spoiled.skipped() != planned:
            wrong.append(f"{planned} updates were spoiled, {spoiled.skipped()} skipped")
    if amount in ("once", "three") and not spoiled.ends_well():
        wrong.append("nothing is learned at the end")
    if code == 3 and spoiled.error is not None and not dump_holds(spoiled):
        wrong.append(f"the dump is not the batch: {spoiled.error}")
    return wrong


def test_there_are_enough_places() -> None:
    assert len(SPOILERS) >= 20 and len(QUICK & {(place, amount) for place in SPOILERS for amount in AMOUNTS}) == 10


@pytest.mark.parametrize("place, amount", PAIRS)
def test_spoiled_updates(tmp_path: Path, bar: Bar, caplog: pytest.LogCaptureFixture, place: str, amount: str) -> None:
    with caplog.at_level(logging.WARNING):
        wrong = check(Spoiled(tmp_path / "run", SPOILERS[place], AMOUNTS[amount]), place, amount, caplog.messages)
    bar("R12 not finite", not wrong)
    assert wrong == []


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("amount, code", [("three", 0), ("always", 3)])
def test_a_pipelined_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, amount: str, code: int, device: Literal["cpu", "cuda"]
) -> None:
    """Its updates are behind, and so is what is known of them; on a GPU they are one CUDA graph."""
    config = make_config(tmp_path)
    run = replace(config.run, schedule="pipeline", steps=2 * config.run.steps, device=device)
    config = replace(config, run=run, model=ModelConfig(size="size1m") if device == "cuda" else config.model)
    spoiled = Spoiled(tmp_path / "run", SPOILERS["world model"], AMOUNTS[amount], config)
    assert (3 if spoiled.error else 0) == code and not_finite(tmp_path) == []
    made = sum("rolled back to the checkpoint of step" in message for message in caplog.messages)
    assert made == (1 if amount == "three" else 2)
    assert spoiled.ends_well() if amount == "three" else dump_holds(spoiled)


def test_the_second_roll_back_goes_further_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The newest checkpoint holds finite weights that no update can go on from."""
    spoiler, kernel = SPOILERS["bfloat16 overflow"], "world.dyn.dynhid0.kernel"
    spoiled = Spoiled(tmp_path / "run", spoiler, {UPDATES})
    before, huge = checkpoint_of(spoiled, 28), checkpoint_of(spoiled, 88)
    assert before.abs().max() < 1 and huge.min() == HUGE
    guard, learner = Guard(spoiled.training, spoiled.folder), spoiled.training.learner
    for expected in (huge, before):
        learner.train.skips.most.fill_(MOST_SKIPPED)
        assert guard.ready_to_save()
        assert torch.equal(learner.agent.get_parameter(kernel), expected) and learner.train.skips.most == 0
    assert [message.rpartition(" ")[2] for message in caplog.messages] == ["88", "28"]


def checkpoint_of(spoiled: Spoiled, step: int) -> Tensor:
    return load_file(spoiled.folder / f"checkpoints/step-{step:09}/model.safetensors")["dyn/dynhid0/kernel"]


def test_before_the_first_checkpoint_there_is_nothing_to_go_back_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(make_config(tmp_path), None)
    guard = Guard(training, tmp_path)
    for _ in range(2):
        training.learner.train.skips.most.fill_(MOST_SKIPPED)
        guard.judge(MOST_SKIPPED)
        assert training.learner.train.skips.most == 0
    with torch.no_grad():
        next(training.learner.agent.parameters()).fill_(torch.nan)
    with pytest.raises(DivergedError, match=r"^step 0: .* not finite, for the third time: .* is not in the replay"):
        guard.ready_to_save()
    assert len(caplog.messages) == 2 and all("; not rolled back: " in message for message in caplog.messages)
    training.env.close()


def test_a_run_that_diverged_exits_with_3_and_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path / "run")
    monkeypatch.setattr(cli, "parse", lambda argv: cli.Job(config, resume=bool(argv)))
    with monkeypatch.context() as patch:
        patch.setattr(Agent, "scale", lambda self, name: torch.nan)
        with pytest.raises(SystemExit) as caught:
            train.main([])
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 3 and len(lines) == 1 and "training has diverged; try a smaller optim.lr" in lines[0]
    assert Path(lines[0].rpartition(": ")[2]).is_file() and not_finite(tmp_path) == []
    assert train.main(["resume"]) == 0 and not_finite(tmp_path) == []
