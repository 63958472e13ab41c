"""What the files of a run folder hold when they are whole; a run folder may be cut, or come from anywhere."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ndkd.errors import Damaged

# arrays that each file of an epoch has
ARRAYS = {"predictions": ("target", "prediction", "confidence"), "features": ("norm_edges", "angle_edges")}
NUMBER = (int, float)
STATUS: dict[str, type | tuple[type, ...]] = {
    "state": str,
    "headline": str,
    "error": str,
    "git_commit": str,
    "images": dict,
    "results": dict,
    "teacher": dict,
    "versions": dict,
    "seconds": NUMBER,
    "parameters": NUMBER,
}
Content = TypeVar("Content")


def checked_content(file: Path, read: Callable[[], Content], to_do: str) -> Content:
    """What ``read`` makes of a file; ``ndkd.errors.Damaged`` whatever happens to it there."""
    try:
        return read()
    except (OSError, MemoryError) as error:
        raise Damaged(file, str(error) or type(error).__name__, to_do) from error
    except Exception as error:  # damaged bytes raise errors of many kinds
        raise Damaged(
            file, f"{error}" if type(error) is ValueError else f"{type(error).__name__} {error}", to_do
        ) from error


def entries(found: Any) -> dict[str, Any]:
    """A dictionary, and nothing else."""
    if not isinstance(found, dict):
        raise ValueError(f"wanted entries, got {'nothing' if found is None else f'a {type(found).__name__}'}")
    return found


def unfolded(value: Any, depth: int = 0, seen: list[int] | None = None) -> Any:
    """A copy in which nothing stands for something else: YAML can say in a line what fills a memory, or never ends."""
    seen = [] if seen is None else seen
    seen.append(depth)
    if depth > 50 or len(seen) > 100_000:
        raise ValueError("it refers to itself, or is far too large for a configuration")
    if isinstance(value, dict):
        return {key: unfolded(inner, depth + 1, seen) for key, inner in value.items()}
    return [unfolded(inner, depth + 1, seen) for inner in value] if isinstance(value, list) else value


def checked_status(found: Any) -> dict[str, Any]:
    """The content of status.json, with results that are numbers."""
    for name, value in entries(found).items():
        if name in STATUS and not isinstance(value, STATUS[name]):
            raise ValueError(f"{name} is {str(value)[:60]}")
    results = found.get("results") or {}
    headline = found.get("headline", "acc1")
    metric, of_teacher = f"test/{headline}", f"val/{headline}"
    for name, result in results.items():
        values = {"epoch": None, metric: None, **result} if isinstance(result, dict) else {"": result}
        if not all(isinstance(value, (int, float)) for value in values.values()):
            raise ValueError(f"results.{name} is {str(result)[:60]}, without numbers for epoch and {metric}")
    if results and "last" not in results:
        raise ValueError("results has none of the last epoch")
    if (teacher := found.get("teacher")) is not None and not isinstance(teacher.get(of_teacher), NUMBER):
        raise ValueError(f"teacher is {str(teacher)[:60]}, without a number for {of_teacher}")
    return found


def is_row(row: dict[Any, Any]) -> bool:
    """Whether a row has all columns and no more, numbers all of them or empty."""
    try:
        return None not in row and row["epoch"].isdecimal() and int(row["step"]) >= 0 and _are_numbers(row.values())
    except (TypeError, ValueError, AttributeError):
        return False


def _are_numbers(values: Iterable[str]) -> bool:
    return all(value == "" or float(value) is not None for value in values)


def checked_arrays(kind: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of an epoch's file, as long as each other or as their edges say."""
    if missing := [name for name in ARRAYS[kind] if name not in arrays]:
        raise ValueError(f"it has no {missing[0]}")
    for name, array in arrays.items():
        if array.ndim != 1 or array.dtype.kind not in "iuf":
            raise ValueError(f"{name} is not a row of numbers")
        edges = arrays.get("angle_edges" if name == "angle" else "norm_edges", ())
        wanted = {"predictions": len(arrays["target"])} if kind == "predictions" else {"features": len(edges) - 1}
        if not name.endswith("_edges") and len(array) != wanted[kind]:
            raise ValueError(f"{name} has {len(array)} numbers instead of {wanted[kind]}")
    return arrays
