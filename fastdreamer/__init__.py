"""fastdreamer: DreamerV3, exactly the official algorithm, made fast.

    agent = fastdreamer.load("runs/x")                        see fastdreamer.trained
    agent = fastdreamer.learn("CartPole-v1", steps=20_000)    see fastdreamer.library

torch is imported when one of them is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdreamer.library import learn as learn
    from fastdreamer.trained import TrainedAgent as TrainedAgent
    from fastdreamer.trained import load as load

__version__ = "0.1.0"
__all__ = ["TrainedAgent", "learn", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastdreamer import library

    return getattr(library, name)
