"""A distillation method is a weighted sum of loss terms over named outputs of a frozen teacher and a student."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from math import inf
from operator import attrgetter
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from ndkd.errors import NdkdError
from ndkd.models.checkpoint import check_keys
from ndkd.models.config import ModelConfig
from ndkd.models.features import FeatureExtractor
from ndkd.models.layers import draw_linear_layers
from ndkd.models.output import ModelOutput
from ndkd.models.projector import Projector
from ndkd.models.teacher import fold_batchnorm, freeze
from ndkd.rehearsal import rehearsed
from ndkd.runs import differences
from ndkd.seeds import run_seed, seed_torch

FORMAT = 1  # of the hyper-parameters inside a checkpoint
TRAINING_ONLY = ("teacher.", "projector.", "loss_modules.", "class_means")


@dataclass
class LossTerm:
    """One summand of the objective; the only place that knows weight and warm-up.

    Args:
        loss: a loss of ``ndkd.losses`` or of ``torch.nn``.
        weight: factor; a term of weight 0 is left out.
        warmup_epochs: the factor grows as min(1, epoch / warmup_epochs).
        inputs: names of outputs, such as ``student.logits`` or ``target``; by default ``loss.inputs``.
        warmup_from: the number of the first epoch, 0 or, as some recipes count, 1.
    """

    loss: nn.Module
    weight: float = 1.0
    warmup_epochs: int = 0
    inputs: list[str] | None = None
    warmup_from: int = 0

    def __post_init__(self):
        for name in ("warmup_epochs", "warmup_from"):
            if getattr(self, name) is None or getattr(self, name) < 0:
                raise NdkdError(f"{name}: wanted 0 or more, got {getattr(self, name)}")
        if self.weight is None or not 0 <= self.weight < inf:
            raise NdkdError(f"weight: wanted a number from 0 on, got {self.weight}; 0 leaves the term out")
        if not isinstance(self.loss, nn.Module):
            raise NdkdError(f"loss: wanted a loss of ndkd.losses or of torch.nn, got {self.loss}")
        if self.inputs is not None and not self.inputs:
            raise NdkdError("inputs: wanted the names of what the loss reads, got none; leave it out for its own")

    def factor(self, epoch: int) -> float:
        """The weight in an epoch, the first being epoch 0."""
        if not self.warmup_epochs:
            return self.weight
        return self.weight * min(1.0, (epoch + self.warmup_from) / self.warmup_epochs)


@dataclass
class StepOutput:
    """What loss terms can name: ``student.…``, ``teacher.…``, ``class_means``, ``target``."""

    student: ModelOutput
    target: Tensor
    teacher: ModelOutput | None = None
    class_means: Tensor | None = None


class DistillationModule(L.LightningModule):
    """Train a student on any sum of loss terms; no method has a class of its own.

    Everything is built once, in :meth:`configure_model`: the student first and from the seed alone, so that every
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
        channels_last: memory layout of images and convolutions; faster, but a model that calls ``view`` fails on it.
        num_classes: number of classes, where the data does not tell.
        class_names: their names, where the data does not tell.
    """

    headline = "acc1", "accuracy"  # the metric by which the best epoch is chosen, and its name in words
    absent_classes = False  # whether a class may have no sample to take a mean of
    has_embeddings = True  # whether an evaluation gives one embedding per image

    def __init__(
        self,
        student: ModelConfig | nn.Module,
        losses: dict[str, LossTerm] | None = None,
        teacher: ModelConfig | nn.Module | None = None,
        optimizer: OptimizerCallable = torch.optim.SGD,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        decay: Literal["all", "matrices", "recommended"] = "all",
        projector_std: float | None = None,
        linear_std: float | None = None,
        channels_last: bool = True,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
    ):
        super().__init__()
        for name, std in {"projector_std": projector_std, "linear_std": linear_std}.items():
            if std is not None and not 0 <= std < inf:
                raise NdkdError(f"{name}: wanted a standard deviation, got {std}")
        # in a dictionary, so that a ready model is not registered a second time
        sources = {"student": student, "teacher": teacher}
        self.sources = {n: ModelConfig(**s) if isinstance(s, dict) else s for n, s in sources.items()}
        check_names(losses or {})
        if num_classes is not None and num_classes < 2:
            raise NdkdError(f"num_classes: wanted at least 2, got {num_classes}")
        self.losses = {name: term for name, term in (losses or {}).items() if term.weight != 0}
        self.make_optimizer, self.make_lr_scheduler, self.lr_interval = optimizer, lr_scheduler, lr_interval
        self.decay, self.projector_std, self.linear_std = decay, projector_std, linear_std
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.student: FeatureExtractor | None = None
        self.teacher: FeatureExtractor | None = None
        self.projector: nn.Module | None = None
        self.loss_modules: nn.ModuleDict | None = None
        self.is_compiled = False
        self.register_buffer("class_means", None)
        self.hparams.update(format=FORMAT, num_classes=num_classes, class_names=class_names)
        self.register_state_dict_post_hook(_drop_teacher)
        self.register_load_state_dict_post_hook(_forgive_teacher)

    # ---- building -------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build student, teacher, projector and losses, and check that every input of every term is provided."""
        fitting = self._trainer is not None and self.trainer.state.fn == "fit"
        with torch.device("cpu"):  # on a GPU the same seed would draw another student
            if self.student is None:
                self._build_student()
            if fitting and self.loss_modules is None:
                self._build_for_training()

    def _build_student(self) -> None:
        data = getattr(self._trainer, "datamodule", None)
        if (number := getattr(data, "num_classes", None)) is not None:
            self.hparams["num_classes"] = int(number)
        if (names := getattr(data, "class_names", None)) is not None:
            self.hparams["class_names"] = [str(name) for name in names]
        self.seed, source = run_seed(), self.sources["student"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.student = self._extractor(source, data).to(memory_format=self.memory_format)
            if self.linear_std is not None and isinstance(source, ModelConfig) and not source.brings_weights:
                draw_linear_layers(self.student, self.linear_std)
        self.hparams["num_classes"] = self.student.num_classes
        if isinstance(source, ModelConfig):
            self.hparams["student"] = _portable(source, self.student)
        if self.student.num_classes < 2:
            raise NdkdError(
                f"the data has {self.student.num_classes} class, wanted at least 2: with one alone any answer is right"
            )
        self._build_metrics()

    def _build_metrics(self) -> None:
        options = {"num_classes": self.student.num_classes, "average": "micro", "validate_args": False}
        ranks = (1, 5) if self.student.num_classes > 5 else (1,)
        self.metrics = MetricCollection({f"acc{k}": MulticlassAccuracy(top_k=k, **options) for k in ranks})
        self.cross_entropy = MeanMetric(nan_strategy="disable")  # its check for NaN would stop a GPU

    def _build_for_training(self) -> None:
        if not self.losses:
            raise NdkdError("no loss has a weight other than 0; give at least one term under losses")
        for name, term in self.losses.items():
            term.inputs = term.inputs or list(getattr(term.loss, "inputs", ()))
            if not term.inputs:
                kind = type(term.loss).__name__
                raise NdkdError(f"loss {name}: {kind} does not say its inputs; set losses.{name}.inputs")
        used = {source for term in self.losses.values() for source in term.inputs}
        if not any(source.startswith("student.") for source in used):
            raise NdkdError("no loss reads anything of the student, such as student.logits; it could not learn")
        if asks_for_teacher(used):
            self._build_teacher(used)
        dry = self._dry_forward()
        if dry.class_means is not None:
            dry.class_means = torch.ones_like(dry.class_means)
        for name, term in self.losses.items():
            check_inputs(name, term, dry)
            try:
                if hasattr(term.loss, "build"):
                    term.loss.build(dry.student, dry.teacher)
                with torch.no_grad():  # what does not fit is found before the run begins
                    value = term.loss.eval()(*inputs_of(term, dry))
                if not isinstance(value, Tensor) or value.ndim:
                    found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    raise ValueError(f"wanted one number for a batch, got {found}; is its reduction mean or sum?")
            except (ValueError, TypeError, RuntimeError) as error:
                raise NdkdError(f"loss {name}: {error}") from error
            term.loss.train()
        self.loss_modules = nn.ModuleDict({name: term.loss for name, term in self.losses.items()})
        self._compile()
        # equal on every rank: neither in DDP's buckets nor broadcast every step
        names = [name for name, _ in (*self.named_parameters(), *self.named_buffers())]
        constant = [name for name in names if name.startswith(("teacher.", "class_means"))]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, constant)

    def _build_teacher(self, used: set[str]) -> None:
        source = self.sources["teacher"]
        if source is None:
            wanted = ", ".join(sorted(used - {"student.logits", "target"}))
            raise NdkdError(f"the losses want {wanted}, but there is no teacher: set teacher.name, teacher.checkpoint")
        if isinstance(source, ModelConfig) and not (source.brings_weights or ":" in source.name):
            raise NdkdError(
                f"teacher {source.name} has no weights: set teacher.checkpoint to a file, or pretrained: true"
            )
        # a classifier of other classes will do where only its embedding is asked for
        strict = any(name.startswith(("teacher.logits", "teacher.extra")) for name in used)
        teacher = self._extractor(source, getattr(self.trainer, "datamodule", None), strict)
        freeze(teacher)
        if isinstance(source, ModelConfig):  # a ready model is its owner's
            fold_batchnorm(teacher.model)
        self.teacher = teacher.to(memory_format=self.memory_format)
        if "student.projected" in used and self.student.embedding_dim != self.teacher.embedding_dim:
            self.projector = Projector(self.student.embedding_dim, self.teacher.embedding_dim, self.projector_std)
        if "class_means" in used:
            shape = (self.hparams["num_classes"], self.teacher.embedding_dim)
            self.class_means = torch.full(shape, float("nan"))  # the ClassMeans callback fills them

    def _compile(self) -> None:
        """After the dry forward, which would be compiled for its own batch size and device."""
        for name, model in (("student", self.student), ("teacher", self.teacher)):
            source = self.sources[name]
            if model is not None and isinstance(source, ModelConfig) and source.compile:
                from torch._inductor import list_mode_options

                # weights that never change can be laid out for the kernels
                options = {**list_mode_options(source.compile), "freezing": name == "teacher"}
                model.compile(dynamic=False, options=options)
                self.is_compiled = True

    def _extractor(self, source: ModelConfig | nn.Module, data: Any, strict: bool = False) -> FeatureExtractor:
        mean, std = getattr(data, "mean", None), getattr(data, "std", None)
        if isinstance(source, nn.Module):
            return source if isinstance(source, FeatureExtractor) else FeatureExtractor(source, mean=mean, std=std)
        if self.hparams["num_classes"] is None:
            raise NdkdError("the number of classes is unknown: use a DataModule with num_classes, or give num_classes")
        return source.build(self.hparams["num_classes"], mean, std, self.hparams["class_names"], strict)

    def _dry_forward(self) -> StepOutput:
        """Run two blank images through both models, in evaluation mode, to learn shapes and what is on offer."""
        batch = self._dry_batch()
        was_training = self.training
        self.cpu().eval()
        try:
            with torch.no_grad():
                return self.forward_pair(batch)
        except (RuntimeError, AssertionError) as error:
            if "view size" in str(error):
                raise NdkdError("a model cannot work on channels-last images: set channels_last: false") from error
            size = " × ".join(map(str, batch[0][0].shape))
            raise NdkdError(f"a model does not accept images of {size}: {error}") from error
        finally:
            self.train(was_training)

    def _dry_batch(self) -> Any:
        shape = getattr(self.trainer.datamodule, "image_shape", None)
        if shape is None:
            loader = self.trainer.fit_loop._data_source.dataloader()
            images = next(iter(loader))[0]
            if not isinstance(images, Tensor):
                raise NdkdError("a classifier wants images of one size; detectors are a DetectionDistillationModule's")
            shape = images.shape[1:]
        images = torch.zeros(2, *shape, dtype=next(self.student.parameters()).dtype)
        return images, torch.zeros(2, dtype=torch.long)

    def train(self, mode: bool = True) -> "DistillationModule":
        """Switch the student's mode; the teacher stays in evaluation mode, its BatchNorm statistics untouched."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def configure_optimizers(self) -> Any:
        make_scheduler = self._lr_scheduler if self.make_lr_scheduler else None
        optimizer, scheduler = rehearsed(
            self.make_optimizer, self._parameter_groups(), make_scheduler, self.trainer.max_epochs
        )
        if scheduler is None:
            return optimizer
        monitor = getattr(scheduler, "monitor", None)  # of Lightning's ReduceLROnPlateau
        schedule = {"scheduler": scheduler, "interval": self.lr_interval, "monitor": monitor}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _parameter_groups(self) -> list[Any]:
        trained = [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]
        if self.decay == "all":
            return [parameter for _, parameter in trained]
        exempt = getattr(self.student.model, "no_weight_decay", set)  # timm's word
        own = exempt() if self.decay == "recommended" else ()
        spared = {name for name, parameter in trained if parameter.ndim < 2 or name[len("student.model.") :] in own}
        decayed, others = ([p for name, p in trained if (name in spared) == is_spared] for is_spared in (False, True))
        return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]

    def _lr_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        options = getattr(self.make_lr_scheduler, "keywords", {})  # of the configuration
        if "total_steps" not in options or options["total_steps"] is not None:
            return self.make_lr_scheduler(optimizer)
        in_steps = self.lr_interval == "step"
        total = self.trainer.estimated_stepping_batches if in_steps else self.trainer.max_epochs
        if 0 in (self.trainer.limit_train_batches, self.trainer.num_training_batches):
            raise NdkdError("no epoch was trained: there was no batch of training images")
        if not 1 <= total < inf:
            raise NdkdError("lr_scheduler: it must know how long the training is: set trainer.max_epochs or max_steps")
        return self.make_lr_scheduler(optimizer, total_steps=total)

    # ---- what a task overrides ------------------------------------------------------------------------------------

    def forward_pair(self, batch: tuple[Tensor, Tensor], teach: bool = True) -> StepOutput:
        """A batch through the student and, in training, the teacher."""
        images, target = self._floats(batch[0]), batch[1]
        if self.is_compiled:
            torch.compiler.cudagraph_mark_step_begin()  # what the last batch left may be overwritten
        student = self.student(images)
        if self.projector is not None:
            student.projected = self.projector(student.embedding)
        teacher = None
        if teach and self.teacher is not None:
            with torch.no_grad():
                teacher = self.teacher(images)
        return StepOutput(student, target, teacher, self.class_means)

    @torch.no_grad()
    def teacher_embeddings(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The teacher's embeddings (N, D) and class indices (N,) of a batch, for the class means."""
        return self.teacher(self._floats(batch[0])).embedding, batch[1]

    def _floats(self, images: Tensor) -> Tensor:
        """Images in [0, 1], in the models' memory format; bytes are a quarter of what has to be moved."""
        if images.dtype == torch.uint8:
            images = images.to(self.dtype).div_(255)
        return images.to(memory_format=self.memory_format)

    def update_metrics(self, output: StepOutput) -> None:
        """Add a batch to the metrics of an evaluation."""
        self.metrics.update(output.student.logits, output.target)
        self.cross_entropy.update(F.cross_entropy(output.student.logits.float(), output.target, reduction="none"))

    def predict_rows(self, output: StepOutput) -> list[dict[str, Any]]:
        """One row per image for ``ndkd predict``."""
        confidence, predicted = output.student.logits.float().softmax(dim=1).max(dim=1)
        names = self.hparams["class_names"] or [str(number) for number in range(self.hparams["num_classes"])]
        rows = zip(predicted.tolist(), confidence.tolist(), output.target.tolist(), strict=True)
        return [{"prediction": names[p], "confidence": round(c, 6), "target": names[t]} for p, c, t in rows]

    # ---- training -------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        if self.class_means is not None and self.class_means.isnan().any():
            raise NdkdError("there are no class means: give the trainer callbacks=[ClassMeans()]")

    def on_train_epoch_start(self) -> None:
        seed_torch(self.seed, self.current_epoch, self.global_rank)  # dropout and the like: the same after a resume
        self._loss_sums = torch.zeros(len(self.losses) + 1, device=self.device)
        self._finite_steps = torch.zeros_like(self._loss_sums)
        self._steps = 0
        self._lr = self.trainer.optimizers[0].param_groups[0]["lr"]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        output = self.forward_pair(batch)
        values = [self._value(name, term, output) for name, term in self.losses.items()]
        factors = [term.factor(self.current_epoch) for term in self.losses.values()]
        total = sum(factor * value for factor, value in zip(factors, values, strict=True))
        # summed on the device and read once an epoch: logging every step costs more than a GPU's step
        self._loss_sums += torch.stack([total, *values]).detach()
        self._finite_steps += self._loss_sums.isfinite()
        self._steps += 1
        return total

    def _value(self, name: str, term: LossTerm, output: StepOutput) -> Tensor:
        try:
            return term.loss(*inputs_of(term, output))
        except ValueError as error:
            raise NdkdError(f"loss {name}: {error}") from error

    def on_train_epoch_end(self) -> None:
        sums = torch.stack([self._loss_sums, self._finite_steps]) / max(1, self._steps)
        means, finite_share = self.trainer.strategy.reduce(sums, reduce_op="mean").tolist()
        names = ["loss", *self.losses]
        self._check_finite(names, means, finite_share)
        if not self.trainer.callback_metrics.get("val/cross_entropy", torch.zeros(())).isfinite():
            raise NdkdError(
                f"the student's outputs are not finite after epoch {self.current_epoch}; lower the learning rate"
            )
        self.log_dict({f"train/{name}": mean for name, mean in zip(names, means, strict=True)}, rank_zero_only=True)
        self.log("train/lr", self._lr, rank_zero_only=True)

    def _check_finite(self, names: list[str], means: list[float], finite_share: list[float]) -> None:
        """Raise ``NdkdError`` naming the term that was the first not to be a finite number; it spoils the others."""
        first = min(range(len(names)), key=lambda k: (finite_share[k], k == 0))  # the total is no term
        if finite_share[first] < 1:
            epoch = self.current_epoch
            kept = f"the last checkpoint is of epoch {epoch - 1}" if epoch else "there is no checkpoint yet"
            raise NdkdError(
                f"loss {names[first]} became {means[first]} in epoch {epoch}, {kept}; "
                "lower the learning rate or its weight"
            )

    # ---- evaluation -----------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> StepOutput:
        output = self.forward_pair(batch, teach=False)
        self.update_metrics(output)
        return output

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, Any]]:
        return self.predict_rows(self.forward_pair(batch, teach=False))

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        values = {**self.metrics.compute(), "cross_entropy": self.cross_entropy.compute()}
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=(stage, name) == ("val", "acc1"))
        self.metrics.reset()
        self.cross_entropy.reset()

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what this stage has built, and say where the configuration differs from the checkpoint's."""
        stored = checkpoint.get("hyper_parameters", {})
        changed = differences(self.hparams, stored) if self.global_rank == 0 else {}
        for name, (value, before) in changed.items():
            print(f"ndkd: {name} is {value} in the configuration, {before} in the checkpoint")
        if self.class_means is None and "class_means" in checkpoint["state_dict"]:
            self.class_means = torch.empty_like(checkpoint["state_dict"]["class_means"])
        own = self.state_dict()
        kept = {k: v for k, v in checkpoint["state_dict"].items() if k in own or not k.startswith(TRAINING_ONLY)}
        check_keys(own, kept, "the checkpoint")
        checkpoint["state_dict"] = kept


def asks_for_teacher(inputs: Iterable[str]) -> bool:
    """Whether a teacher is wanted for these inputs of loss terms."""
    return any(name.startswith("teacher.") or name in ("class_means", "student.projected") for name in inputs)


def inputs_of(term: LossTerm, output: StepOutput) -> list[Any]:
    """The outputs that a term names."""
    return [attrgetter(source)(output) for source in term.inputs]


def check_inputs(name: str, term: LossTerm, output: StepOutput) -> None:
    """Raise ``NdkdError`` if a term asks for something that the step does not provide."""
    on_offer = _on_offer(output)
    for source in term.inputs:
        if source not in on_offer:
            hint = f"; set taps of the {source.split('.')[0]}" if source.endswith("feature_maps") else ""
            raise NdkdError(f"loss {name}: nothing provides {source!r}{hint}; on offer: {', '.join(on_offer)}")


def check_names(names: Iterable[str]) -> None:
    """Raise ``NdkdError`` unless all names can be those of loss terms: of modules, of options and of columns."""
    taken = {*dir(nn.ModuleDict()), "loss", "lr"}  # train/loss is the sum of all terms
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[^\W\d][\w+-]*", name) or name in taken:
            why = "is taken" if name in taken else "is no word"
            raise NdkdError(f"losses: {name!r} {why}; name the term otherwise, for example kd")


def _on_offer(output: StepOutput) -> list[str]:
    names = []
    for part in fields(output):
        value = getattr(output, part.name)
        if isinstance(value, ModelOutput):
            there = [name for name in vars(value) if name != "extra" and (name != "feature_maps" or value.feature_maps)]
            names += [f"{part.name}.{name}" for name in (*there, *(f"extra.{name}" for name in vars(value.extra)))]
        elif value is not None:
            names.append(part.name)
    return names


def _portable(config: ModelConfig, built: FeatureExtractor) -> dict[str, Any]:
    """Primitives from which the model is built again without any other file."""
    buffers = built.mean, built.std
    mean, std = (None if b is None else [round(v, 6) for v in b.flatten().tolist()] for b in buffers)
    config = replace(config, checkpoint=None, pretrained=False, compile=None)
    return asdict(replace(config, classifier=built.classifier, mean=mean, std=std))


def _drop_teacher(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, metadata: dict) -> None:
    for key in [key for key in state_dict if key.startswith(f"{prefix}teacher.")]:
        del state_dict[key]


def _forgive_teacher(module: nn.Module, keys: Any) -> None:
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.startswith("teacher.")]
