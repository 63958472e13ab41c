"""Distilled object detectors: the same loss terms, on regions instead of images."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.roi_heads import fastrcnn_loss

from ndkd.distillation.coco_ap import SUMMARY, coco_ap
from ndkd.distillation.module import DistillationModule
from ndkd.distillation.objective import LossTerm
from ndkd.distillation.step_output import StepOutput
from ndkd.errors import NdkdError
from ndkd.models.config import ModelConfig
from ndkd.models.detectors import build_detector
from ndkd.models.features import FeatureExtractor
from ndkd.models.output import ModelOutput
from ndkd.seeds import seed_torch

# the terms of a detector's own losses, and what torchvision calls these
OWN_LOSSES = {
    "objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "class": "loss_classifier",
    "box": "loss_box_reg",
}
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


@dataclass
class DetectionOutput(StepOutput):
    """In evaluation there are detections instead of outputs of regions, and the images' own targets."""

    student: Any
    target: Any
    detections: list[dict[str, Tensor]] | None = None


class DetectionDistillationModule(DistillationModule):
    """Distil torchvision's Faster R-CNN: teacher and student look at the regions that the student sampled.

    N is the number of regions; the embedding is the output of the box head, the target a region's class, 0 for the
    background; the feature maps are the levels of the pyramid. The detector's own four losses are part of every
    objective, as the terms ``objectness``, ``rpn_box``, ``class`` and ``box``; a term of the same name takes the place
    of one, for example with another weight.

    Args:
        student: how to build the student, or a ready detector.
        losses: further loss terms by name.
        options: the others of ``DistillationModule``; a model's name is ``detector/resnet18`` (or another
            backbone; with ``pretrained: true`` the backbone starts from ImageNet) or
            ``torchvision/fasterrcnn_resnet50_fpn``.
    """

    headline = "ap", "AP"
    allows_empty_classes = True  # an image set need not show every class
    needs_taps = False  # they are the levels of the pyramid
    has_embeddings = False

    def __init__(self, student: ModelConfig | nn.Module, losses: Mapping[str, LossTerm] | None = None, **options: Any):
        own = {name: LossTerm(nn.Identity(), inputs=[f"student.extra.{key}"]) for name, key in OWN_LOSSES.items()}
        for name, term in (losses or {}).items():
            if term.pseudo_labels is not None:
                raise NdkdError(f"loss {name}: each of a detector's regions has a class; leave pseudo_labels out")
        super().__init__(student, {**own, **(losses or {})}, **options)

    def build_extractor(self, source: ModelConfig | nn.Module, data: Any, strict: bool = False) -> FeatureExtractor:
        family, _, backbone = source.name.partition("/") if isinstance(source, ModelConfig) else ("", "", "")
        if isinstance(source, ModelConfig) and family == "detector" and source.pretrained:
            num_classes: Any = self.num_classes
            model = build_detector(backbone, num_classes, True, source.checkpoint, **source.kwargs)
            return FeatureExtractor(model, source.classifier)
        extractor = super().build_extractor(source, data, strict)
        if not isinstance(extractor.model, FasterRCNN):
            raise NdkdError(f"wanted a detector such as detector/resnet18, {source.name} is none")
        return extractor

    @property
    def _data(self) -> Any:
        return getattr(self.trainer, "datamodule", None)

    def build_metrics(self) -> None:
        if not hasattr(self._data, "category_ids"):
            raise NdkdError("a detector wants images with boxes: use a CocoDataModule")
        self.image_ids: list[int] = []
        self.rows: list[dict[str, Any]] = []

    def example_batch(self) -> Batch:
        target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
        return [torch.zeros(3, 64, 64)] * 2, [target] * 2

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Its data has looked at the labels of the boxes."""
        return batch

    def forward_pair(self, batch: Batch, teach: bool = True) -> StepOutput:
        """A batch through the student and, in training, the teacher on the student's regions."""
        images, targets = self._scaled(batch[0]), batch[1]
        model: Any = self.student.model
        if not teach:
            return DetectionOutput(None, targets, detections=model(images))
        images, targets = model.transform(images, targets)
        levels = model.backbone(images.tensors)
        model.rpn.train()  # it tells its losses in training only, and has nothing else that this would change
        proposals, losses = model.rpn(images, levels, targets)
        regions, _, labels, offsets = model.roi_heads.select_training_samples(proposals, targets)
        student, boxes = box_branch(model, levels, regions, images.image_sizes)
        names = "loss_classifier", "loss_box_reg"
        losses |= zip(names, fastrcnn_loss(student.logits, boxes, labels, offsets), strict=True)
        student.extra = SimpleNamespace(**losses)
        if self.projector is not None:
            student.projected = self.projector(student.embedding)
        teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                model = self.teacher.model
                teacher, _ = box_branch(model, model.backbone(images.tensors), regions, images.image_sizes)
        return StepOutput(student, torch.cat(labels), teacher, self.class_means)

    @torch.no_grad()
    def teacher_embeddings(self, batch: Batch, name: str = "teacher") -> tuple[Tensor, Tensor]:
        """The teacher's embeddings (N, D) of regions that it proposes itself, and their classes (N,)."""
        model = self.teachers[name].model
        images, targets = model.transform(self._scaled(batch[0]), batch[1])
        levels = model.backbone(images.tensors)
        proposals, _ = model.rpn(images, levels)
        regions, labels = [], []
        for proposed, target in zip(proposals, targets, strict=True):
            # drawn for the image, whatever was drawn before it and by however many processes
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                seed_torch(self.seed, int(target["image_id"]))
                (chosen,), _, (classes,), _ = model.roi_heads.select_training_samples([proposed], [target])
            regions.append(chosen)
            labels.append(classes)
        return box_branch(model, levels, regions, images.image_sizes)[0].embedding, torch.cat(labels)

    @torch.no_grad()
    def teacher_detections(self, batch: Batch) -> list[dict[str, Tensor]]:
        """What the teacher finds by itself."""
        return self.teacher.model(self._scaled(batch[0]))

    def _scaled(self, images: list[Tensor]) -> list[Tensor]:
        return [image if image.is_floating_point() else image.to(self.dtype).div_(255) for image in images]

    # ---- evaluation -----------------------------------------------------------------------------------------------

    def update_metrics(self, output: DetectionOutput) -> None:
        """Keep a batch's detections for COCO's evaluation."""
        self.image_ids += [int(target["image_id"]) for target in output.target]
        self.rows += [row for rows in self.predict_rows(output) for row in rows]

    def predict_rows(self, output: DetectionOutput) -> list[list[dict[str, Any]]]:
        """Per image, COCO's results: boxes (x, y, width, height) in pixels of the image."""
        categories = self._data.category_ids
        results = []
        for target, found in zip(output.target, output.detections or (), strict=True):
            image_id, boxes = int(target["image_id"]), found["boxes"].double()
            boxes[:, 2:] -= boxes[:, :2]
            rows = zip(found["labels"].tolist(), boxes.tolist(), found["scores"].double().tolist(), strict=True)
            results.append(
                [{"image_id": image_id, "category_id": categories[k], "bbox": b, "score": s} for k, b, s in rows]
            )
        return results

    def compute_metrics(self, stage: str) -> dict[str, float]:
        """COCO's average precision of all processes' detections; per class in a test only."""
        kept: list[Any] = [(self.image_ids, self.rows)]
        self.image_ids, self.rows = [], []
        if self.trainer.world_size > 1:
            own, kept = kept[0], [None] * self.trainer.world_size
            torch.distributed.all_gather_object(kept, own)
        values: Any = None
        if self.trainer.is_global_zero:
            image_ids, rows = ([x for part in parts for x in part] for parts in zip(*kept, strict=True))
            values = coco_ap(self._data.val, rows, image_ids)
        values = self.trainer.strategy.broadcast(values)
        return {name: value for name, value in values.items() if stage == "test" or name in SUMMARY}


def box_branch(
    model: FasterRCNN, levels: dict[str, Tensor], regions: list[Tensor], sizes: list[tuple[int, int]]
) -> tuple[ModelOutput, Tensor]:
    """What a detector makes of regions: logits, embedding and, as they come, the levels; and its boxes."""
    heads = model.roi_heads
    embedding = heads.box_head(heads.box_roi_pool(levels, regions, sizes))
    logits, boxes = heads.box_predictor(embedding)
    return ModelOutput(logits, embedding, feature_maps=list(levels.values())), boxes
