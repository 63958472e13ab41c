"""How long the features are and where they point, epoch by epoch, on the evaluation set."""

from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.nn import functional as F

from ndkd.callbacks.base import LogsHistograms
from ndkd.callbacks.class_means import ClassMeans
from ndkd.callbacks.class_means_file import StoredMeans
from ndkd.callbacks.run_recorder import in_order
from ndkd.distillation.recorded_teacher import RecordedTeacher
from ndkd.models.ensemble import Ensemble
from ndkd.runs import Run

NORM_EDGES = np.geomspace(1e-2, 1e4, 241)  # 40 bins to a decade
ANGLE_EDGES = np.linspace(0, 180, 181)  # degrees
QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}


class FeatureStatistics(Checkpoint):
    """Norms of student, projected and teacher embeddings, and the angle to the teacher's class mean, in degrees.

    Histograms go to the run folder, and to loggers that take them. Logged under ``features/`` are mean and quantiles,
    the same of ``separability``, the angle to the nearest mean of another class, ``relative_norm``, the mean norm of
    the (projected) student embeddings over the teacher's, and ``longer_than_teacher``, the share of images whose
    (projected) student embedding is at least as long as the teacher's.

    Of several teachers none is the one to compare with: there are the student's norms alone.

    A run whose losses ask for no class means is measured against those that ``ClassMeans.reference`` finds. They
    are part of no checkpoint, and training does not see them.

    Like the run recorder it is one of Lightning's checkpoint callbacks: nothing is kept of an epoch that fails.

    Args:
        run: where histograms are kept, one file per epoch.
    """

    def __init__(self, run: Run):
        self.run = run
        self._teacher_norms: Tensor | None = None  # the evaluation set is the same every epoch
        self._reference: StoredMeans | None = None
        self._batches: dict[str, list[Tensor]] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
        source = next((callback for callback in callbacks if isinstance(callback, ClassMeans)), None)
        is_measured = pl_module.has_embeddings and trainer.limit_val_batches
        if source and is_measured and pl_module.class_means is None:
            self._reference = source.reference(trainer, pl_module)
        if (
            isinstance(pl_module.teacher, RecordedTeacher)
            and (norms := pl_module.teacher.recall(_name_of(trainer))) is not None
        ):
            self._teacher_norms = norms.to(pl_module.device)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._batches = {}  # an epoch without validation keeps none

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._batches = {}

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # a detector's evaluation has no regions to compare
        if trainer.state.fn != "fit" or trainer.sanity_checking or outputs.student is None:
            return
        found = {"student_norm": outputs.student.embedding.float().norm(dim=1)}
        if not isinstance(pl_module.teacher, Ensemble):
            found |= self._compared(pl_module, outputs, batch)
        for name, values in found.items():
            self._batches.setdefault(name, []).append(values)

    def _compared(self, pl_module: Any, outputs: Any, batch: Any) -> dict[str, Tensor]:
        """What there is of a batch beside the student's own norms, for each image."""
        projected, found = outputs.student.projected.float(), {}
        if pl_module.projector is not None:
            found["projected_norm"] = projected.norm(dim=1)
        reference = self._reference.class_means if self._reference else None
        if (means := outputs.class_means if reference is None else reference) is not None:
            cosine = F.normalize(projected) @ F.normalize(means.float()).T
            own = outputs.target.unsqueeze(1)
            cosines = {"angle": cosine.gather(1, own)[:, 0], "separability": cosine.scatter(1, own, -1).amax(dim=1)}
            found |= {name: value.clamp(-1, 1).acos().rad2deg() for name, value in cosines.items()}
        if pl_module.teacher is not None and self._teacher_norms is None:
            found["teacher_norm"] = pl_module.teacher_embeddings(batch)[0].float().norm(dim=1)
        return found

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        columns = {name: torch.cat(batches) for name, batches in self._batches.items()}
        if columns and pl_module.teacher is not None and not isinstance(pl_module.teacher, Ensemble):
            if self._teacher_norms is None:
                self._teacher_norms = columns["teacher_norm"]
                if isinstance(pl_module.teacher, RecordedTeacher):
                    pl_module.teacher.remember(_name_of(trainer), self._teacher_norms)
            columns["teacher_norm"] = self._teacher_norms
        own: Any = torch.stack(list(columns.values()), dim=1).cpu().numpy() if columns else ()
        rows = np.array(in_order(trainer, own))  # all ranks take part, one without images too
        if not len(rows) or not trainer.is_global_zero:
            return
        values = dict(zip(columns, rows.T, strict=True))  # rank 0 has images if any rank has
        arrays = {"norm_edges": NORM_EDGES, "angle_edges": ANGLE_EDGES}
        kept = {name: ANGLE_EDGES if name == "angle" else NORM_EDGES for name in values if name != "separability"}
        for name, edges in kept.items():
            arrays[name] = np.histogram(values[name].clip(edges[0], edges[-1]), edges)[0]
        self.run.write_epoch("features", trainer.current_epoch, arrays)
        teacher_norm = self._reference.teacher_norm if self._reference else None
        self._log(trainer, summary(values, teacher_norm), {name: (arrays[name], edges) for name, edges in kept.items()})

    def _log(self, trainer: L.Trainer, values: dict[str, float], histograms: dict[str, Any]) -> None:
        values, histograms = ({f"features/{n}": v for n, v in found.items()} for found in (values, histograms))
        # a module's log takes half a millisecond for each value
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, **values}, trainer.global_step - 1)
            if isinstance(logger, LogsHistograms):  # Weights & Biases
                logger.log_histograms(histograms, trainer.global_step - 1)


def _name_of(trainer: Any) -> str:
    """What the teacher's norms of the evaluation images are kept under."""
    images = trainer.datamodule.val_dataloader().fingerprint()[:16]
    return f"norms-{images}-{trainer.limit_val_batches}-rank-{trainer.global_rank}-of-{trainer.world_size}"


def summary(columns: dict[str, np.ndarray], teacher_norm: float | None = None) -> dict[str, float]:
    """What is logged of the values of all images; the teacher's mean norm, where it is known without a teacher."""
    found = {f"{name}_mean": column.mean() for name, column in columns.items()}
    for name, column in columns.items():
        quantiles = np.quantile(column, list(QUANTILES.values()))
        found |= {f"{name}_{short}": value for short, value in zip(QUANTILES, quantiles, strict=True)}
    student_norm = columns.get("projected_norm", columns["student_norm"])
    if "teacher_norm" in columns:
        found["longer_than_teacher"] = (student_norm >= columns["teacher_norm"]).mean()
        teacher_norm = columns["teacher_norm"].mean()
    if teacher_norm:
        found["relative_norm"] = student_norm.mean() / teacher_norm
    return {name: float(value) for name, value in found.items()}
