"""What a sample of images says of a teacher and of the labels: figures, and warnings where the evidence is fair."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from math import log, sqrt
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import mannwhitneyu
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from ndkd.commands.diagnose_sample import Sample

SURE = 0.9  # confidence from which a prediction speaks against a label
NEAR_ALL = 0.99  # accuracy of a teacher that has hardly anything left to learn from such images
FINEST = 0.04  # standard error of the AUC up to which training and validation images can be told apart
Z = 1.96  # of 95 % intervals


@dataclass
class TeacherFigures:
    """On N images: shares of 1, entropies in nats.

    Args:
        images: N.
        accuracy: share that is right.
        confidence: mean probability of the predicted class.
        ece: expected calibration error, in 15 bins of the confidence.
        entropy: mean over the images.
        cross_entropy: of the labels, per image (N,).
        chance: accuracy of one who always names the most frequent class.
    """

    images: int
    accuracy: float
    confidence: float
    ece: float
    entropy: float
    cross_entropy: Tensor
    chance: float

    def interval(self) -> tuple[float, float]:
        """95 %, by Wilson."""
        n, p = self.images, self.accuracy
        middle, half = p + Z**2 / (2 * n), Z * sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
        return (middle - half) / (1 + Z**2 / n), (middle + half) / (1 + Z**2 / n)


def teacher_figures(logits: Tensor, target: Tensor) -> TeacherFigures:
    """Of logits (N, C) and classes (N,).

    Examples:
        >>> figures = teacher_figures(torch.tensor([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0]]), torch.tensor([0, 1, 1]))
        >>> round(figures.accuracy, 2), round(figures.confidence, 2), round(figures.ece, 2), round(figures.chance, 2)
        (0.67, 0.98, 0.32, 0.67)
    """
    probabilities = logits.float().softmax(dim=1)
    classes = logits.shape[1]
    entropy = torch.special.entr(probabilities).sum(dim=1).mean()
    return TeacherFigures(
        images=len(target),
        accuracy=(logits.argmax(dim=1) == target).double().mean().item(),
        confidence=probabilities.amax(dim=1).double().mean().item(),
        ece=multiclass_calibration_error(probabilities, target, classes, n_bins=15).item(),
        entropy=entropy.item(),
        cross_entropy=F.cross_entropy(logits.float(), target, reduction="none"),
        chance=max(1 / classes, target.bincount(minlength=classes).max().item() / len(target)),
    )


def told_apart(training: TeacherFigures, validation: TeacherFigures) -> tuple[float, float]:
    """How well the cross-entropy tells validation from training images: the AUC, 0.5 for not at all, and its error.

    The AUC is the probability that a validation image has a higher cross-entropy than a training image; the standard
    error is that of the null hypothesis.
    """
    n, m = training.images, validation.images
    # rounded, or the least bits would rank images of which the teacher is equally sure
    values = (validation.cross_entropy.numpy().round(6), training.cross_entropy.numpy().round(6))
    return float(mannwhitneyu(*values).statistic) / (n * m), sqrt((n + m + 1) / (12 * n * m))


def teacher_warnings(
    training: TeacherFigures, validation: TeacherFigures | None, reported: float | None, reordered: float | None
) -> list[str]:
    """What is suspicious of a teacher, a sentence each.

    Args:
        training: on training images.
        validation: on validation images.
        reported: the accuracy that its own run has on its validation images, if that is known.
        reordered: its accuracy on training images if its classes stood in the best other order.
    """
    judged = validation or training
    where = "validation" if validation else "training"
    low, high = judged.interval()
    found = []
    if low <= judged.chance:
        found.append(
            f"the teacher is no better than chance: {judged.accuracy:.1%} of {judged.images} {where} images are right, "
            f"and {judged.chance:.1%} would be by always naming the most frequent class; on training images it has "
            f"{training.accuracy:.1%}"
        )
    elif training.accuracy < 0.5:
        found.append(
            f"the teacher is weak: {training.accuracy:.1%} of the training images are right, "
            f"{training.accuracy / training.chance:.1f} times what chance gives"
        )
    elif validation and training.accuracy - validation.accuracy > 0.2 and high < training.interval()[0]:
        found.append(
            f"the teacher is much better on training images ({training.accuracy:.1%}) than on validation images "
            f"({validation.accuracy:.1%}): it has learnt them by heart, and tells the student little but the labels"
        )
    if reordered is not None and reordered - training.accuracy > 0.2:
        found.append(
            f"the teacher's classes seem to be in another order than the data's: with the best other order "
            f"{reordered:.1%} of the training images would be right, now {training.accuracy:.1%}"
        )
    if validation and reported is not None and reported - high > 0.05:
        found.append(
            f"the teacher's own run reports {reported:.1%} on its validation images, here it has "
            f"{validation.accuracy:.1%}: are images, classes or normalisation others?"
        )
    gap = judged.confidence - judged.accuracy
    if judged.ece > 0.05 and gap > Z * sqrt(judged.accuracy * (1 - judged.accuracy) / judged.images):
        found.append(
            f"the teacher is overconfident: on {where} images it is {judged.confidence:.1%} sure on average, and "
            f"{judged.accuracy:.1%} are right (ECE {judged.ece:.1%}); a higher temperature softens it"
        )
    return found + _has_seen(training, validation)


def _has_seen(training: TeacherFigures, validation: TeacherFigures | None) -> list[str]:
    """A teacher that was trained on the training images alone is surer of these."""
    if validation is None or min(training.accuracy, validation.accuracy) < NEAR_ALL:
        return []
    area, error = told_apart(training, validation)
    if error > FINEST or area - Z * error > 0.5:
        return []
    return [
        f"the teacher may have been trained on the validation images: {training.accuracy:.1%} of the training and "
        f"{validation.accuracy:.1%} of the validation images are right, and its cross-entropy does not tell them apart "
        f"(AUC {area:.2f} ± {Z * error:.2f}, 0.5 is chance); or the task is so easy that it makes no difference"
    ]


def reordered_accuracy(logits: Tensor, target: Tensor) -> float | None:
    """The accuracy if the classes of the logits stood in the best order; None of too few images to say."""
    classes = logits.shape[1]
    if len(target) < 10 * classes:
        return None
    counts = torch.zeros(classes, classes).index_put_((target, logits.argmax(dim=1)), torch.ones(1), accumulate=True)
    return float(counts.numpy()[linear_sum_assignment(counts.numpy(), maximize=True)].sum() / len(target))


@dataclass
class LabelConflicts:
    """Training images whose label a sure teacher contradicts.

    Args:
        images: so many were looked at.
        count: of conflicts.
        pairs: label, prediction and how many, the most frequent first.
        worst: name, label, prediction and confidence, the surest first.
        twins: names of identical images that have different labels, a group each.
        leaked: names of training images that are validation images too.
    """

    images: int
    count: int
    pairs: list[tuple[str, str, int]]
    worst: list[tuple[str, str, str, float]]
    twins: list[list[str]]
    leaked: list[str]


def label_conflicts(
    training: Sample, validation: Sample | None, class_names: list[str], most: int = 10
) -> LabelConflicts:
    """Look for labels that are doubtful.

    Args:
        training: images with what the teacher makes of them.
        validation: likewise.
        class_names: of all classes.
        most: pairs and images that are listed.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    worst: list[tuple[str, str, str, float]] = []
    if training.logits is not None:
        confidence, predicted = training.logits.softmax(dim=1).max(dim=1)
        wrong = ((predicted != training.target) & (confidence >= SURE)).nonzero().flatten()
        for k in wrong[confidence[wrong].argsort(descending=True, stable=True)].tolist():
            label, other = class_names[int(training.target[k])], class_names[int(predicted[k])]
            pairs[label, other] += 1
            worst.append((training.names[k], label, other, confidence[k].item()))
    groups: dict[bytes, list[int]] = defaultdict(list)
    for k, digest in enumerate(training.digests):
        groups[digest].append(k)
    twins = [
        [training.names[k] for k in group] for group in groups.values() if len(set(training.target[group].tolist())) > 1
    ]
    of_validation = set(validation.digests if validation else ())
    leaked = [training.names[group[0]] for digest, group in groups.items() if digest in of_validation]
    listed = [(*pair, count) for pair, count in pairs.most_common(most)]
    return LabelConflicts(len(training), len(worst), listed, worst[:most], twins, leaked)


def as_dots(seen: Sample) -> dict[str, Any]:
    """Target, prediction, confidence and whether it is right, of each image, for a figure of the calibration."""
    assert seen.logits is not None
    confidence, predicted = seen.logits.softmax(dim=1).max(dim=1)
    columns = {"target": seen.target, "prediction": predicted, "confidence": confidence}
    columns["right"] = predicted == seen.target
    return {name: np.asarray(tensor) for name, tensor in columns.items()}


def most_entropy(classes: int) -> float:
    """Of a teacher that knows nothing, in nats."""
    return log(classes)
