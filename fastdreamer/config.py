"""What a run is: frozen dataclasses, checked where they are made. Presets fill them; the command line overrides them.

Every error is a ValueError of one line that names the field, its value and what is allowed. Nothing here imports torch.
"""

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

Size = Literal["size1m", "size12m", "size25m", "size50m", "size100m", "size200m", "size400m"]
WIDTHS: dict[Size, int] = dict(zip(get_args(Size), (4, 16, 24, 32, 48, 64, 96), strict=True))
Option = bool | int | float | str
LARGEST_SEED = 2**31 - 1  # environments take an int32
LARGEST_COUNT = 10**15  # counts are multiplied with ratios: a float holds them exactly
KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "text", types.NoneType: "none"}
MAX_CLASSES = 256  # the ring stores a class index in one byte

T = TypeVar("T")


class Dims(NamedTuple):
    """The sizes of the networks."""

    deter: int
    hidden: int
    units: int
    stoch: int
    classes: int
    blocks: int
    depth: int


def _check(ok: bool, name: str, allowed: str, value: object) -> None:
    if not ok:
        raise ValueError(f"{name} must be {allowed}, got {value!r:.60}")


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """The environments."""

    id: str
    """An EnvPool id (CartPole-v1), gym:ID for a gymnasium id, or module:factory for your own."""
    num_envs: int = 16
    """Copies that step together."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """Arguments of the environment, one flag each: --env.options.NAME VALUE."""
    timeout: float = 60.0
    """Seconds without an answer after which an environment hangs."""

    def __post_init__(self) -> None:
        _check(bool(self.id), "env.id", "the name of an environment", self.id)
        _check(1 <= self.num_envs <= 4096, "env.num_envs", "in 1..4096", self.num_envs)
        _check(0 < self.timeout < math.inf, "env.timeout", "more than 0 seconds", self.timeout)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The networks. The size fills every dimension that is not given."""

    size: Size = "size200m"
    deter: int | None = None
    """Width of the deterministic state."""
    hidden: int | None = None
    """Width of the layers inside the world model's core, prior and posterior."""
    units: int | None = None
    """Width of the vector encoder, the vector decoder and every head."""
    stoch: int | None = None
    """Groups of the stochastic state."""
    classes: int | None = None
    """Classes per group."""
    blocks: int | None = None
    """Blocks of the recurrent weights."""
    depth: int | None = None
    """Image channels per stage are depth times 2, 3, 4, 4."""
    unimix: float = 0.01
    """Share of the uniform distribution in the latents."""
    actor_unimix: float = 0.0
    """The same in a discrete actor; the official code has none."""
    heads: Literal["twohot", "normal"] = "twohot"
    """What reward and value heads predict: symexp two-hot bins, or the mean of a normal."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What is computed in; parameters are float32. auto: bfloat16 on a GPU, float32 on a CPU."""

    def __post_init__(self) -> None:
        for name in Dims._fields:
            value = getattr(self, name)
            _check(value is None or 1 <= value <= 65536, f"model.{name}", "in 1..65536", value)
        dims = self.dims()
        _check(2 <= dims.classes <= MAX_CLASSES, "model.classes", f"in 2..{MAX_CLASSES}", dims.classes)
        _check(dims.deter % dims.blocks == 0, "model.deter", f"a multiple of model.blocks {dims.blocks}", dims.deter)
        _check(0 <= self.unimix < 1, "model.unimix", "in [0, 1)", self.unimix)
        _check(0 <= self.actor_unimix < 1, "model.actor_unimix", "in [0, 1)", self.actor_unimix)

    def dims(self) -> Dims:
        """The sizes, those that are not given from the named size. Source: SPEC 3.1."""
        width = WIDTHS[self.size]
        named = Dims(
            deter=128 * width, hidden=16 * width, units=16 * width, stoch=32, classes=width, blocks=8, depth=width
        )
        given = {name: getattr(self, name) for name in Dims._fields if getattr(self, name) is not None}
        return named._replace(**given)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is learned from a batch."""

    horizon: int = 15
    """Steps of imagination."""
    discount_horizon: float = 333.0
    """Steps over which the future counts: the discount is 1 - 1 / discount_horizon."""
    free_nats: float = 1.0
    """KL per step below which neither prior nor posterior is pulled, in nats."""
    decoder: float = 1.0
    """Scale of the reconstruction loss; 0 leaves the decoder out."""
    use_cont: bool = True
    """Predict whether an episode goes on; without, every imagined step goes on."""
    retnorm: bool = True
    """Scale advantages by the range of the returns."""

    def __post_init__(self) -> None:
        _check(1 <= self.horizon <= 1000, "loss.horizon", "in 1..1000 steps", self.horizon)
        _check(1 < self.discount_horizon < math.inf, "loss.discount_horizon", "more than 1 step", self.discount_horizon)
        _check(0 <= self.free_nats < math.inf, "loss.free_nats", "at least 0 nats", self.free_nats)
        _check(0 <= self.decoder < math.inf, "loss.decoder", "at least 0", self.decoder)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """LaProp with adaptive gradient clipping."""

    lr: float = 4e-5
    """Learning rate after the warm-up."""
    warmup: int = 1000
    """Updates over which the learning rate grows from 0."""
    agc: float = 0.3
    """Largest norm of a gradient relative to its parameter; 0 does not clip."""

    def __post_init__(self) -> None:
        _check(0 < self.lr < 1, "optim.lr", "between 0 and 1", self.lr)
        _check(0 <= self.warmup <= 10**9, "optim.warmup", "in 0..1000000000 updates", self.warmup)
        _check(0 <= self.agc < math.inf, "optim.agc", "at least 0", self.agc)


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """The replay ring and what is drawn from it."""

    capacity: int = 5_000_000
    """Windows that can be sampled; the oldest are dropped. Never more than run.steps."""
    batch_size: int = 16
    """Windows per update."""
    batch_length: int = 64
    """Trained steps per window."""
    placement: Literal["auto", "device", "pinned", "host"] = "auto"
    """Where observations live: with the learner on the GPU, in page-locked or in plain host memory; auto decides and
    says why."""

    def __post_init__(self) -> None:
        _check(self.capacity >= 1, "replay.capacity", "at least 1 window", self.capacity)
        _check(self.capacity <= LARGEST_COUNT, "replay.capacity", f"at most {LARGEST_COUNT} windows", self.capacity)
        _check(1 <= self.batch_size <= 65536, "replay.batch_size", "in 1..65536 windows", self.batch_size)
        _check(2 <= self.batch_length <= 65536, "replay.batch_length", "in 2..65536 steps", self.batch_length)

    @property
    def trained_steps(self) -> int:
        """Steps that one update trains on; as many windows must be there before the first."""
        return self.batch_size * self.batch_length


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long, how often, and where."""

    dir: str = ""
    """The run folder; runs/<preset>-<time> where it is empty."""
    seed: int = 0
    steps: int = 1_000_000
    """Agent steps over all environments, resets included."""
    train_ratio: float = 32.0
    """Replayed steps per agent step."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""
    schedule: Literal["auto", "sync", "pipeline"] = "auto"
    """sync: the policy waits for the updates that are due; pipeline: updates run while environments step, and the
    policy's weights are one launch old. auto: pipeline on a GPU."""
    compile: bool = False
    """torch.compile for encoder, decoder, heads and losses; takes a minute or more at the start."""
    deterministic: bool = False
    """The same seed gives the same bits on a GPU too, as it does on a CPU; slower. --deterministic alone sets it."""
    threads: int = 0
    """Threads of torch on the CPU; 0 leaves the choice to torch."""
    log_every: float = 10.0
    """Seconds between two log lines; 0 logs only at the end."""
    save_every: float = 270.0
    """Seconds between two checkpoints; 0 saves only at the end."""
    eval_episodes: int = 10
    """Episodes of an evaluation."""
    eval_every: int = 0
    """Agent steps between two evaluations; 0 evaluates only at the end."""
    videos: int = 3
    """Evaluations after which an episode and a dream are filmed, the newest that are kept; 0 films none."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """What else gets the metrics; its package must be installed."""
    solved: float | None = None
    """Mean return of the last 20 training episodes at which the run is done before run.steps; none goes on."""

    def __post_init__(self) -> None:
        _check(0 <= self.seed <= LARGEST_SEED, "run.seed", f"in 0..{LARGEST_SEED}", self.seed)
        _check(self.steps >= 1, "run.steps", "at least 1 agent step", self.steps)
        _check(0 < self.train_ratio < math.inf, "run.train_ratio", "more than 0 replayed steps", self.train_ratio)
        _check(0 <= self.threads <= 1024, "run.threads", "in 0..1024", self.threads)
        for name in ("log_every", "save_every"):
            _check(0 <= getattr(self, name) < math.inf, f"run.{name}", "at least 0 seconds", getattr(self, name))
        _check(self.eval_episodes >= 0, "run.eval_episodes", "at least 0 episodes", self.eval_episodes)
        _check(self.eval_every >= 0, "run.eval_every", "at least 0 agent steps", self.eval_every)
        _check(0 <= self.videos <= 1000, "run.videos", "in 0..1000 evaluations", self.videos)
        for name in ("steps", "eval_episodes", "eval_every"):
            _check(getattr(self, name) <= LARGEST_COUNT, f"run.{name}", f"at most {LARGEST_COUNT}", getattr(self, name))
        _check(self.solved is None or math.isfinite(self.solved), "run.solved", "finite", self.solved)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run, complete."""

    preset: str
    """The preset that it began from."""
    env: EnvConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        need = self.replay.trained_steps
        if self.capacity < need:
            raise ValueError(
                f"replay.capacity must hold replay.batch_size x replay.batch_length = {need} windows,"
                f" got {self.replay.capacity} and run.steps {self.run.steps}: nothing would be learned"
            )
        if self.run.steps < self.first_update:
            raise ValueError(
                f"run.steps must be at least {self.first_update}, the agent step of the first update with"
                f" {self.env.num_envs} envs, got {self.run.steps}: nothing would be learned"
            )
        after_first = -(-self.run.steps // self.env.num_envs) * self.env.num_envs - self.first_update
        if self.optim.warmup and after_first * self.run.train_ratio < need:
            raise ValueError(
                f"run.train_ratio must make at least 2 updates, got {self.run.train_ratio} with run.steps"
                f" {self.run.steps}: the first has learning rate 0, nothing would be learned"
            )
        if self.run.seed > LARGEST_SEED - 2 * self.env.num_envs:
            # the evaluation's environments count on from those of the training
            raise ValueError(f"run.seed must be at most {LARGEST_SEED - 2 * self.env.num_envs}, got {self.run.seed}")

    @property
    def capacity(self) -> int:
        """Windows that the ring holds: no run needs more than its steps. Source: SPEC 1.2."""
        return min(self.replay.capacity, self.run.steps)

    @property
    def first_update(self) -> int:
        """The agent step at which there are enough windows to learn from."""
        length = self.replay.batch_length + -(-self.replay.trained_steps // self.env.num_envs)
        return length * self.env.num_envs

    def to_json(self) -> dict[str, Any]:
        """Plain data for config.json."""
        data = dataclasses.asdict(self)
        data["env"]["options"] = dict(self.env.options)
        return data

    @classmethod
    def from_json(cls, data: object) -> "Config":
        """A config from `to_json`'s data. Raises ValueError naming a field that is missing, unknown or wrong."""
        return _from_json(cls, data, "config")


def _from_json(kind: type[T], data: object, name: str) -> T:
    """`data` as a dataclass, each value checked against the type of its field."""
    if not isinstance(data, dict):
        raise ValueError(f"{name} must be an object, got {data!r:.60}")
    hints = get_type_hints(kind)
    prefix = "" if name == "config" else f"{name}."
    if wrong := sorted(data.keys() ^ hints.keys()):
        what = "is unknown" if wrong[0] in data else "is missing"
        raise ValueError(f"{prefix}{wrong[0]} {what}")
    return kind(**{key: _value(hint, data[key], prefix + key) for key, hint in hints.items()})


def _value(hint: Any, value: object, name: str) -> object:
    if dataclasses.is_dataclass(hint):
        return _from_json(hint, value, name)  # type: ignore[arg-type]  # a type, not an instance
    if get_origin(hint) is Mapping:
        _check(isinstance(value, dict), name, "an object", value)
        items = value.items()  # type: ignore[attr-defined]  # a dict, as just checked
        return {str(key): _value(Option, item, f"{name}.{key}") for key, item in items}
    if get_origin(hint) is Literal:
        _check(value in get_args(hint), name, f"one of {', '.join(get_args(hint))}", value)
        return value
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if float in kinds and type(value) is int and int not in kinds:
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(f"{name} must be a number that a float can hold, got {value!r:.60}") from error
    _check(type(value) in kinds, name, " or ".join(KINDS[kind] for kind in kinds), value)
    return value
