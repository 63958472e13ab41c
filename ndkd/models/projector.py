"""From the student's embedding width to the teacher's, while training."""

from torch import nn

from ndkd.models.layers import draw_linear_layers


class Projector(nn.Sequential):
    """BatchNorm1d, Dropout, Linear: (N, D_student) to (N, D_teacher).

    The BatchNorm makes the projected embedding invariant to the scale of the raw one: look at both norms.
    Source: https://arxiv.org/abs/2305.17007.

    Args:
        student_width: D of the student's embedding.
        teacher_width: D of the teacher's.
        std: the linear layer's weights and bias start from N(0, std); by default as torch has it, the bias zero.
        dropout: probability.
    """

    def __init__(self, student_width: int, teacher_width: int, std: float | None = None, dropout: float = 0.5):
        linear = nn.Linear(student_width, teacher_width)
        nn.init.zeros_(linear.bias)
        if std is not None:
            draw_linear_layers(linear, std)
        super().__init__(nn.BatchNorm1d(student_width), nn.Dropout(dropout), linear)
