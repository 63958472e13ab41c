"""How long the features are and where they point, epoch by epoch, on the evaluation set."""

from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.nn import functional as F

from ndkd.runs import Run

NORM_EDGES = np.geomspace(1e-2, 1e4, 241)  # 40 bins to a decade
ANGLE_EDGES = np.linspace(0, 180, 181)  # degrees


class FeatureStatistics(Checkpoint):
    """Histograms of student, projected and teacher norms, and of the angle to the teacher's class mean in degrees.

    Like the run recorder it is one of Lightning's checkpoint callbacks: nothing is kept of an epoch that fails.

    Args:
        run: where they are kept, one file per epoch.
    """

    def __init__(self, run: Run):
        self.run = run
        self._teacher_norms: list[Tensor] | None = None  # the evaluation set is the same every epoch
        self._values: dict[str, list[Tensor]] = {}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._values = {}  # an epoch without validation keeps none

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        wanted = {
            "student_norm": True,
            "projected_norm": pl_module.projector is not None,
            "angle": pl_module.class_means is not None,
            "teacher_norm": pl_module.teacher is not None,
        }
        self._values = {name: [] for name, is_wanted in wanted.items() if is_wanted}

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if outputs.student is None:  # a detector's evaluation has no regions to compare
            self._values = {}
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self._values:
            return
        student, values = outputs.student, self._values
        values["student_norm"].append(student.embedding.float().norm(dim=1))
        if "projected_norm" in values:
            values["projected_norm"].append(student.projected.float().norm(dim=1))
        if "angle" in values:
            cosine = F.cosine_similarity(student.projected.float(), outputs.class_means[outputs.target], dim=1)
            values["angle"].append(torch.rad2deg(cosine.clamp(-1, 1).acos()))
        if "teacher_norm" in values and self._teacher_norms is None:
            values["teacher_norm"].append(pl_module.teacher_embeddings(batch)[0].float().norm(dim=1))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not self._values:
            return
        if "teacher_norm" in self._values:
            self._teacher_norms = self._values["teacher_norm"] = self._teacher_norms or self._values["teacher_norm"]
        arrays = {"norm_edges": NORM_EDGES, "angle_edges": ANGLE_EDGES}
        for name, parts in self._values.items():
            edges = ANGLE_EDGES if name == "angle" else NORM_EDGES
            values = torch.cat(parts).cpu().numpy() if parts else np.empty(0)  # a rank may have no image
            counts = torch.from_numpy(np.histogram(values.clip(edges[0], edges[-1]), edges)[0]).to(pl_module.device)
            arrays[name] = trainer.strategy.reduce(counts, reduce_op="sum").cpu().numpy()
        if trainer.is_global_zero:
            self.run.write_epoch("features", trainer.current_epoch, arrays)
