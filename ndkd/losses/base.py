"""What a loss may have, beside being a ``torch.nn.Module``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:  # a loss needs nothing but torch
    from ndkd.models.output import ModelOutput


@runtime_checkable
class Loss(Protocol):
    """Called with the outputs that it names, it returns one number for the batch.

    ``inputs`` may be missing, as from torch's own losses: then the loss term names them.
    """

    inputs: Sequence[str]

    def __call__(self, *outputs: Any) -> Tensor: ...


@runtime_checkable
class BuiltLoss(Protocol):
    """A loss with layers of its own, made once for the shapes of a first, blank batch.

    What ``build`` makes is trained with the student and left out of an export. ``teacher`` is None where no term asks
    for one.
    """

    def build(self, student: "ModelOutput", teacher: "ModelOutput | None") -> None: ...
