"""What losses of feature maps share: checks of the pairs that they compare."""

from collections.abc import Sequence, Sized
from typing import Protocol

from torch import Tensor


class HasMaps(Protocol):
    """The output of a model that taps feature maps."""

    @property
    def feature_maps(self) -> Sequence[Tensor]: ...


def map_shapes(method: str, student: HasMaps, teacher: HasMaps) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """(c, h, w) of the student's maps and of the teacher's; ``ValueError`` unless they pair."""
    student_shapes = [tuple(m.shape[1:]) for m in student.feature_maps]
    teacher_shapes = [tuple(m.shape[1:]) for m in teacher.feature_maps]
    equally_many = 0 < len(student_shapes) == len(teacher_shapes)
    if not equally_many or any(len(shape) != 3 for shape in student_shapes + teacher_shapes):
        raise ValueError(
            f"{method} wants as many student taps as teacher taps, each a map (c, h, w), "
            f"got {student_shapes} and {teacher_shapes}"
        )
    return student_shapes, teacher_shapes


def check_built(layers: Sized, student_maps: Sequence[Tensor]) -> None:
    """Raise ``ValueError`` unless a loss has layers for so many maps."""
    if len(layers) != len(student_maps):
        raise ValueError(f"built for {len(layers)} maps, got {len(student_maps)}: call build first")


def check_pairs(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> None:
    """Raise ``ValueError`` unless there are as many maps of the one as of the other, at least one."""
    if len(student_maps) != len(teacher_maps):
        counts = f"{len(student_maps)} and {len(teacher_maps)}"
        raise ValueError(f"wanted as many student_maps as teacher_maps, got {counts}")
    if not student_maps:
        raise ValueError("wanted at least one pair of feature maps, got none")
