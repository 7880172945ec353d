"""EnvPool (1.2.5): N environments stepping on C++ threads. Its traps are handled here; each was measured.

Autoreset is NEXT_STEP. The reset step's reward may be uninitialised memory: `step_of` drops it.
Nothing is validated by EnvPool itself, and some options end the process: they are refused here, actions in `Env`.
"""

import ctypes
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fastdreamer.env_backend import Raw
from fastdreamer.env_cursor import Cursor, episode_seed
from fastdreamer.env_faults import Rebuilds
from fastdreamer.env_observation import keep_keys, observation_tree
from fastdreamer.env_step import AnyArray, AnySpace, Arrays, EnvError, Flags, NotFiniteError, Options, one_line, unknown

INSTALL = 'pip install "envpool==1.2.5"'
NO_EGL = (
    "no EGL driver is installed, which rendering needs: apt install libegl-mesa0 libgl1-mesa-dri, or NVIDIA's driver"
)
# Below these EnvPool crashes, hangs or quietly does something else.
MINIMUM = {
    "noop_max": 1,
    "stack_num": 1,
    "frame_stack": 1,
    "frame_skip": 1,
    "img_height": 1,
    "img_width": 1,
    "render_width": 1,
    "render_height": 1,
    "render_camera_id": -1,
    "max_episode_steps": 1,
    "num_threads": 0,
    "size": 3,
    "height": 2,
    "width": 1,
    "agent_view_size": 1,
    "mission_bytes": 1,
    "observation_vehicles_count": 1,
}
INT32 = 2**31 - 1
# Families, and parts of ids, which do not look at max_episode_steps.
NO_TIME_LIMIT = ("envpool.highway", "envpool.jumanji", "envpool.procgen", "Catch-", "CliffWalking")
# ViZDoom's network games wait for other players and then end the process.
NETWORK_GAMES = ("Cig-v1", "MultiDuel-v1")
# Set by the adapter or by the id. A batch smaller than the pool would return rows in timing-dependent order.
OURS = {
    "num_envs",
    "batch_size",
    "seed",
    "env_seed",
    "max_num_players",
    "gym_reset_return_info",
    "task",
    "task_name",
    "env_name",
}
# Options of EnvPool's Python side, which its configuration lists only together with from_pixels.
RENDER_OPTIONS = {
    "from_pixels": False,
    "render_mode": "rgb_array",
    "render_width": 64,
    "render_height": 64,
    "render_camera_id": 0,
}
# MiniGrid's and BabyAI's image holds symbols, not pixels: object, colour and state of every cell.
SYMBOL_CLASSES = (11, 6, 3)


class EnvPoolBackend:
    """One synchronous pool: rows stay in environment order and runs are reproducible, whatever the thread count.

    Its environments cannot be seeded one by one: where one fails, or a run goes on, the whole pool is made anew.
    """

    replays = supervised = False

    def __init__(self, id: str, num_envs: int, seed: int, options: Options, keys: str = "") -> None:
        """`keys`: observation keys to keep, comma-separated. Environment i has seed `seed` + i, an int32."""
        envpool = _import_envpool()
        if id not in (known := envpool.list_all_envs()):
            raise EnvError(unknown(id, known))
        if id in NETWORK_GAMES:
            raise EnvError("it is played over a network; only environments with one player are supported")
        family = _family(envpool, id)
        self._seed, self._record, self._first = seed, 0, np.ones(num_envs, bool)
        self.rebuilds = Rebuilds()
        try:
            options = _checked_options(envpool, id, options)
            draws = options.get("from_pixels", False) or "render_mode" in options
            if draws and family.startswith("envpool.mujoco"):
                preload_egl(envpool)
            self._make = partial(envpool.make, id, "gymnasium", num_envs=num_envs, batch_size=num_envs, **options)
            self._pool, observation_space, action_space = self._made(seed)
        except (ImportError, MemoryError, RuntimeError, ValueError) as error:
            raise EnvError(one_line(error)) from error
        if (players := self._pool.config["max_num_players"]) > 1:
            raise EnvError(f"it has {players} players; only environments with one are supported")
        self._tree, self.action_space = observation_tree(observation_space), action_space
        self._symbols, self._atari = family == "envpool.minigrid", family == "envpool.atari"
        # Elsewhere frame_skip counts the physics' own steps.
        self.action_repeat = int(self._pool.config["frame_skip"]) if self._atari else 1
        leaves = dict(self._tree.leaves)
        if self._symbols:
            height, width, _ = leaves["image"].shape or ()
            leaves["image"] = spaces.Box(0, 1, (height * width * sum(SYMBOL_CLASSES),), np.float32)
        self.observation_spaces = keep_keys(leaves, keys)

    def send(self, action: object, record: int, reset: Flags) -> None:
        """Returns at once; the environments step while the caller does something else."""
        self._record, self._first = record, reset.copy()
        if action is None:
            self._pool.async_reset()
        else:
            self._pool.send(action)

    def receive(self) -> Raw:
        """Blocks until every environment has stepped."""
        observation, reward, terminated, truncated, info = self._pool.recv()
        obs = {key: np.asarray(value) for key, value in self._tree.split(observation).items()}
        if self._symbols:
            obs["image"] = one_hot_symbols(obs["image"])
        # A game that ends on the step limit is truncated, not terminated, but Atari's info knows that it is over.
        game_over = info["terminated"].astype(bool) | terminated if self._atari else None
        return Raw(obs, reward, terminated, truncated, self._first, game_over)

    def rebuild(self, error: NotFiniteError) -> None:
        """The whole pool, with seeds that follow from the record."""
        self.rebuilds.note("EnvPool", str(error))
        self.resume(self._record, {})
        self.send(None, self._record, np.ones_like(self._first))

    def resume(self, record: int, cursors: Mapping[int, Cursor]) -> dict[int, Arrays]:
        """A new pool; no episode goes on in it."""
        self._pool, *_ = self._made(episode_seed(self._seed, record))
        return {}

    def render(self, index: int) -> NDArray[np.uint8]:
        """(H, W, 3); EnvError unless env.options.render_mode is rgb_array and the family can render."""
        try:
            frames: NDArray[np.uint8] = self._pool.render(env_ids=[index])
        except RuntimeError as error:
            raise EnvError(f"cannot render: {one_line(error)}") from error
        return np.asarray(frames[0])

    def close(self) -> None:
        """EnvPool's own close keeps the threads running; dropping the pool ends them."""
        del self._pool

    def _made(self, seed: int) -> tuple[Any, AnySpace, AnySpace]:
        """A pool and its spaces, which are made at the first look."""
        with warnings.catch_warnings():
            # Of gymnasium, about the bounds of observations, which nobody looks at.
            warnings.filterwarnings("ignore", message=".*precision lowered by casting", category=UserWarning)
            pool = self._make(seed=seed)
            return pool, pool.observation_space, pool.action_space


def preload_egl(envpool: ModuleType) -> None:
    """Makes MuJoCo find its OpenGL entry points; any time before the first render.

    They are looked up in the process-global scope, where Python does not put what an extension module brings along:
    the libEGL of EnvPool's wheel is loaded and yet invisible, and the process exits at the first frame. So that file
    is opened again with RTLD_GLOBAL; never the system's, two copies in one process corrupt the heap. Where the wheel
    has none (macOS, Windows, source builds) there is nothing to do. Raises EnvError where no driver stands behind it,
    which would end the process as well.
    """
    folder = Path(str(envpool.__file__)).parent.parent / "envpool.libs"
    for library in sorted(folder.glob("libEGL-*.so*")):
        egl = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        if _egl_devices(egl) < 1:
            raise EnvError(NO_EGL)


def one_hot_symbols(symbols: AnyArray) -> NDArray[np.float32]:
    """MiniGrid's (N, H, W, 3) symbols to (N, H * W * 20), the classes of a cell side by side."""
    one_hot = [np.eye(classes, dtype=np.float32)[symbols[..., at]] for at, classes in enumerate(SYMBOL_CLASSES)]
    return np.concatenate(one_hot, axis=-1).reshape(len(symbols), -1)


def _import_envpool() -> ModuleType:
    try:
        import envpool
    except ModuleNotFoundError as error:
        if error.name != "envpool":
            raise
        raise EnvError(f"needs the package envpool, which is not installed: {INSTALL}") from error
    return envpool


def _family(envpool: ModuleType, id: str) -> str:
    return str(envpool.registration.registry.specs[id][0])


def _checked_options(envpool: ModuleType, id: str, options: Options) -> dict[str, bool | int | float | str]:
    """`options` with the camera filled in; EnvPool itself would crash on some values and ignore others."""
    pixels = bool(options.get("from_pixels", False))
    spec = envpool.make_spec(id, from_pixels=pixels)
    defaults = {**RENDER_OPTIONS, **spec.config._asdict()}
    for name, value in options.items():
        if name in OURS:
            raise EnvError(f"env.options.{name} is set by fastdreamer and cannot be given")
        if name not in defaults:
            raise EnvError(unknown(name, defaults.keys() - OURS, f"option env.options.{name}"))
        kind = type(defaults[name])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise EnvError(f"env.options.{name} must be {kind.__name__}, got {value!r}")
        if name in MINIMUM and float(value) < MINIMUM[name]:
            raise EnvError(f"env.options.{name} must be at least {MINIMUM[name]}, got {value}")
        if kind is int and int(value) > INT32:
            raise EnvError(f"env.options.{name} must be at most {INT32}, got {value}")
        if name == "max_episode_steps" and any(part in f"{_family(envpool, id)} {id}" for part in NO_TIME_LIMIT):
            raise EnvError(f"env.options.{name} has no effect on this environment: EnvPool ignores it")
        if name == "base_path" and not Path(str(value)).is_dir():
            raise EnvError(f"env.options.{name} must be a folder, got {value}")
        if name == "repeat_action_probability" and not 0 <= float(value) <= 1:
            raise EnvError(f"env.options.{name} must lie in 0..1, got {value}")
    checked = dict(options)
    if pixels and _family(envpool, id) == "envpool.mujoco.dmc":
        # The official choice; EnvPool's default is a free camera.
        checked.setdefault("render_camera_id", 2 if id.startswith("Quadruped") else 0)
    return checked


def _egl_devices(egl: ctypes.CDLL) -> int:
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    if not (address := egl.eglGetProcAddress(b"eglQueryDevicesEXT")):
        return 0
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
    count = ctypes.c_int(0)
    query(0, None, ctypes.byref(count))
    return count.value
