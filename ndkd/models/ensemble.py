"""Several teachers of one student."""

from collections.abc import Mapping

from torch import Tensor, nn

from ndkd.models.output import EnsembleOutput
from ndkd.models.projector import Projector


class Ensemble(nn.Module):
    """Teachers that are asked together; what they say together is the mean of their logits.

    Args:
        teachers: by name.
    """

    def __init__(self, teachers: Mapping[str, nn.Module]):
        super().__init__()
        self.teachers = nn.ModuleDict(teachers)

    def forward(self, images: Tensor) -> EnsembleOutput:
        return EnsembleOutput({name: teacher(images) for name, teacher in self.teachers.items()})


class Projectors(nn.ModuleDict):
    """The student's embedding at the width of each of several teachers.

    Args:
        student_width: D of the student's embedding.
        teacher_widths: D of each teacher's, by name; one of the student's own width has the embedding itself.
        std: see ``Projector``.
    """

    def __init__(self, student_width: int, teacher_widths: Mapping[str, int], std: float | None = None):
        super().__init__()
        for name, width in teacher_widths.items():
            self[name] = nn.Identity() if width == student_width else Projector(student_width, width, std)

    def forward(self, embedding: Tensor) -> dict[str, Tensor]:
        return {name: projector(embedding) for name, projector in self.items()}
