"""Knowledge distillation that regularises feature norm and direction (https://arxiv.org/abs/2305.17007)."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``ndkd.load`` when it is asked for: it needs torch, the version does not."""
    if name == "load":
        from ndkd.classifier import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
