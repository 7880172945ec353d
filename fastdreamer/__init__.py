"""fastdreamer: DreamerV3, exactly the official algorithm, made fast.

    agent = fastdreamer.load("runs/x")

is `fastdreamer.trained.load`: torch is imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdreamer.trained import TrainedAgent as TrainedAgent
    from fastdreamer.trained import load as load

__version__ = "0.1.0"
__all__ = ["TrainedAgent", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastdreamer import trained

    return getattr(trained, name)
