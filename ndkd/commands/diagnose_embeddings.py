"""How long the embeddings of a sample are and where they point, and how far apart the classes lie."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ndkd.analysis import angles_to
from ndkd.callbacks.feature_statistics import summary
from ndkd.commands.diagnose_sample import Sample

CLOSE = 5.0  # degrees between two class means that nearly coincide, however narrow the classes are
MOST = 10  # pairs of classes that are listed though they do not


@dataclass
class Embeddings:
    """Norms and angles in degrees.

    Args:
        statistics: mean and quantiles of each column, by the names that a run logs under ``features/``.
        between: the angles between the means of different classes (pairs,), of classes that have images.
        nearest: names of two classes and the angle between their means, the smallest first.
        coinciding: those of ``nearest`` that nearly coincide.
        limit: the angle up to which they do.
        absent: classes without an image in the sample.
    """

    statistics: dict[str, float]
    between: Tensor
    nearest: list[tuple[str, str, float]]
    coinciding: list[tuple[str, str, float]]
    limit: float
    absent: list[str]


def embeddings(seen: Sample, class_means: Tensor, class_names: list[str], absent: list[str]) -> Embeddings:
    """Measure the embeddings of images against the teacher's class means.

    Two class means nearly coincide where the angle between them is at most 5°, or half of the mean angle between an
    image and the mean of its class.

    Args:
        seen: training images.
        class_means: (C, D of the teacher).
        class_names: of all classes.
        absent: those without an image, whose mean is unknown.
    """
    columns = {"student_norm": seen.student.norm(dim=1), "teacher_norm": seen.teacher.norm(dim=1)}
    own = seen.target.unsqueeze(1)
    columns["teacher_angle"] = angles_to(class_means, seen.teacher).gather(1, own)[:, 0]
    if seen.projected.shape[1] == class_means.shape[1]:
        columns["projected_norm"] = seen.projected.norm(dim=1)
        columns["angle"] = angles_to(class_means, seen.projected).gather(1, own)[:, 0]
    statistics = summary({name: column.double().numpy() for name, column in columns.items()})
    there = torch.tensor([k for k, name in enumerate(class_names) if name not in absent])
    angles = angles_to(class_means[there], class_means[there])
    rows, others = torch.triu_indices(len(there), len(there), offset=1)
    between = angles[rows, others]
    limit = max(CLOSE, statistics["teacher_angle_mean"] / 2)
    coinciding = int((between <= limit).sum())
    names = [class_names[k] for k in there.tolist()]
    order = between.argsort(stable=True)[: max(MOST, coinciding)].tolist()
    nearest = [(names[int(rows[k])], names[int(others[k])], between[k].item()) for k in order]
    return Embeddings(statistics, between, nearest[:MOST], nearest[:coinciding], limit, absent)
