"""What student and teacher see in the first validation images, beside what is there."""

from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import resize
from torchvision.utils import draw_bounding_boxes

from ndkd.callbacks.base import LogsImages
from ndkd.files import write_atomically
from ndkd.runs import Run

HEIGHT, WIDTH = 320, 480  # of a panel, in pixels
COLOUR = "red"


class DetectionPictures(Checkpoint):
    """A picture per epoch: a row per image with ground truth, student and teacher; nothing for a classifier.

    It goes to ``pictures/`` in the run folder, and to the loggers that take images.

    Args:
        run: the folder.
        images: number of rows.
        score: detections of a lower score are left out.
    """

    def __init__(self, run: Run, images: int = 4, score: float = 0.5):
        self.run, self.images, self.score = run, images, score
        self._rows: list[Tensor] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._rows = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if outputs.student is not None or not trainer.is_global_zero or len(self._rows) >= self.images:
            return
        seen = [outputs.target, outputs.detections]
        if pl_module.teacher is not None:
            seen.append(pl_module.teacher_detections(batch))
        names = pl_module.class_names or list(range(pl_module.num_classes))
        for image, *boxes in zip(batch[0], *seen, strict=True):
            panels = [self._panel(image, found, names) for found in boxes]
            self._rows.append(torch.cat(panels, dim=2))

    def _panel(self, image: Tensor, found: dict[str, Tensor], names: list[Any]) -> Tensor:
        kept = found.get("scores", torch.ones_like(found["labels"])) >= self.score  # what is there has no score
        boxes, labels = found["boxes"][kept].cpu(), [str(names[k]) for k in found["labels"][kept].tolist()]
        drawn, width = image.cpu(), max(1, min(image.shape[1:]) // 200)
        if labels:
            drawn = draw_bounding_boxes(drawn, boxes, labels, COLOUR, width=width)
        scale = min(HEIGHT / drawn.shape[1], WIDTH / drawn.shape[2])
        size = [round(scale * side) for side in drawn.shape[1:]]
        return F.pad(resize(drawn, size), (4, WIDTH - size[1] + 4, 4, HEIGHT - size[0] + 4), value=255)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not self._rows or not trainer.is_global_zero:
            return
        picture, epoch = torch.cat(self._rows[: self.images], dim=1), trainer.current_epoch
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        file = self.run.path / "pictures" / f"{epoch:04d}.png"
        write_atomically(file, lambda out: image.save(out, "PNG"))
        for logger in trainer.loggers:
            if isinstance(logger, LogsImages):  # Weights & Biases
                logger.log_image("val/detections", [image])
            else:
                experiment: Any = getattr(logger, "experiment", None)
                if hasattr(experiment, "add_image"):  # TensorBoard
                    experiment.add_image("val/detections", picture, epoch)
