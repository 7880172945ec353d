"""One gymnasium environment from its name: `gym:ID`, or `module:factory` for your own code."""

import importlib
import inspect
from typing import Any

import gymnasium

from fastdreamer.env_step import EnvError, Options, one_line, unknown

AnyEnv = gymnasium.Env[Any, Any]
GYM = "gym:"
# Namespaces and families that a package registers on import: the package on PyPI and its module.
PACKAGES = {"ALE/": ("ale-py", "ale_py"), "MiniGrid-": ("minigrid", "minigrid"), "BabyAI-": ("minigrid", "minigrid")}


def make_single(id: str, options: Options) -> AnyEnv:
    """Calls gymnasium.make for `gym:ID` (`gym:module:ID` imports the module first), otherwise `factory(**options)`.

    Raises EnvError for an id, module, factory or option that does not exist and for a package that is missing, with the
    line that installs it. What your own factory raises comes through unchanged.
    """
    if id.startswith(GYM):
        return _from_registry(id.removeprefix(GYM), options)
    return _from_factory(id, options)


def _from_registry(id: str, options: Options) -> AnyEnv:
    module, colon, name = id.rpartition(":")
    if colon:
        _import(module)
    # The checker would only repeat, as warnings, what `Checked` refuses.
    arguments: dict[str, Any] = {"disable_env_checker": True, **options}
    try:
        return gymnasium.make(name, **arguments)
    except gymnasium.error.UnregisteredEnv as error:
        for prefix, (package, provider) in PACKAGES.items():
            if name.startswith(prefix) and not colon:
                raise EnvError(f"it comes with a package: pip install {package}, then gym:{provider}:{name}") from error
        raise EnvError(unknown(name, gymnasium.registry)) from error
    except (gymnasium.error.Error, ImportError, TypeError, ValueError, AssertionError) as error:
        raise EnvError(f"gymnasium.make: {one_line(error)}") from error


def _from_factory(id: str, options: Options) -> AnyEnv:
    module, _, path = id.partition(":")
    factory: object = _import(module)
    for part in path.split("."):
        if not hasattr(factory, part):
            raise EnvError(f"the module {module} has no {path}")
        factory = getattr(factory, part)
    if not callable(factory):
        raise EnvError(f"{path} is a {type(factory).__name__}, not a callable that returns a gymnasium.Env")
    try:
        inspect.signature(factory).bind(**options)
    except (TypeError, ValueError) as error:
        raise EnvError(f"{path} cannot be called with env.options {dict(options)}: {error}") from error
    env = factory(**options)
    if not isinstance(env, gymnasium.Env):
        raise EnvError(f"{path} returned a {type(env).__name__}, not a gymnasium.Env")
    return env


def _import(module: str) -> object:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise EnvError(
                f"there is no module {module}; install its package or start where it can be imported"
            ) from error
        raise EnvError(f"{module} needs the package {error.name}: pip install {error.name}") from error
    except ValueError as error:  # an empty module name
        raise EnvError(f'must be an EnvPool id, gym:ID or module:factory, got the module "{module}"') from error
