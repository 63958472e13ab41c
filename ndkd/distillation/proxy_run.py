"""The gradients of a module's loss terms before the first step, and after a few steps of a copy."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from tqdm import tqdm

from ndkd.distillation.batches import on_device
from ndkd.distillation.building import training_loader
from ndkd.distillation.optimization import trained_groups
from ndkd.distillation.shares import shares_of, weights_for
from ndkd.distillation.term_gradients import TermGradient, term_gradients
from ndkd.errors import NdkdError

BATCHES = 4  # over which gradients are averaged
STEPS = 30  # of the copy
Gradients = dict[str, TermGradient]


@dataclass
class MeasuredTerms:
    """The gradients of all terms, and the weights that they lead to.

    Args:
        start: before the first step, by term: means over some batches.
        later: the same after the copy's steps.
        weights: of all terms; those of a share by the gradients of ``later``, the others' as they are.
        steps: so many.
    """

    start: Gradients
    later: Gradients
    weights: dict[str, float]
    steps: int

    def shares(self, gradients: Gradients) -> dict[str, float]:
        """The share of each term in what pulls at the student, with these weights."""
        return shares_of(self.weights, {name: gradient.norm for name, gradient in gradients.items()})


def measure_terms(
    trainer: Any, module: Any, shares: Mapping[str, float], shows_bar: bool = False, steps: int = STEPS
) -> MeasuredTerms:
    """Measure the gradients of all terms, train a copy of the student for some steps, and measure them again.

    The copy is trained by the module's optimizer on augmented images, every warm-up of a weight being over, while its
    learning rate rises evenly to the optimizer's. The module, the random generators and the trainer stay as they are.
    Of several processes each trains a copy on its images, and the figures are means over all.

    Args:
        trainer: that will train the module, with data.
        module: it, built, with class means.
        shares: that terms, by name, are to have; the copy trains with the weights that give these at the start.
        shows_bar: of the steps.
        steps: of the copy.

    Raises:
        NdkdError: a term that cannot have its share, a copy whose gradients are not finite, no batch.
    """
    with isolate_rng(), _asked_directly(module.teachers.values()):
        copy = _copied(module)
        batches = _batches(trainer, module)
        copy.objective.set_weights(dict.fromkeys(shares, 0.0))
        weights = {name: term.weight for name, term in copy.objective.terms.items()}
        start = _mean_gradients(trainer, copy, batches)
        weights |= _found(shares, weights, start)
        copy.objective.set_weights(weights)
        _train(trainer, copy, batches, steps, shows_bar)
        later = _mean_gradients(trainer, copy, batches)
        weights |= _found(shares, weights, later)
    return MeasuredTerms(start, later, weights, steps)


def _found(shares: Mapping[str, float], weights: Mapping[str, float], gradients: Gradients) -> dict[str, float]:
    return weights_for(shares, weights, {name: gradient.norm for name, gradient in gradients.items()})


def _copied(module: Any) -> Any:
    """Student, projector and layers of losses of their own, in training mode; the teacher is the same."""
    # of ready models and losses in what the module was made from there is no use for a copy
    shared = [module.constants, module.sources, module.losses]
    copy = deepcopy(module, {id(each): each for each in shared})
    return copy.train()


def _batches(trainer: Any, module: Any) -> Iterator[Any]:
    """Training images as a training gets them, epoch after epoch."""
    loader = training_loader(trainer)
    for epoch in count():
        sampler: Any = getattr(loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        empty = True
        for batch in loader:
            empty = False
            yield on_device(trainer, module, batch)
        if empty:
            raise NdkdError("no epoch was trained: there was no batch of training images")


def _mean_gradients(trainer: Any, module: Any, batches: Iterator[Any]) -> Gradients:
    measured = []
    for _ in range(BATCHES):
        output = module.forward_pair(next(batches))
        _, values = module.objective(output)
        measured.append(term_gradients(module.objective, output, values, module.student.parameters()))
    means = torch.tensor([list(found.values()) for found in measured], device=module.device).mean(dim=0)
    rows = trainer.strategy.reduce(means, reduce_op="mean").tolist()
    return {name: TermGradient(*row) for name, row in zip(measured[0], rows, strict=True)}


def _train(trainer: Any, module: Any, batches: Iterator[Any], steps: int, shows_bar: bool) -> None:
    optimizer = module.make_optimizer(trained_groups(module))
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in tqdm(range(1, steps + 1), desc="proxy run", disable=not shows_bar, leave=False, unit="step"):
        total, _ = module.objective(module.forward_pair(next(batches)))
        optimizer.zero_grad()
        total.backward()
        if trainer.gradient_clip_val and trainer.gradient_clip_algorithm in (None, "norm"):
            nn.utils.clip_grad_norm_(module.parameters(), trainer.gradient_clip_val)
        elif trainer.gradient_clip_val:
            nn.utils.clip_grad_value_(module.parameters(), trainer.gradient_clip_val)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * step / steps
        optimizer.step(lambda total=total: total)
    optimizer.zero_grad()


@contextmanager
def _asked_directly(teachers: Iterable[Any]) -> Iterator[None]:
    """Inside, teachers that are recorded answer themselves: these are no training steps."""
    before = [(teacher, teacher.is_paused) for teacher in teachers if hasattr(teacher, "is_paused")]
    for teacher, _ in before:
        teacher.is_paused = True
    try:
        yield
    finally:
        for teacher, was_paused in before:
            teacher.is_paused = was_paused
