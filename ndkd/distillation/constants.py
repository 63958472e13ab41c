"""What a module needs in training and never trains: neither an optimizer nor an average of weights meets it."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ndkd.distillation.checkpoint import keep_class_means, keep_what_is_built, say_what_differs
from ndkd.distillation.cuda_graph import forget_graphs
from ndkd.distillation.foreign_callbacks import averages_weights, check_callbacks
from ndkd.distillation.module_with_graph import ModuleWithGraph
from ndkd.distillation.step_output import ONE, of_each
from ndkd.models.ensemble import Ensemble

NAMES = ("teacher", "class_means")


class Constants:
    """The teacher and its class means (C, D), where there are any; a copy of a module starts without them.

    Of several teachers the teacher is all of them, and the class means are by their names.
    """

    teacher: Any = None
    class_means: Tensor | dict[str, Tensor] | None = None

    def __deepcopy__(self, memo: Any) -> "Constants":
        return Constants()


class ModuleWithConstants(ModuleWithGraph):
    """A module that takes teacher and class means to its device and precision, and counts them as none of its parts.

    As parts they would be copied and averaged by callbacks, synchronised by DDP and stored with every checkpoint.
    """

    teacher: Any
    class_means: Any

    def __init__(self) -> None:
        super().__init__()
        self.constants = Constants()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.constants, name) if name in NAMES else super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in NAMES:
            setattr(self.constants, name, value)
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Behind ``to``, ``cpu``, ``bfloat16`` and the like."""
        if self.teacher is not None:
            forget_graphs(self.teacher)
            self.teacher._apply(fn)
        self.class_means = of_each(fn, self.class_means)
        return super()._apply(fn, recurse)

    @property
    def teachers(self) -> dict[str, Any]:
        """Those that are built, by their names; one that is alone is ``teacher``."""
        if isinstance(self.teacher, Ensemble):
            return dict(self.teacher.teachers.items())
        return {} if self.teacher is None else {ONE: self.teacher}

    @property
    def means_by_teacher(self) -> dict[str, Tensor]:
        """The class means (C, D) by the names of the teachers."""
        if isinstance(self.class_means, dict):
            return self.class_means
        return {} if self.class_means is None else {ONE: self.class_means}

    # ---- what Lightning asks of it --------------------------------------------------------------------------------

    @property
    def is_fitting(self) -> bool:
        """Whether it is being trained, and not only evaluated."""
        return self._trainer is not None and self.trainer.state.fn == "fit"

    def configure_callbacks(self) -> list[Callback]:
        """None of its own; it comes before any of the trainer's is set up."""
        check_callbacks(self._callbacks)
        return []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keep_class_means(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what this stage has built, and say where the configuration differs from the checkpoint's."""
        if self.global_rank == 0:
            say_what_differs(self.hparams, checkpoint)
        averages = self.is_fitting and averages_weights(self._callbacks)
        keep_what_is_built(self, checkpoint, self.is_fitting, averages)

    @property
    def _callbacks(self) -> list[Callback]:
        trainer: Any = self.trainer
        return trainer.callbacks
