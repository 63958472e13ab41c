"""A student that learns from a frozen teacher, for Lightning's trainer."""

from collections.abc import Mapping
from math import inf
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from ndkd.data.base import PartlyLabeled
from ndkd.distillation.accuracies import accuracies
from ndkd.distillation.averages import EpochAverages, values_of
from ndkd.distillation.batches import SINGLE, check_labels, check_last_batch, hard, images_and_target
from ndkd.distillation.building import build_for_training, build_student, image_shape
from ndkd.distillation.constants import ModuleWithConstants
from ndkd.distillation.cuda_graph import GraphedStep, check_graph
from ndkd.distillation.learning_rate import follow_configuration, step_plateaus
from ndkd.distillation.objective import LossTerm, Objective, check_names
from ndkd.distillation.optimization import Decay, optimizers, trained_groups, with_total_steps
from ndkd.distillation.step_output import StepOutput
from ndkd.distillation.teachers import check_names_of_teachers
from ndkd.errors import NdkdError
from ndkd.models.config import ModelConfig
from ndkd.models.features import FeatureExtractor
from ndkd.models.run_checkpoint import Known
from ndkd.seeds import seed_torch


class DistillationModule(ModuleWithConstants):
    """Train a student on any sum of loss terms; no method has a class of its own.

    Everything is built once, in ``configure_model``: the student first and from the seed alone, so that every
    method starts from the same student. The teacher exists in ``fit`` only, and only if a term needs it.

    Args:
        student: how to build the student, or a ready model.
        losses: the loss terms by name.
        teacher: how to build the teacher, or a ready model.
        optimizer: makes the optimizer from the trainable parameters.
        lr_scheduler: makes the learning rate scheduler from the optimizer.
        lr_interval: whether the scheduler steps every epoch or every step; ``total_steps`` are filled in.
        decay: what weight decay applies to: ``all`` parameters; ``matrices``, not biases and norms; or ``recommended``,
            of the matrices those that the model itself does not exempt (timm's tokens and embeddings of positions).
        projector_std: the projector's weights and bias start from N(0, projector_std).
        linear_std: likewise the student's linear layers (of most CNNs the classifier alone), unless it brings weights.
        channels_last: memory layout of images and convolutions; faster, but a model's ``view`` fails on it.
        num_classes: number of classes, where the data does not tell.
        class_names: their names, where the data does not tell.
        teachers: several of them by name, instead; each is asked for what the loss terms read of it.
        graph: launch each training step on a GPU as one CUDA graph.
    """

    headline = "acc1", "accuracy"  # the metric by which the best epoch is chosen, and its name in words
    allows_empty_classes = False  # whether a class may have no sample to take a mean of
    needs_taps = True  # whether feature maps are those of a model's taps
    has_embeddings = True  # whether an evaluation gives one embedding per image

    def __init__(
        self,
        student: ModelConfig | nn.Module,
        losses: Mapping[str, LossTerm] | None = None,
        teacher: ModelConfig | nn.Module | None = None,
        optimizer: OptimizerCallable = torch.optim.SGD,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        decay: Decay = "all",
        projector_std: float | None = None,
        linear_std: float | None = None,
        channels_last: bool = True,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        teachers: Mapping[str, ModelConfig | nn.Module] | None = None,
        graph: bool = False,
    ):
        super().__init__()
        for name, std in {"projector_std": projector_std, "linear_std": linear_std}.items():
            if std is not None and not 0 <= std < inf:
                raise NdkdError(f"{name}: wanted a standard deviation, got {std}")
        check_names_of_teachers(teacher, teachers)
        # in a dictionary, so that a ready model is not registered a second time
        sources: dict[str, Any] = {"student": student, **(teachers or {"teacher": teacher})}
        self.sources = {n: ModelConfig(**s) if isinstance(s, dict) else s for n, s in sources.items()}
        check_names(losses or {})
        if num_classes is not None and num_classes < 2:
            raise NdkdError(f"num_classes: wanted at least 2, got {num_classes}")
        self.losses = dict(losses or {})
        self.make_optimizer, self.make_lr_scheduler, self.lr_interval = optimizer, lr_scheduler, lr_interval
        self.decay, self.projector_std, self.linear_std = decay, projector_std, linear_std
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.student: FeatureExtractor = None  # type: ignore[assignment]  # until it is built
        self.projector: nn.Module | None = None
        self.objective: Objective = None  # type: ignore[assignment]  # in fit alone
        self.is_compiled, self.graph = False, graph
        self.hparams.update(Known(num_classes, class_names).hyper_parameters())

    @property
    def teacher_names(self) -> list[str]:
        """The names of all teachers that it could have; of one that is alone ``teacher``."""
        return [name for name in self.sources if name != "student"]

    @property
    def num_classes(self) -> int | None:
        """Number of classes, known once the student is built."""
        return self.hparams["num_classes"]

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, where the data or the caller tells them."""
        return self.hparams["class_names"]

    # ---- building -------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build student, teacher, projector and objective, and check that every input of every term is provided."""
        with torch.device("cpu"):  # on a GPU the same seed would draw another student
            if self.student is None:
                build_student(self)
            if self.is_fitting and self.objective is None:
                if self.graph:
                    check_graph(self, type(self).forward_pair is not DistillationModule.forward_pair)
                build_for_training(self)

    def train(self, mode: bool = True) -> "DistillationModule":
        """Switch the student's mode; the teacher stays in evaluation mode, its BatchNorm statistics untouched."""
        super().train(mode)
        for teacher in self.teachers.values():
            teacher.eval()
        return self

    def configure_optimizers(self) -> Any:
        return optimizers(
            trained_groups(self), self.make_optimizer, self.make_lr_scheduler, self.lr_interval, self.trainer
        )

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Those that wait for a metric have been stepped by ``on_train_epoch_end``."""
        if metric is None:
            scheduler.step()

    # ---- what a task overrides ------------------------------------------------------------------------------------

    def build_extractor(self, source: ModelConfig | nn.Module, data: Any, strict: bool = False) -> FeatureExtractor:
        """A teacher or student.

        Args:
            source: how to build it, or a ready model.
            data: the DataModule; its ``mean`` and ``std`` are a model's that has none of its own.
            strict: the classifier must be one of the data's classes.
        """
        mean, std = getattr(data, "mean", None), getattr(data, "std", None)
        if isinstance(source, nn.Module):
            return source if isinstance(source, FeatureExtractor) else FeatureExtractor(source, mean=mean, std=std)
        if self.num_classes is None:
            raise NdkdError("the number of classes is unknown: use a DataModule with num_classes, or give num_classes")
        return source.build(self.num_classes, mean, std, self.class_names, strict)

    def example_batch(self) -> Any:
        """Two blank images and their classes, to learn shapes from."""
        images = torch.zeros(2, *image_shape(self.trainer), dtype=next(self.student.parameters()).dtype)
        return images, torch.zeros(2, dtype=torch.long)

    def build_metrics(self) -> None:
        """What ``update_metrics`` adds to."""
        self.metrics = accuracies(self.student.num_classes)
        self.cross_entropy = MeanMetric(nan_strategy="disable")  # its check for NaN would stop a GPU

    def forward_pair(self, batch: Any, teach: bool = True) -> StepOutput:
        """A batch through the student and, in training, the teacher."""
        images, target = self.read(batch)
        if self.is_compiled:
            torch.compiler.cudagraph_mark_step_begin()  # what the last batch left may be overwritten
        teacher = self.teach(images) if teach else None
        output = self.learn(images, target if teach else hard(target), teacher)
        output.labeled = batch.labeled if isinstance(batch, PartlyLabeled) else None
        return output

    @torch.no_grad()
    def teacher_embeddings(self, batch: Any, name: str = "teacher") -> tuple[Tensor, Tensor]:
        """A teacher's embeddings (N, D) and class indices (N,) of a batch, for the class means."""
        images, target = self.read(batch)
        return self.teachers[name](images).embedding, target

    def update_metrics(self, output: Any) -> None:
        """Add a batch to the metrics of an evaluation."""
        self.metrics.update(output.student.logits, output.target)
        self.cross_entropy.update(F.cross_entropy(output.student.logits.float(), output.target, reduction="none"))

    def compute_metrics(self, stage: str) -> dict[str, Any]:
        """The values of an evaluation over all processes, by name; the next one starts afresh.

        Args:
            stage: ``val`` or ``test``.
        """
        values = {**self.metrics.compute(), "cross_entropy": self.cross_entropy.compute()}
        self.metrics.reset()
        self.cross_entropy.reset()
        return values

    def predict_rows(self, output: Any) -> list[Any]:
        """One row per image for ``ndkd predict``."""
        confidence, predicted = output.student.logits.float().softmax(dim=1).max(dim=1)
        names = self.class_names or [str(number) for number in range(self.student.num_classes)]
        rows = zip(predicted.tolist(), confidence.tolist(), output.target.tolist(), strict=True)
        return [{"prediction": names[p], "confidence": round(c, 6), "target": names[t]} for p, c, t in rows]

    # ---- the parts of a step -----------------------------------------------------------------------------------------

    def read(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Images (N, c, h, w) and labels of a batch as the models want them."""
        images, target = images_and_target(batch, next(self.student.parameters()).dtype, self.student.num_classes)
        return images.to(memory_format=self.memory_format), target

    @torch.no_grad()
    def teach(self, images: Tensor) -> Any:
        """What the teacher says of images, if there is one."""
        return None if self.teacher is None else self.teacher(images)

    def learn(self, images: Tensor, target: Tensor, teacher: Any = None) -> StepOutput:
        """What the student says of images beside the teacher's words."""
        student = self.student(images)
        if self.projector is not None:
            student.projected = self.projector(student.embedding)
        return StepOutput(student, target, teacher, self.class_means)

    # ---- training -------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        if any(means.isnan().any() for means in self.means_by_teacher.values()):
            raise NdkdError("there are no class means: give the trainer callbacks=[ClassMeans()]")
        if self.projector is not None and list(self.projector.parameters()):
            check_last_batch(self.trainer)
        self.graphed_step = GraphedStep(self) if self.graph else None
        if self.make_lr_scheduler is not None and self.trainer.global_step:  # it goes on
            make_scheduler = with_total_steps(self.make_lr_scheduler, self.trainer, self.lr_interval)
            follow_configuration(self.trainer, self.make_optimizer, make_scheduler)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if not self.trainer.predicting:
            check_labels(batch, self.student.num_classes, may_lack=self.trainer.training)
        return batch

    def on_train_epoch_start(self) -> None:
        seed_torch(self.seed, self.current_epoch, self.global_rank)  # dropout and the like: the same after a resume
        self.averages = EpochAverages(list(self.objective.terms), self.device)
        self._lr = self.trainer.optimizers[0].param_groups[0]["lr"]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.graphed_step is not None and (replayed := self.graphed_step(batch)) is not None:
            return replayed
        try:
            output = self.forward_pair(batch)
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                raise NdkdError(SINGLE) from error
            raise
        total, values = self.objective(output, self.current_epoch)
        self.averages.add(values_of(total, list(values.values()), output.teacher))
        return total

    def on_train_epoch_end(self) -> None:
        means = self.averages.means(self.current_epoch, self.trainer.strategy.reduce)
        if not self.trainer.callback_metrics.get("val/cross_entropy", torch.zeros(())).isfinite():
            raise NdkdError(
                f"the student's outputs are not finite after epoch {self.current_epoch}; lower the learning rate"
            )
        logged = {f"train/{name}": mean for name, mean in means.items()}
        self.log_dict(logged, rank_zero_only=True)
        step_plateaus(self.trainer, logged)
        self.log("train/lr", self._lr, rank_zero_only=True)

    # ---- evaluation -----------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        output = self.forward_pair(batch, teach=False)
        self.update_metrics(output)
        return output

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> list[Any]:
        return self.predict_rows(self.forward_pair(batch, teach=False))

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        for name, value in self.compute_metrics(stage).items():
            self.log(f"{stage}/{name}", value, prog_bar=(stage, name) == ("val", self.headline[0]))
