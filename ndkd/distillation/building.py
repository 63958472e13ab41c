"""How a module's parts come together before the first step."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ndkd.data.base import HasUnlabeled
from ndkd.distillation.objective import Objective, StepOutput, asks_for_teacher
from ndkd.errors import NdkdError, shortened
from ndkd.models.config import ModelConfig
from ndkd.models.features import FeatureExtractor
from ndkd.models.projector import Projector
from ndkd.models.taps import known_taps
from ndkd.models.teacher import fold_batchnorm, freeze
from ndkd.seeds import seed_torch


def build_for_training(module: Any) -> None:
    """Give a module that has a student its teacher, projector and objective, as far as its loss terms ask for them."""
    objective = Objective(module.losses)
    check_unlabeled(objective, module.trainer.datamodule)
    add_known_taps(module, "student", module.student, objective.inputs)
    if asks_for_teacher(objective.inputs):
        module.teacher = _teacher(module, objective.inputs).to(memory_format=module.memory_format)
        widths = module.student.embedding_dim, module.teacher.embedding_dim
        if "student.projected" in objective.inputs and widths[0] != widths[1]:
            module.projector = Projector(*widths, module.projector_std)
        if "class_means" in objective.inputs:  # the ClassMeans callback fills them
            module.class_means = torch.full((module.student.num_classes, widths[1]), float("nan"))
    objective.build(dry_forward(module), class_counts(module.trainer))
    module.objective = objective
    for name, model in (("student", module.student), ("teacher", module.teacher)):
        mode = getattr(module.sources[name], "compile", None)
        if model is not None and isinstance(mode, str):  # a ready model's is a method
            compile_model(model, mode, is_frozen=name == "teacher")
            module.is_compiled = True


def check_unlabeled(objective: Objective, data: Any) -> None:
    """Raise ``NdkdError`` if images without labels would be read for nothing."""
    if isinstance(data, HasUnlabeled) and data.unlabeled_size and not objective.uses_unlabeled:
        raise NdkdError(
            f"the {data.unlabeled_size:,} images without labels would be read for nothing: each loss term "
            f"({', '.join(objective.terms)}) reads target; add a term that compares with a teacher, such as KDLoss, "
            "give one pseudo_labels, or leave data.init_args.unlabeled out"
        )


@runtime_checkable
class MakesTeachers(Protocol):
    """A callback that has a say in what the teacher is, and begins with ``build_teacher``."""

    def make_teacher(self, trainer: Any, module: Any, used: Collection[str]) -> Any: ...


def _teacher(module: Any, used: Collection[str]) -> Any:
    callbacks: Sequence[Any] = module.trainer.callbacks
    maker = next((callback for callback in callbacks if isinstance(callback, MakesTeachers)), None)
    return maker.make_teacher(module.trainer, module, used) if maker else build_teacher(module, used)


def build_teacher(module: Any, used: Collection[str]) -> FeatureExtractor:
    """The module's teacher, frozen and, unless it was given as a ready model, with folded BatchNorm.

    Args:
        module: a ``ndkd.distillation.DistillationModule`` that is being fitted.
        used: the inputs of its loss terms.

    Raises:
        NdkdError: no teacher although losses want one, one without weights, or of other classes than the data's.
    """
    source = module.sources["teacher"]
    if source is None:
        wanted = ", ".join(sorted({*used} - {"student.logits", "target"}))
        raise NdkdError(f"the losses want {wanted}, but there is no teacher: set teacher.name, teacher.checkpoint")
    if isinstance(source, ModelConfig) and not (source.brings_weights or ":" in source.name):
        raise NdkdError(f"teacher {source.name} has no weights: set teacher.checkpoint to a file, or pretrained: true")
    # a classifier of other classes will do where only its embedding is asked for
    strict = any(name.startswith(("teacher.logits", "teacher.extra")) for name in used)
    teacher = module.build_extractor(source, getattr(module.trainer, "datamodule", None), strict)
    _check_apart(teacher, module.student)
    freeze(teacher)
    add_known_taps(module, "teacher", teacher, used)
    if isinstance(source, ModelConfig):  # a ready model is its owner's
        fold_batchnorm(teacher.model)
    seed_torch(module.seed)  # the projector and layers of losses start the same, whatever the teacher has drawn
    return teacher


def _check_apart(teacher: nn.Module, student: nn.Module) -> None:
    """Raise ``NdkdError`` if a teacher cannot be frozen without the student, or has weights that are no numbers."""
    own = {id(tensor): name for name, tensor in (*student.named_parameters(), *student.named_buffers())}
    tensors = [*teacher.named_parameters(), *teacher.named_buffers()]
    if shared := [own[id(tensor)].removeprefix("model.") for _, tensor in tensors if id(tensor) in own]:
        raise NdkdError(
            f"teacher and student share {shortened(shared)}: the teacher is frozen, and the student would be with it; "
            "give a copy, copy.deepcopy(teacher)"
        )
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.isfinite().all():
            layer = name.removeprefix("model.")
            raise NdkdError(f"teacher: not all numbers in {layer} are finite; is its checkpoint damaged?")


def add_known_taps(module: Any, role: str, model: FeatureExtractor, used: Collection[str]) -> None:
    """Where loss terms ask for a model's feature maps and nobody has named its taps, those of its family, if known.

    Raises:
        NdkdError: they are not; it says how to name them.
    """
    if f"{role}.feature_maps" not in used or model.taps or not module.needs_taps:
        return
    source = module.sources[role]
    name = source.name if isinstance(source, ModelConfig) else type(model.model).__name__
    taps = known_taps(name, model.model)
    if not taps:
        ready = f"FeatureExtractor({role}, taps=[LAYER, …])"
        how = f"model.init_args.{role}.taps: [LAYER, …]" if isinstance(source, ModelConfig) else ready
        layers = shortened([layer for layer, _ in model.model.named_children()], most=6)
        raise NdkdError(
            f"the losses want {role}.feature_maps, and the taps of {name} are not known: name them, shallow to deep, "
            f"with {how}; its layers are {layers}"
        )
    model.add_taps(taps)


def compile_model(model: nn.Module, mode: str, is_frozen: bool) -> None:
    """Compile a model in place; after the dry forward, which would be compiled for its own batch size and device."""
    from torch._inductor import list_mode_options

    # weights that never change can be laid out for the kernels
    model.compile(dynamic=False, options={**list_mode_options(mode), "freezing": is_frozen})


def dry_forward(module: Any) -> StepOutput:
    """Run an example batch through both models, in evaluation mode, to learn shapes and what is on offer.

    Raises:
        NdkdError: a model that does not accept such images.
    """
    batch = module.example_batch()
    was_training = module.training
    module.cpu().eval()
    try:
        with torch.no_grad():
            return module.forward_pair(batch)
    except (RuntimeError, AssertionError) as error:
        if "view size" in str(error):
            raise NdkdError("a model cannot work on channels-last images: set channels_last: false") from error
        size = " × ".join(map(str, batch[0][0].shape)) if isinstance(batch, tuple) else "this size"
        raise NdkdError(f"a model does not accept images of {size}: {error}") from error
    finally:
        module.train(was_training)


def class_counts(trainer: Any) -> Sequence[int] | None:
    """The training images of each class, where the DataModule tells them."""
    counts: Mapping[str, Sequence[int]] = getattr(trainer.datamodule, "class_counts", {})
    return counts.get("train")


def training_loader(trainer: Any) -> Any:
    """The training images as they come, of a DataModule or of a loader that the trainer was given."""
    return trainer.fit_loop._data_source.dataloader()


def image_shape(trainer: Any) -> Sequence[int]:
    """(c, h, w) of the images to train on, told by the DataModule or seen in a batch.

    Raises:
        NdkdError: images of several sizes.
    """
    shape = getattr(trainer.datamodule, "image_shape", None)
    if shape is None:
        batch = next(iter(training_loader(trainer)), None)
        if batch is None:
            raise NdkdError("no epoch was trained: there was no batch of training images")
        if not isinstance(batch, list | tuple):
            raise NdkdError(f"wanted batches (images, targets), got a {type(batch).__name__}")
        if not isinstance(batch[0], Tensor):
            raise NdkdError("a classifier wants images of one size; detectors are a DetectionDistillationModule's")
        shape = batch[0].shape[1:]
    return shape
