"""From the student's embedding width to the teacher's, while training."""

from torch import nn


class Projector(nn.Sequential):
    """BatchNorm1d, Dropout, Linear: (N, D_student) to (N, D_teacher).

    The BatchNorm makes the projected embedding invariant to the scale of the raw one: look at both norms.
    Source: https://arxiv.org/abs/2305.17007.
    """

    def __init__(self, student_width: int, teacher_width: int, dropout: float = 0.5):
        linear = nn.Linear(student_width, teacher_width)
        nn.init.zeros_(linear.bias)
        super().__init__(nn.BatchNorm1d(student_width), nn.Dropout(dropout), linear)
