"""What a checkpoint of ``ndkd fit`` knows beside its weights: the one file that knows under which keys it is kept."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ndkd.errors import NdkdError

FORMAT = 1
Wanted = type | tuple[type, ...]
SEQUENCE: tuple[type, ...] = (list, tuple, type(None))
# what a checkpoint of a run holds, at its top, in its hyper-parameters and of its student
TYPES: dict[str, Wanted] = {
    "state_dict": dict,
    "hyper_parameters": dict,
    "epoch": int,
    "pytorch-lightning_version": str,
}
KNOWN_TYPES: dict[str, Wanted] = {"num_classes": int, "class_names": SEQUENCE}
STUDENT_TYPES: dict[str, Wanted] = {
    "name": (str, type(None)),
    "kwargs": (dict, type(None)),
    "pretrained": (bool, type(None)),
}
STUDENT_TYPES |= {"checkpoint": (str, type(None)), **dict.fromkeys(("classifier", "taps", "mean", "std"), SEQUENCE)}
TAKE_ANOTHER = "take another checkpoint of the run"


@dataclass
class Known:
    """How the student of a checkpoint is built; of a foreign checkpoint nothing is known.

    Args:
        num_classes: of the data.
        class_names: of the data.
        student: the entries of its ``ndkd.models.ModelConfig``.
        format: of these entries.
    """

    num_classes: int | None = None
    class_names: list[str] | None = None
    student: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Known":
        """What a checkpoint's content knows; others keep other things under the same keys."""
        found = content.get("hyper_parameters")
        found = found if isinstance(found, dict) else {}
        names, student = found.get("class_names"), found.get("student")
        return cls(
            found.get("num_classes"),
            [str(name) for name in names] if isinstance(names, list | tuple) else None,
            student if isinstance(student, dict) else {},
        )

    def hyper_parameters(self) -> dict[str, Any]:
        """The entries that are written into a checkpoint; a student is there once it is built."""
        return {name: value for name, value in asdict(self).items() if name != "student" or value}


def is_run_checkpoint(content: dict[str, Any]) -> bool:
    """Whether a trainer wrote it, and not somebody who kept weights alone."""
    return {"state_dict", "pytorch-lightning_version"} <= content.keys()


def check_run_checkpoint(content: dict[str, Any], path: str | Path) -> None:
    """Raise ``NdkdError`` if what a run's checkpoint needs is missing or of another type."""
    student = Known.of(content).student
    for holder, types in ((content, TYPES), (content.get("hyper_parameters"), KNOWN_TYPES), (student, STUDENT_TYPES)):
        for name, wanted in types.items():
            value = holder.get(name) if isinstance(holder, dict) else holder
            if not isinstance(value, wanted):
                what = "is missing" if value is None else f"is a {type(value).__name__}"
                raise NdkdError(
                    f"checkpoint {path} is damaged, or was not written by ndkd fit: {name} {what}; {TAKE_ANOTHER}"
                )
    names = content["hyper_parameters"].get("class_names") or []
    texts = [*(student.get("classifier") or []), *(student.get("taps") or []), *names]
    mean, std = (student.get(name) or [] for name in ("mean", "std"))
    weights = content["state_dict"].items()
    is_right = (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, float | int) for number in (*mean, *std))
        and len(mean) == len(std)
        and student.keys() <= STUDENT_TYPES.keys() | {"compile"}
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in weights)
    )
    if not is_right:
        raise NdkdError(
            f"checkpoint {path} is damaged, or was not written by ndkd fit: an entry has the wrong type; {TAKE_ANOTHER}"
        )
