"""Distilling knowledge via knowledge review (ReviewKD): https://arxiv.org/abs/2104.09044."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ndkd.losses.common import at_least_float32, check_positive
from ndkd.losses.maps import HasMaps, check_built, check_pairs, map_shapes


def hcl_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    r"""Hierarchical context loss: squared distance of feature maps at full size and pooled to 4×4, 2×2 and 1×1.

    $$
    L = \sum_m \frac{1}{\sum_l w_l} \sum_l w_l\, \mathrm{MSE}(\mathrm{pool}_l(s_m), \mathrm{pool}_l(t_m))
    $$

    Weights $w$ are 1 for the full map and 1/2, 1/4, 1/8 for the pooled sizes in the order in which they are
    used; a size that is not smaller than the map's height is left out.

    Args:
        student_maps: one (B, c, h, w) per pair.
        teacher_maps: the same shapes.

    Raises:
        ValueError: unequal counts or shapes.
    """
    check_pairs(student_maps, teacher_maps)
    pairs = zip(student_maps, teacher_maps, strict=True)
    return torch.stack([_hcl_of_pair(at_least_float32(s), at_least_float32(t)) for s, t in pairs]).sum()


def _hcl_of_pair(student: Tensor, teacher: Tensor) -> Tensor:
    if student.shape != teacher.shape or student.ndim != 4:
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"wanted maps of one shape (B, c, h, w), got {shapes}")
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size < student.shape[2]:
            weight /= 2
            total += weight
            pooled = F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)
            loss = loss + weight * F.mse_loss(*pooled)
    return loss / total


class AttentionFusion(nn.Module):
    """One review step: narrow the student's map, mix in the deeper result by attention, widen to the teacher's map.

    Args:
        in_channels: channels of the student's map.
        mid_channels: channels of what is handed to the next, shallower step.
        out_channels: channels of the teacher's map.
        has_deeper: whether a deeper result is mixed in.
    """

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, has_deeper: bool):
        super().__init__()
        narrow = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        widen = nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False)
        self.narrow = nn.Sequential(narrow, nn.BatchNorm2d(mid_channels))
        self.widen = nn.Sequential(widen, nn.BatchNorm2d(out_channels))
        self.attention = nn.Sequential(nn.Conv2d(2 * mid_channels, 2, 1), nn.Sigmoid()) if has_deeper else None
        for conv in (narrow, widen):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, student_map: Tensor, out_size: torch.Size, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """The map to compare with the teacher's, of its (h, w), and what the shallower step mixes in."""
        mixed = self.narrow(student_map)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, mixed.shape[2:], mode="nearest")
            own, other = self.attention(torch.cat([mixed, deeper], dim=1)).split(1, dim=1)
            mixed = mixed * own + deeper * other
        if mixed.shape[2:] != out_size:
            mixed = F.interpolate(mixed, out_size, mode="nearest")
        return self.widen(mixed), mixed


class ReviewKDLoss(nn.Module):
    """Fuse the student's maps from deep to shallow and match each with the teacher's, see ``hcl_loss``.

    It reads the feature maps of student and teacher, each (B, c, h, w). Both models tap as many maps as the other,
    shallow to deep; the paper's last pair is the pooled embedding as a 1×1 map. The fusion layers are trained with the
    student and dropped after training.

    Args:
        max_mid_channels: most channels inside the fusion.

    Raises:
        ValueError: unequal numbers of maps, or maps that are not (B, c, h, w).

    Examples:
        >>> from types import SimpleNamespace
        >>> student, teacher = [torch.rand(2, 3, 8, 8)], [torch.rand(2, 5, 4, 4)]
        >>> loss = ReviewKDLoss()
        >>> loss.build(SimpleNamespace(feature_maps=student), SimpleNamespace(feature_maps=teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    inputs = ("student.feature_maps", "teacher.feature_maps")

    def __init__(self, max_mid_channels: int = 512):
        super().__init__()
        check_positive(max_mid_channels=max_mid_channels)
        self.max_mid_channels = max_mid_channels
        self.fusions = nn.ModuleList()  # deep -> shallow, made by build

    def build(self, student: HasMaps, teacher: HasMaps) -> None:
        """Make the fusion layers for the maps of two model outputs (of a dry forward)."""
        student_shapes, teacher_shapes = map_shapes("ReviewKD", student, teacher)
        self.fusions = nn.ModuleList()
        mid_channels = min(self.max_mid_channels, student_shapes[-1][0])
        for depth in reversed(range(len(student_shapes))):
            has_deeper = depth + 1 < len(student_shapes)
            fusion = AttentionFusion(student_shapes[depth][0], mid_channels, teacher_shapes[depth][0], has_deeper)
            self.fusions.append(fusion)

    def forward(self, student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
        check_built(self.fusions, student_maps)
        if len(student_maps) != len(teacher_maps):
            raise ValueError(f"wanted as many teacher_maps as student_maps, got {len(teacher_maps)}")
        fused, deeper = [], None
        steps = zip(self.fusions, reversed(student_maps), reversed(teacher_maps), strict=True)
        for fusion, student_map, teacher_map in steps:
            result, deeper = fusion(student_map, teacher_map.shape[2:], deeper)
            fused.append(result)
        return hcl_loss(fused[::-1], teacher_maps)
