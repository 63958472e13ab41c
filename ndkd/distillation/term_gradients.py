"""How hard each loss term pulls at the student, and whether it pulls where the cross-entropy does."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ndkd.distillation.objective import Objective
from ndkd.distillation.step_output import StepOutput


class TermGradient(NamedTuple):
    """Of one term, before it is weighed.

    Args:
        norm: $\\lVert \\nabla_\\theta L_k \\rVert$ over all parameters of the student that are trained.
        cosine_to_ce: of the angle between this gradient and the cross-entropy's; 0 where one of them is 0.
    """

    norm: float
    cosine_to_ce: float


def term_gradients(
    objective: Objective,
    output: StepOutput,
    values: Mapping[str, Tensor],
    parameters: Iterable[nn.Parameter],
    scale: float = 1.0,
) -> dict[str, TermGradient]:
    """The gradient of each term of one batch; the graph stays, and no ``grad`` is touched.

    Two gradients are kept at a time: the cross-entropy's and the term's.

    Args:
        objective: whose terms these are.
        output: of the step.
        values: of the terms, as ``objective(output)`` gives them.
        parameters: of the student; those that are frozen do not count.
        scale: values are multiplied by it for the way back, and gradients divided: half precision loses small ones.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    cross_entropy = _cross_entropy(objective, output, values)
    toward = _gradient(cross_entropy, trained, scale)
    other = _dot(toward, toward).sqrt()
    found = []
    for value in values.values():
        own = toward if value is cross_entropy else _gradient(value, trained, scale)
        norm = _dot(own, own).sqrt()
        found.append(torch.stack([norm, _dot(own, toward) / (norm * other).clamp_min(torch.finfo(norm.dtype).tiny)]))
    rows: list[Any] = torch.stack(found).tolist()  # one wait for the device
    return {name: TermGradient(*row) for name, row in zip(values, rows, strict=True)}


def _cross_entropy(objective: Objective, output: StepOutput, values: Mapping[str, Tensor]) -> Tensor:
    """The value of the term that is the labels' cross-entropy, or where there is none, one made for the comparison."""
    for name, term in objective.terms.items():
        if isinstance(term.loss, nn.CrossEntropyLoss) and term.inputs == ["student.logits", "target"]:
            return values[name]
    logits, target = output.student.logits[: output.labeled].float(), output.target[: output.labeled]
    return F.cross_entropy(logits, target, reduction="sum") / max(1, len(target))


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """``sum`` adds halves of halves; ``@`` and ``norm`` add one number to the next, and of 40 million miss some."""
    return (one * other).sum()


def _gradient(value: Tensor, parameters: list[nn.Parameter], scale: float) -> Tensor:
    """On all parameters, one after the other (P,) in float32; zeros where a value does not depend on them."""
    if not value.requires_grad:
        return torch.zeros(sum(p.numel() for p in parameters), device=value.device)
    parts = torch.autograd.grad(value * scale, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(parts, parameters, strict=True)
    flat = [(torch.zeros_like(p) if part is None else part).float().reshape(-1) for part, p in pairs]
    return torch.cat(flat) / scale
