"""What ``ndkd diagnose`` prints: about ten lines."""

from collections.abc import Iterator
from typing import Any

from ndkd.commands.diagnose_teacher import SURE, most_entropy
from ndkd.distillation.proxy_run import MeasuredTerms
from ndkd.errors import shortened


def lines(d: Any) -> Iterator[str]:
    """Of a ``ndkd.commands.diagnose.Diagnosis``; what is suspicious comes last."""
    yield from _teacher(d)
    conflicts = d.conflicts
    if d.training.logits is not None:
        pairs = "; " + ", ".join(f"{a} → {b} ({n})" for a, b, n in conflicts.pairs[:3]) if conflicts.pairs else ""
        share = conflicts.count / conflicts.images
        yield (
            f"labels: {conflicts.count} of {conflicts.images:,} training images ({share:.1%}) are contradicted by a "
            f"teacher that is {SURE:.0%} sure{pairs}"
        )
    yield _embeddings(d)
    yield _class_means(d.embeddings)
    yield _gradients(d.terms)
    for warning in d.warnings:
        yield f"look at this: {warning}"


def _teacher(d: Any) -> Iterator[str]:
    figures = [(name, found) for name, found in d.teacher.items() if found is not None]
    if not figures:
        yield "teacher: of other classes than the data's; its accuracy and the labels cannot be judged"
        return
    parts = [f"{found.accuracy:.1%} of {found.images:,} {name} images" for name, found in figures]
    yield f"teacher: right on {', '.join(parts)}; chance {figures[-1][1].chance:.1%}"
    eces, sure = (
        " / ".join(f"{value:.1%}" for value in values)
        for values in ([found.ece for _, found in figures], [found.confidence for _, found in figures])
    )
    entropies = " / ".join(f"{found.entropy:.3f}" for _, found in figures)
    names = " / ".join(name for name, _ in figures)
    most = most_entropy(len(d.class_names))
    yield f"calibration ({names}): ECE {eces}, mean confidence {sure}, entropy {entropies} of {most:.2f} nats"


def _embeddings(d: Any) -> str:
    values = d.embeddings.statistics
    parts = [
        f"norm of the teacher's {values['teacher_norm_mean']:.3g}, of the student's {values['student_norm_mean']:.3g}"
    ]
    if d.has_projector and "projected_norm_mean" in values:
        parts.append(f"projected {values['projected_norm_mean']:.3g}")
    angles = f"angle to the class mean {values['teacher_angle_mean']:.1f}°"
    if "angle_mean" in values:
        angles += f", of the student's {values['angle_mean']:.1f}°"
    return f"embeddings: {', '.join([*parts, angles])}"


def _class_means(found: Any) -> str:
    if not len(found.between):
        return "class means: of one class in the sample; give more --samples"
    a, b, angle = found.nearest[0]
    nearest = f"{found.between.mean():.1f}° apart on average, nearest {a} and {b}, {angle:.1f}°"
    absent = f"; no image of {shortened(found.absent)} in the sample" if found.absent else ""
    return f"class means: {nearest}{absent}"


def _gradients(terms: MeasuredTerms) -> str:
    start, later = terms.shares(terms.start), terms.shares(terms.later)
    parts = [
        f"{name} {first.norm:.3g} → {terms.later[name].norm:.3g} (share {start[name]:.0%} → {later[name]:.0%}, "
        f"cosine {first.cosine_to_ce:.2f} → {terms.later[name].cosine_to_ce:.2f})"
        for name, first in terms.start.items()
    ]
    return f"gradients, start → {terms.steps} steps later: {', '.join(parts)}"
