"""The command line: flags over a preset, going on with a run, and one line for every mistake."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdreamer import __version__
from fastdreamer.cli import RESUMABLE, fail, parse
from fastdreamer.config import Config
from fastdreamer.presets import PRESETS

SIZES = "size1m, size12m, size25m, size50m, size100m, size200m, size400m"
NAMES = "cartpole, catch, atari, atari100k, dmc_proprio, dmc_vision, procgen, crafter, minigrid"
MISTAKES = {
    # words
    "atar": "unknown preset 'atar', did you mean atari?",
    "xyz": f"unknown preset 'xyz', one of {NAMES}",
    "cartpole catch": "unexpected argument 'catch': one preset, then flags with a value each",
    "--run.seed 1 2 3": "unexpected argument '3': one preset, then flags with a value each",
    "--xyzzy 3": "unknown flag --xyzzy",
    "--lr 1e-3": "unknown flag --lr, did you mean --optim.lr?",
    "--run.step 3": "unknown flag --run.step, did you mean --run.steps or --run.seed?",
    "--batch-size=4": "unknown flag --batch-size, did you mean --replay.batch_size?",
    "--run 3": "unknown flag --run",
    "--preset atari": "unknown flag --preset",
    "--env.options 3": "unknown flag --env.options",
    "--env.options. 3": "unknown flag --env.options.",
    "--env.options.a.b 3": "unknown flag --env.options.a.b",
    "-s 3": "unknown flag -s",
    "-run.seed 3": "unknown flag -run.seed, did you mean --run.seed or --run.solved or --run.steps?",
    "--": "unknown flag --",
    "--run.seed": "run.seed needs a value: --run.seed VALUE",
    "--run.seed --run.steps 3": "run.seed needs a value: --run.seed VALUE",
    "--resume": "resume needs a value: --resume VALUE",
    # env
    "--env.id=": "env.id must be the name of an environment, got ''",
    "--env.num_envs 0": "env.num_envs must be in 1..4096, got 0",
    "--env.num_envs many": "env.num_envs must be an integer, got 'many'",
    # model
    "--model.size 1m": f"model.size must be one of {SIZES}, got '1m'",
    "--model.deter 0": "model.deter must be in 1..65536, got 0",
    "--model.deter 100": "model.deter must be a multiple of model.blocks 8, got 100",
    "--model.hidden -1": "model.hidden must be in 1..65536, got -1",
    "--model.units 64.5": "model.units must be an integer or none, got '64.5'",
    "--model.stoch 1e9": "model.stoch must be in 1..65536, got 1000000000",
    "--model.classes 1": "model.classes must be in 2..256, got 1",
    "--model.classes 257": "model.classes must be in 2..256, got 257",
    "--model.blocks 3": "model.deter must be a multiple of model.blocks 3, got 256",
    "--model.depth 65537": "model.depth must be in 1..65536, got 65537",
    "--model.unimix 1": "model.unimix must be in [0, 1), got 1.0",
    "--model.actor_unimix -0.1": "model.actor_unimix must be in [0, 1), got -0.1",
    "--model.heads mse": "model.heads must be one of twohot, normal, got 'mse'",
    "--model.precision fp16": "model.precision must be one of auto, float32, bfloat16, got 'fp16'",
    # loss
    "--loss.horizon 0": "loss.horizon must be in 1..1000 steps, got 0",
    "--loss.discount_horizon 1": "loss.discount_horizon must be more than 1 step, got 1.0",
    "--loss.free_nats nan": "loss.free_nats must be at least 0 nats, got nan",
    "--loss.decoder inf": "loss.decoder must be at least 0, got inf",
    "--loss.use_cont 1": "loss.use_cont must be True or False, got '1'",
    "--loss.retnorm no": "loss.retnorm must be True or False, got 'no'",
    # optim
    "--optim.lr 0": "optim.lr must be between 0 and 1, got 0.0",
    "--optim.lr 4e-5x": "optim.lr must be a number, got '4e-5x'",
    "--optim.warmup -1": "optim.warmup must be in 0..1000000000 updates, got -1",
    "--optim.agc -0.3": "optim.agc must be at least 0, got -0.3",
    # replay
    "--replay.capacity 0": "replay.capacity must be at least 1 window, got 0",
    "catch --replay.capacity 1023": "replay.capacity must hold replay.batch_size x replay.batch_length = 1024 windows,"
    " got 1023 and run.steps 60000: nothing would be learned",
    "--replay.batch_size 65537": "replay.batch_size must be in 1..65536 windows, got 65537",
    "--replay.batch_length 1": "replay.batch_length must be in 2..65536 steps, got 1",
    # run
    "--run.seed -1": "run.seed must be in 0..2147483647, got -1",
    "--deterministic=true": "unknown flag --deterministic, did you mean --run.deterministic?",
    "--run.deterministic": "run.deterministic needs a value: --run.deterministic VALUE",
    "--run.seed --deterministic": "run.seed needs a value: --run.seed VALUE",
    "--run.seed 2147483647": "run.seed must be at most 2147483615, got 2147483647",
    "--run.steps abc": "run.steps must be an integer, got 'abc'",
    "--run.steps 0": "run.steps must be at least 1 agent step, got 0",
    "catch --run.steps 2047": "run.steps must be at least 2048, the agent step of the first update with 16 envs,"
    " got 2047: nothing would be learned",
    "catch --run.train_ratio 0.01": "run.train_ratio must make at least 2 updates, got 0.01 with run.steps 60000:"
    " the first has learning rate 0, nothing would be learned",
    "--run.train_ratio 0": "run.train_ratio must be more than 0 replayed steps, got 0.0",
    "--run.device gpu": "run.device must be one of auto, cpu, cuda, got 'gpu'",
    "--run.threads 1025": "run.threads must be in 0..1024, got 1025",
    "--run.log_every -1": "run.log_every must be at least 0 seconds, got -1.0",
    "--run.save_every inf": "run.save_every must be at least 0 seconds, got inf",
    "--run.eval_episodes -1": "run.eval_episodes must be at least 0 episodes, got -1",
    "--run.eval_every -1": "run.eval_every must be at least 0 agent steps, got -1",
    "--run.solved high": "run.solved must be a number or none, got 'high'",
    "--run.solved inf": "run.solved must be finite, got inf",
    # resume
    "--resume nowhere": "--resume: cannot read nowhere/config.json: No such file or directory",
    "catch --resume nowhere": "--resume takes no preset, got 'catch': the run has its config",
}


def refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What `parse` says of a mistake, checked to be one line and exit code 2."""
    with pytest.raises(SystemExit) as end:
        parse(argv)
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("fastdreamer: error: ") and err.endswith("\n")
    return err.removeprefix("fastdreamer: error: ").removesuffix("\n")


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(line.split(), capsys) == MISTAKES[line]


@pytest.mark.parametrize("line", ["--run.seed -1", "--lr 1e-3", "atar"])
def test_a_mistake_ends_the_program(line: str) -> None:
    command = [sys.executable, "-m", "fastdreamer.train", *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"fastdreamer: error: {MISTAKES[line]}\n")


def test_a_failure_of_many_lines_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        fail(ValueError("one\n  two"))
    assert (end.value.code, capsys.readouterr().err) == (2, "fastdreamer: error: one two\n")


def test_cartpole_is_the_default() -> None:
    assert parse([]) == (PRESETS["cartpole"], False)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_by_name(name: str) -> None:
    assert parse([name]) == (PRESETS[name], False)


def test_flags_change_the_preset() -> None:
    line = "--env.id gym:X-v0 catch --model.size=size12m --model.deter 256 --loss.retnorm False --run.train-ratio 8"
    config = parse(
        f"{line} --optim.lr 1e-3 --run.seed 3 --run.seed 4 --run.dir=--odd --run.solved none --run.steps 1e5".split()
    ).config
    catch = PRESETS["catch"]
    assert config == dataclasses.replace(
        catch,
        env=dataclasses.replace(catch.env, id="gym:X-v0"),
        model=dataclasses.replace(catch.model, size="size12m", deter=256),
        loss=dataclasses.replace(catch.loss, retnorm=False),
        optim=dataclasses.replace(catch.optim, lr=1e-3),
        run=dataclasses.replace(catch.run, train_ratio=8.0, steps=100_000, seed=4, dir="--odd", solved=None),
    )


def test_an_option_of_the_environment_takes_the_type_of_its_text() -> None:
    words = (
        "atari --env.options.noop_max 0 --env.options.a true --env.options.b=2.5 --env.options.c-d x --env.options.e -1"
    )
    options = dict(parse(words.split()).config.env.options)
    expected = {**PRESETS["atari"].env.options, "noop_max": 0, "a": True, "b": 2.5, "c_d": "x", "e": -1}
    assert options == expected
    assert [type(options[key]) for key in options] == [type(expected[key]) for key in options]
    assert PRESETS["atari"].env.options["noop_max"] == 30


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Config], Path]:
    """Writes the config.json of a run and returns its folder."""

    def write(config: Config) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
        return tmp_path

    return write


def test_resume_reads_the_run(saved: Callable[[Config], Path]) -> None:
    catch = PRESETS["catch"]
    run = saved(catch)
    job = parse(["--resume", str(run), "--run.steps", "70000", "--run.device", "cpu", "--run.seed", "0"])
    assert job.resume
    assert job.config == dataclasses.replace(
        catch, run=dataclasses.replace(catch.run, dir=str(run), steps=70_000, device="cpu")
    )


def test_deterministic_alone_is_a_flag(saved: Callable[[Config], Path]) -> None:
    assert not parse(["catch"]).config.run.deterministic
    assert parse(["--deterministic", "catch"]).config == parse(["catch", "--run.deterministic=true"]).config
    assert parse(["catch", "--deterministic", "--run.seed", "3"]).config.run.deterministic
    assert parse(["--resume", str(saved(PRESETS["catch"])), "--deterministic"]).config.run.deterministic


def test_what_may_change_is_a_field() -> None:
    data = PRESETS["cartpole"].to_json()
    assert set(RESUMABLE) < {f"{group}.{name}" for group in ("env", "run") for name in data[group]}


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("run.seed", "1"),
        ("run.dir", "elsewhere"),
        ("run.train_ratio", "1"),
        ("env.id", "Catch-v0"),
        ("env.options.new", "1"),
        ("model.size", "size12m"),
        ("model.deter", "512"),
        ("loss.horizon", "3"),
        ("optim.lr", "0.5"),
        ("replay.batch_size", "9"),
    ],
)
def test_resume_keeps_what_was_learned_with(
    flag: str, value: str, saved: Callable[[Config], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = saved(PRESETS["cartpole"])
    message = f"{flag} cannot change when a run goes on, only {', '.join(RESUMABLE)} can"
    assert refusal(["--resume", str(run), f"--{flag}", value], capsys) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"\xff\xfe", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"[1]", "config must be an object, got [1]"),
        (b"{}", "env is missing"),
    ],
)
def test_resume_names_a_garbled_config(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert refusal(["--resume", str(tmp_path)], capsys) == f"{tmp_path}/config.json: {message}"


def test_resume_names_the_field_that_is_wrong_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = PRESETS["cartpole"].to_json()
    data["run"]["seed"] = "zero"
    (tmp_path / "config.json").write_text(json.dumps(data))
    message = f"{tmp_path}/config.json: run.seed must be an integer, got 'zero'"
    assert refusal(["--resume", str(tmp_path)], capsys) == message


@pytest.mark.parametrize("place", ["file", "config"])
def test_resume_names_a_folder_that_cannot_be_read(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    if place == "file":
        run.write_text("not a folder")
    else:
        (run / "config.json").mkdir(parents=True)
    reason = {"file": "Not a directory", "config": "Is a directory"}[place]
    assert refusal(["--resume", str(run)], capsys) == f"--resume: cannot read {run}/config.json: {reason}"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"fastdreamer {__version__}\n")


@pytest.mark.parametrize("line", ["--help", "atari -h", "--run.seed 3 atari --help"])
def test_help_shows_presets_fields_and_the_values_of_the_preset(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(line.split())
    out = capsys.readouterr().out
    text = " ".join(out.replace("│", " ").split())
    assert end.value.code == 0
    assert all(f"{name} {preset.env.id} {preset.model.size}" in text for name, preset in PRESETS.items())
    steps, option = (51_000_000, "noop_max INT") if "atari" in line else (PRESETS["cartpole"].run.steps, "NAME STR")
    assert f"--run.steps INT Agent steps over all environments, resets included. (default: {steps})" in text
    assert f"--env.options.{option} (default: " in text
    assert "--resume RUN" in text and "--preset" not in text


COMPLETE = """
source {script}
COMP_WORDS=(fastdreamer-train {words})
COMP_CWORD={at}
$(complete -p fastdreamer-train | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    "words, found",
    {
        "--replay.ba": ["--replay.batch_length", "--replay.batch_size"],
        "--model.size size1": ["size12m", "size1m", "size100m"],
    }.items(),
)
def test_bash_completes_flags_and_their_values(
    words: str, found: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(["--completion", "bash"])
    assert not end.value.code
    (tmp_path / "script").write_text(capsys.readouterr().out)
    text = COMPLETE.format(script=tmp_path / "script", words=words, at=len(words.split()))
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == set(found)


def test_other_shells_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--completion", "fish"])
    assert capsys.readouterr().err == "fastdreamer: error: completion must be one of bash, zsh, got 'fish'\n"
