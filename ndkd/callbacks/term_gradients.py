"""The gradients of the loss terms during training, as metrics."""

from typing import Any

import lightning.pytorch as L
import torch

from ndkd.distillation.term_gradients import term_gradients
from ndkd.errors import NdkdError


class TermGradients(L.Callback):
    """Log how hard each loss term pulls at the student, and whether it pulls where the cross-entropy does.

    Of one step in so many, the first among them, ``grad/TERM/norm`` is the norm of the gradient of a term before it is
    weighed, on the parameters of the student, and ``grad/TERM/cosine_to_ce`` the cosine of its angle to the gradient of
    the cross-entropy. The graph of the step itself is used: training goes on as it would without, bit for bit. Of
    several processes it is the first one's share of the batch.

    A measured step takes one more backward pass for each term. A compiled student is not measured, since its graph is
    gone after one pass; a line says so.

    Args:
        every_n_steps: steps of the optimizer.

    Raises:
        NdkdError: fewer than one step.
    """

    def __init__(self, every_n_steps: int = 500):
        if every_n_steps is None or every_n_steps < 1:
            raise NdkdError(f"TermGradients: every_n_steps: wanted at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._hook: Any = None
        self._seen: Any = None  # the output of a step and the values of its terms
        self._last = -1  # step that was measured
        self.is_on = False

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._last = -1
        is_compiled = isinstance(getattr(pl_module.sources["student"], "compile", None), str)
        self.is_on = trainer.is_global_zero and not (is_compiled or pl_module.graph)
        if trainer.is_global_zero and not self.is_on:
            of_one_pass = "the graph of a compiled student is gone after one pass"
            why = "a graph replays a step as a whole" if pl_module.graph else of_one_pass
            print(f"ndkd: no gradients of the loss terms: {why}")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        for name in [name for name in trainer.callback_metrics if name.startswith("grad/")]:
            del trainer.callback_metrics[name]  # an epoch without a measured step has none

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if self.is_on and step % self.every_n_steps == 0 and step != self._last:  # several batches may make one step
            self._last = step
            self._hook = pl_module.objective.register_forward_hook(self._keep)

    def _keep(self, objective: Any, given: Any, result: Any) -> None:
        self._seen = given[0], result[1]
        self._hook.remove()

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: torch.Tensor) -> None:
        if self._seen is None:
            return
        (output, values), self._seen = self._seen, None
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        found = term_gradients(pl_module.objective, output, values, pl_module.student.parameters(), scale)
        logged = {f"grad/{n}/{kind}": value for n, term in found.items() for kind, value in term._asdict().items()}
        # the trainer would keep what a module logs from the loggers in most steps
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in logged.items()})
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, **logged}, trainer.global_step)

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._seen = None
        if self._hook is not None:
            self._hook.remove()
