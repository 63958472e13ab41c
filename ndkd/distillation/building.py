"""How a module's parts come together before the first step."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from ndkd.data.base import HasUnlabeled
from ndkd.distillation.checkpoint import portable
from ndkd.distillation.cuda_graph import graph_forward
from ndkd.distillation.known_taps import add_known_taps
from ndkd.distillation.objective import Objective
from ndkd.distillation.recorded_teacher import RecordedTeacher
from ndkd.distillation.step_output import StepOutput
from ndkd.distillation.teachers import build_teachers, check_teachers, empty_class_means, projector_of
from ndkd.errors import NdkdError
from ndkd.models.config import ModelConfig
from ndkd.models.layers import draw_linear_layers
from ndkd.seeds import run_seed


def build_student(module: Any) -> None:
    """The student from the seed alone, so that every method starts from the same one."""
    data = getattr(module._trainer, "datamodule", None)
    if (number := getattr(data, "num_classes", None)) is not None:
        module.hparams["num_classes"] = int(number)
    if (names := getattr(data, "class_names", None)) is not None:
        module.hparams["class_names"] = [str(name) for name in names]
    module.seed, source = run_seed(), module.sources["student"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(module.seed)
        module.student = module.build_extractor(source, data).to(memory_format=module.memory_format)
        if module.linear_std is not None and isinstance(source, ModelConfig) and not source.brings_weights:
            draw_linear_layers(module.student, module.linear_std)
    module.hparams["num_classes"] = module.student.num_classes
    if isinstance(source, ModelConfig):
        module.hparams["student"] = portable(source, module.student)
    if module.student.num_classes < 2:
        raise NdkdError(
            f"the data has {module.student.num_classes} class, wanted at least 2: with one alone any answer is right"
        )
    module.build_metrics()


def build_for_training(module: Any) -> None:
    """Give a module that has a student teachers, projector and objective, as far as its loss terms ask for them."""
    objective = Objective(module.losses)
    check_unlabeled(objective, module.trainer.datamodule, rank_zero_only(print))
    check_teachers(module.teacher_names, objective.terms)
    add_known_taps(module, "student", module.student, objective.inputs)
    if (teacher := build_teachers(module, objective.inputs)) is not None:
        module.teacher = teacher.to(memory_format=module.memory_format)
        module.projector = projector_of(module, objective.inputs)
        module.class_means = empty_class_means(module, objective.inputs)
    objective.build(dry_forward(module), class_counts(module.trainer))
    module.objective = objective
    for name, model in {"student": module.student, **module.teachers}.items():
        mode = getattr(module.sources[name], "compile", None)
        if isinstance(mode, str):  # a ready model's is a method
            prepare(model, partial(compile_model, mode=mode, is_frozen=name != "student"))
            module.is_compiled = True
        if module.graph:
            prepare(model, graph_forward)


def prepare(model: Any, change: Callable[[Any], None]) -> None:
    """Change a model, and a recorded teacher's as soon as it is built."""
    model.prepare(change) if isinstance(model, RecordedTeacher) else change(model)


def check_unlabeled(objective: Objective, data: Any, say: Callable[[str], None]) -> None:
    """Raise ``NdkdError`` if images without labels would be read for nothing; a line where terms wait for some."""
    has_some = isinstance(data, HasUnlabeled) and data.unlabeled_size
    if waiting := [name for name, term in objective.terms.items() if term.pseudo_labels is not None and not has_some]:
        say(f"ndkd: pseudo_labels of {', '.join(waiting)} have no effect: all images have labels")
    if has_some and not objective.uses_unlabeled:
        raise NdkdError(
            f"the {data.unlabeled_size:,} images without labels would be read for nothing: each loss term "
            f"({', '.join(objective.terms)}) reads target; add a term that compares with a teacher, such as KDLoss, "
            "give one pseudo_labels, or leave data.init_args.unlabeled out"
        )


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
