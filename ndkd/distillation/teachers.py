"""The teachers of a module, one or several, and what there is for each of them."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ndkd.distillation.known_taps import add_known_taps
from ndkd.distillation.objective import LossTerm
from ndkd.distillation.step_output import OF_ONE, ONE, StepOutput, asks_for, of_teacher, outputs_of
from ndkd.errors import NdkdError, shortened, suggestion
from ndkd.models.config import ModelConfig
from ndkd.models.ensemble import Ensemble, Projectors
from ndkd.models.features import FeatureExtractor
from ndkd.models.projector import Projector
from ndkd.models.teacher import fold_batchnorm, freeze
from ndkd.seeds import seed_torch


@runtime_checkable
class MakesTeachers(Protocol):
    """A callback that has a say in what a teacher is, and begins with ``build_teacher``."""

    def make_teacher(self, trainer: Any, module: Any, name: str, used: Collection[str]) -> Any: ...


def check_names_of_teachers(teacher: Any, teachers: Any) -> None:
    """Raise ``NdkdError`` unless there is one teacher, or several by names that loss terms can use."""
    if teachers is None:
        return
    if teacher is not None:
        raise NdkdError("there are both teacher and teachers; leave one of them out (teacher: null)")
    if not isinstance(teachers, Mapping) or not teachers:
        raise NdkdError("teachers: wanted one or more by name, {a: {name: …, checkpoint: …}, b: …}")
    taken = {*dir(nn.ModuleDict()), *(field.name for field in fields(StepOutput))}
    for name in teachers:
        if not isinstance(name, str) or not re.fullmatch(r"[^\W\d][\w-]*", name) or name in taken:
            why = "is taken" if name in taken else "is not a word"
            raise NdkdError(f"teachers: {name!r} {why}; name the teacher otherwise, for example a")


def check_teachers(names: Collection[str], terms: Mapping[str, LossTerm]) -> None:
    """Raise ``NdkdError`` if loss terms speak of one teacher where there are several, or of one that there is not.

    Args:
        names: of the teachers.
        terms: that will read them.
    """
    is_alone = ONE in names
    for name, term in terms.items():
        if term.teacher is not None and is_alone:
            raise NdkdError(f"losses.{name}.teacher: there is but one teacher, not {term.teacher}; leave it out")
        if term.teacher is not None and term.teacher not in names:
            hint = suggestion(term.teacher, list(names))
            raise NdkdError(f"losses.{name}.teacher: there is no teacher {term.teacher}; {hint}")
        for source in term.inputs or () if not is_alone else ():
            if source in OF_ONE or source.startswith(f"{ONE}.") and source != f"{ONE}.logits":
                example = of_teacher(source, next(iter(names)))
                raise NdkdError(
                    f"loss {name} reads {source}, and there are several teachers ({', '.join(names)}): set "
                    f"losses.{name}.teacher to one of them, or name it in its inputs ({example})"
                )


def build_teachers(module: Any, used: Collection[str]) -> Any:
    """The teacher that loss terms ask for or, of several, those that they do; None if they ask for none.

    Args:
        module: a ``ndkd.distillation.DistillationModule`` that is being fitted.
        used: the inputs of its loss terms.
    """
    names = [name for name in module.teacher_names if asks_for(name, used)]
    if not names:
        return None
    if names == [ONE]:
        return _made(module, ONE, used)
    if not module.has_embeddings:
        raise NdkdError("several teachers are for classification: a detector has one; set teacher instead of teachers")
    return Ensemble({name: _made(module, name, used) for name in names})


def _made(module: Any, name: str, used: Collection[str]) -> Any:
    callbacks: Sequence[Any] = module.trainer.callbacks
    maker = next((callback for callback in callbacks if isinstance(callback, MakesTeachers)), None)
    return maker.make_teacher(module.trainer, module, name, used) if maker else build_teacher(module, name, used)


def build_teacher(module: Any, name: str, used: Collection[str]) -> FeatureExtractor:
    """One of a module's teachers, frozen and, unless it was given as a ready model, with folded BatchNorm.

    Args:
        module: a ``ndkd.distillation.DistillationModule`` that is being fitted.
        name: of the teacher; of one that is alone ``teacher``.
        used: the inputs of its loss terms.

    Raises:
        NdkdError: no teacher although losses want one, one without weights, or of other classes than the data's.
    """
    source, who = module.sources[name], ONE if name == ONE else f"teacher {name}"
    if source is None:
        wanted = ", ".join(sorted({*used} - {"student.logits", "target"}))
        raise NdkdError(f"the losses want {wanted}, but there is no teacher: set teacher.name, teacher.checkpoint")
    place = ONE if name == ONE else f"teachers.{name}"
    if isinstance(source, ModelConfig) and not (source.brings_weights or ":" in source.name):
        model = source.name if name == ONE else f"{name}, {source.name}"
        raise NdkdError(f"teacher {model} has no weights: set {place}.checkpoint to a file, or pretrained: true")
    # a classifier of other classes will do where only its embedding is asked for
    strict = any(output.startswith(("logits", "extra")) for output in outputs_of(name, used))
    try:
        teacher = module.build_extractor(source, getattr(module.trainer, "datamodule", None), strict)
    except NdkdError as error:
        if name == ONE:
            raise
        raise NdkdError(f"{who}: {error}") from error
    _check_apart(teacher, module.student, who)
    freeze(teacher)
    add_known_taps(module, name, teacher, used)
    if isinstance(source, ModelConfig):  # a ready model is its owner's
        fold_batchnorm(teacher.model)
    seed_torch(module.seed)  # the projector and layers of losses start the same, whatever the teacher has drawn
    return teacher


def projector_of(module: Any, used: Collection[str]) -> nn.Module | None:
    """What takes the student's embedding to the width of its teacher or, of several, of each that is compared with it.

    Args:
        module: with student and teachers.
        used: the inputs of its loss terms.
    """
    widths = _asked(module, "student.projected", used)
    student_width = module.student.embedding_dim
    if ONE not in module.teachers:
        return Projectors(student_width, widths, module.projector_std) if widths else None
    differs = widths and widths[ONE] != student_width
    return Projector(student_width, widths[ONE], module.projector_std) if differs else None


def empty_class_means(module: Any, used: Collection[str]) -> Any:
    """Class means (C, D) of the teacher, or of several by their names, for the callback ``ClassMeans`` to fill.

    Args:
        module: with student and teachers.
        used: the inputs of its loss terms.
    """
    widths = _asked(module, "class_means", used)
    number = module.student.num_classes
    empty = {name: torch.full((number, width), float("nan")) for name, width in widths.items()}
    return empty.get(ONE, empty or None)


def _asked(module: Any, source: str, used: Collection[str]) -> dict[str, int]:
    """The widths of the teachers' embeddings of which loss terms ask for something."""
    return {n: each.embedding_dim for n, each in module.teachers.items() if of_teacher(source, n) in used}


def _check_apart(teacher: nn.Module, student: nn.Module, who: str) -> None:
    """Raise ``NdkdError`` if a teacher cannot be frozen without the student, or has weights that are no numbers."""
    own = {id(tensor): name for name, tensor in (*student.named_parameters(), *student.named_buffers())}
    tensors = [*teacher.named_parameters(), *teacher.named_buffers()]
    if shared := [own[id(tensor)].removeprefix("model.") for _, tensor in tensors if id(tensor) in own]:
        raise NdkdError(
            f"{who} and student share {shortened(shared)}: the teacher is frozen, and the student would be with it; "
            "give a copy, copy.deepcopy(teacher)"
        )
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.isfinite().all():
            layer = name.removeprefix("model.")
            raise NdkdError(f"{who}: not all numbers in {layer} are finite; is its checkpoint damaged?")
