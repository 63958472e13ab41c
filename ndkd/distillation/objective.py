"""The objective: a weighted sum of loss terms over named outputs of a frozen teacher and a student."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import inf
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from ndkd.distillation.class_weights import ClassWeights, check_class_weights, class_weights, set_class_weights
from ndkd.distillation.labels import (
    Values,
    check_is_a_mean,
    check_is_for_labels,
    check_pseudo_labels,
    mean_with_pseudo_labels,
    of_labeled,
    value_of,
)
from ndkd.distillation.shares import check_shares, check_weight
from ndkd.distillation.step_output import ONE, StepOutput, of_each, of_teacher
from ndkd.errors import NdkdError
from ndkd.models.output import EnsembleOutput


@dataclass
class LossTerm:
    """One summand of the objective; the only place that knows weight and warm-up.

    Args:
        loss: a loss of ``ndkd.losses`` or of ``torch.nn``.
        weight: factor; a term of weight 0 is left out. ``{"auto": 0.2}`` leaves the number to be set before the first
            step, by ``ndkd.callbacks.AutoWeights``: the weight times the norm of the term's gradient is then this share
            of the sum over all terms.
        warmup_epochs: the factor grows as min(1, epoch / warmup_epochs).
        inputs: names of outputs, such as ``student.logits`` or ``target``; by default ``loss.inputs``.
        warmup_from: the number of the first epoch, 0 or, as some recipes count, 1.
        class_weights: how much each class counts, for a loss with a ``weight`` per class such as cross-entropy: a list
            in the order of the classes, or ``balanced``, to make up for unequal numbers of training images.
        pseudo_labels: confidence, above 0 and at most 1, from which on the teacher's likeliest class is the label of an
            image without one; by default a term that reads ``target`` leaves such images out.
        teacher: the name of one of several teachers, whose outputs and class means the term's inputs are then.
    """

    loss: nn.Module
    weight: float | str | dict[str, float] = 1.0
    warmup_epochs: int = 0
    inputs: list[str] | None = None
    warmup_from: int = 0
    class_weights: ClassWeights | None = None
    pseudo_labels: float | None = None
    teacher: str | None = None

    def __post_init__(self) -> None:
        for name in ("warmup_epochs", "warmup_from"):
            if getattr(self, name) is None or getattr(self, name) < 0:
                raise NdkdError(f"{name}: wanted 0 or more, got {getattr(self, name)}")
        check_weight(self.weight)
        if self.class_weights is not None:
            check_class_weights(self.class_weights)
        if self.pseudo_labels is not None:
            check_pseudo_labels(self.pseudo_labels)
        if not isinstance(self.loss, nn.Module):
            raise NdkdError(f"loss: wanted a loss of ndkd.losses or of torch.nn, got {self.loss}")
        if self.inputs is not None and not self.inputs:
            raise NdkdError("inputs: wanted the names of what the loss reads, got none; leave it out for its own")

    def factor(self, epoch: float) -> float:
        """The weight in an epoch, the first being epoch 0."""
        if not isinstance(self.weight, int | float):
            raise NdkdError("weight: auto is not known yet: give the trainer callbacks=[ClassMeans(), AutoWeights()]")
        if not self.warmup_epochs:
            return self.weight
        return self.weight * min(1.0, (epoch + self.warmup_from) / self.warmup_epochs)


class Objective(nn.Module):
    r"""The weighted sum of loss terms, $\sum_k w_k \min(1, e / e_k) L_k$ in epoch e; it needs no trainer.

    Terms of weight 0 are left out. The caller's terms are left as they are. A term that reads ``target`` sees the
    images that have one and, with ``pseudo_labels``, those of which the teacher is sure; of none its value is 0.

    Args:
        losses: the terms by name.

    Raises:
        NdkdError: a name that cannot be that of a term, a loss whose inputs nobody names, nothing to learn from.

    Examples:
        >>> from ndkd.losses import KDLoss, NDLoss
        >>> from ndkd.models.output import ModelOutput
        >>> objective = Objective({
        ...     "ce": LossTerm(nn.CrossEntropyLoss(), inputs=["student.logits", "target"]),
        ...     "kd": LossTerm(KDLoss(temperature=4), warmup_epochs=20),
        ...     "nd": LossTerm(NDLoss(), weight=1.5),
        ... })
        >>> print(objective)
        1·ce + 1·kd (warm-up 20 epochs) + 1.5·nd
        >>> student, teacher = (ModelOutput(torch.randn(4, 10), torch.randn(4, 64)) for _ in range(2))
        >>> target, class_means = torch.tensor([0, 1, 2, 3]), torch.randn(10, 64)
        >>> total, values = objective(StepOutput(student, target, teacher, class_means), epoch=0)
        >>> list(values), torch.equal(total, values["ce"] + 0 * values["kd"] + 1.5 * values["nd"])
        (['ce', 'kd', 'nd'], True)
    """

    def __init__(self, losses: Mapping[str, LossTerm]):
        super().__init__()
        check_names(losses)
        self.terms: dict[str, LossTerm] = {}
        for name, term in losses.items():
            if term.weight == 0:
                continue
            own: Sequence[str] = getattr(term.loss, "inputs", ())
            inputs = [of_teacher(source, term.teacher or ONE) for source in term.inputs or own]
            if not inputs:
                kind = type(term.loss).__name__
                raise NdkdError(f"loss {name}: {kind} does not say its inputs; set losses.{name}.inputs")
            if term.pseudo_labels is not None:
                check_is_for_labels(name, inputs, term.class_weights is not None)
            self.terms[name] = replace(term, inputs=inputs)
            self.add_module(name, term.loss)
        if not self.terms:
            raise NdkdError("no loss has a weight other than 0; give at least one term under losses")
        # what of the pull at the student is asked of a term, where its weight is yet to be found
        self.shares = {n: term.weight["auto"] for n, term in self.terms.items() if isinstance(term.weight, dict)}
        check_shares(self.shares, self.terms)
        self.is_weighted = all(term.class_weights is None for term in self.terms.values())
        if not any(source.startswith("student.") for source in self.inputs):
            raise NdkdError("no loss reads anything of the student, such as student.logits; it could not learn")

    @property
    def inputs(self) -> set[str]:
        """The names of all outputs that a term reads."""
        return {source for term in self.terms.values() for source in sources_of(term)}

    @property
    def uses_unlabeled(self) -> bool:
        """Whether a term learns from images without a label."""
        return any("target" not in (t.inputs or ()) or t.pseudo_labels is not None for t in self.terms.values())

    def build(self, output: StepOutput, class_counts: Sequence[int] | None = None) -> None:
        """Let every loss learn the shapes of the outputs, and try all of them; wanted before the optimizer is made.

        Args:
            output: of any batch; of the class means only the shape counts.
            class_counts: the number of training images of each class, for balanced class weights.

        Raises:
            NdkdError: an input that the output does not provide, a loss that the outputs or class weights do not fit.
        """
        output = replace(output, class_means=of_each(torch.ones_like, output.class_means))
        for name, term in self.terms.items():
            check_inputs(name, term, output)
            try:
                build: Callable[..., None] | None = getattr(term.loss, "build", None)
                if build is not None:
                    build(output.student, teacher_of(term, output))
                if term.class_weights is not None:
                    number = output.student.logits.shape[1]
                    set_class_weights(term.loss, class_weights(term.class_weights, number, class_counts))
                with torch.no_grad():  # what does not fit is found before the run begins
                    value = value_of(term.loss.eval(), inputs_of(term, output))
                if not isinstance(value, Tensor) or value.ndim:
                    found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    raise ValueError(f"wanted one number for a batch, got {found}; is its reduction mean or sum?")
                if term.pseudo_labels is not None:
                    with torch.no_grad():
                        check_is_a_mean(term.loss, inputs_of(term, output))
            except (ValueError, TypeError, RuntimeError) as error:
                raise NdkdError(f"loss {name}: {error}") from error
            term.loss.train()
        self.is_weighted = True

    def factors(self, epoch: float = inf) -> dict[str, float]:
        """What each term is weighed by in an epoch, the first being epoch 0; by default every warm-up is over."""
        return {name: term.factor(epoch) for name, term in self.terms.items()}

    def forward(
        self, output: StepOutput, epoch: float = inf, factors: Mapping[str, float | Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and the value of each term before it is weighed.

        Args:
            output: of a batch.
            epoch: for the warm-up, the first being epoch 0; by default every warm-up is over.
            factors: what each term is weighed by, instead of the epoch's.

        Raises:
            NdkdError: an input that the output does not provide, a value that a loss refuses, or class weights that
                wait for ``build``.
        """
        if not self.is_weighted:
            raise NdkdError("class_weights are not known yet: call build(output, class_counts) before the first step")
        values = {name: self._value(name, term, output) for name, term in self.terms.items()}
        factors = self.factors(epoch) if factors is None else factors
        return reduce(add, (factors[name] * value for name, value in values.items())), values

    def _value(self, name: str, term: LossTerm, output: StepOutput) -> Tensor:
        try:
            values, labeled = inputs_of(term, output), output.labeled
            if labeled is None or "target" not in (term.inputs or ()):
                return value_of(term.loss, values)
            if term.pseudo_labels is not None:
                logits = output.value(f"{term.teacher or ONE}.logits")
                return mean_with_pseudo_labels(term.loss, values, labeled, logits, term.pseudo_labels)
            if not labeled:  # of no image there is no mean
                return output.student.logits[:0].float().sum()
            return value_of(term.loss, of_labeled(values, len(output.target), labeled))
        except ValueError as error:
            raise NdkdError(f"loss {name}: {error}") from error
        except LookupError:
            check_inputs(name, term, output)
            raise

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Give terms, by name, the weights that were found for their shares."""
        for name, weight in weights.items():
            self.terms[name].weight = weight

    def __str__(self) -> str:
        return " + ".join(_described(name, term, self.shares.get(name)) for name, term in self.terms.items())


def _described(name: str, term: LossTerm, share: float | None) -> str:
    factor = "auto" if isinstance(term.weight, dict) else f"{term.weight:g}"
    remarks = [] if share is None else [f"share {share:g}"]
    if term.warmup_epochs:
        remarks.append(f"warm-up {term.warmup_epochs} epoch{'s' if term.warmup_epochs > 1 else ''}")
    if term.class_weights is not None:
        weight = getattr(term.loss, "weight", None)
        known = f" {weight.min():.3g} to {weight.max():.3g}" if isinstance(weight, Tensor) else ""  # once it is built
        remarks.append(f"class weights{known}")
    if term.pseudo_labels is not None:
        remarks.append(f"pseudo-labels from {term.pseudo_labels:g}")
    return f"{factor}·{name} ({', '.join(remarks)})" if remarks else f"{factor}·{name}"


def teacher_of(term: LossTerm, output: StepOutput) -> Any:
    """The outputs of the teacher that a term with inputs reads; of several teachers, where it reads of one alone."""
    if not isinstance(output.teacher, EnsembleOutput):
        return output.teacher
    read = {source.split(".")[0] for source in term.inputs or ()} & output.teacher.each.keys()
    return output.teacher.each[read.pop()] if len(read) == 1 else output.teacher


def sources_of(term: LossTerm) -> list[str]:
    """The names of all outputs that a term with inputs wants, the teacher's logits for pseudo-labels among them."""
    return [*(term.inputs or ()), *([f"{term.teacher or ONE}.logits"] if term.pseudo_labels is not None else [])]


def inputs_of(term: LossTerm, output: StepOutput) -> Values:
    """The outputs that a term names."""
    return [(source, output.value(source)) for source in term.inputs or ()]


def check_inputs(name: str, term: LossTerm, output: StepOutput) -> None:
    """Raise ``NdkdError`` if a term asks for something that the step does not provide."""
    on_offer = output.on_offer()
    for source in sources_of(term):
        if source not in on_offer:
            hint = f"; set taps of the {source.split('.')[0]}" if source.endswith("feature_maps") else ""
            raise NdkdError(f"loss {name}: nothing provides {source!r}{hint}; on offer: {', '.join(on_offer)}")


def check_names(names: Iterable[str]) -> None:
    """Raise ``NdkdError`` unless all names can be those of loss terms: of modules, of options and of columns."""
    taken = {*dir(Objective), "inputs", "terms", "training", "loss", "lr"}  # train/loss is the sum of all terms
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[^\W\d][\w+-]*", name) or name in taken:
            why = "is taken" if name in taken else "is not a word"
            raise NdkdError(f"losses: {name!r} {why}; name the term otherwise, for example kd")
