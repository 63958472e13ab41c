"""Feature distillation by the Wasserstein distance of Gaussians (WKD-F): https://arxiv.org/abs/2412.08139."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ndkd.losses.common import at_least_float32, check_not_negative, check_positive
from ndkd.losses.maps import HasMaps, check_built, check_pairs, map_shapes


def wkdf_loss(
    student_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    mean_weight: float = 4.0,
    grid: int = 1,
    eps: float = 1e-5,
) -> Tensor:
    r"""Squared Wasserstein distance of feature maps, each taken for a Gaussian of independent channels.

    $$
    L = \sum_m \frac{1}{B g^2} \sum_{i, r} \lambda \sum_c (\mu^s - \mu^t)^2 + \sum_c (\sigma^s - \sigma^t)^2,
    \qquad \sigma = \sqrt{\mathrm{Var} + \epsilon}
    $$

    over pairs of maps m, images i, the $g^2$ cells r of a grid and channels c. Mean and variance are those of a
    channel's pixels in a cell, so the two maps of a pair may differ in height and width. The variance of n pixels
    divides by n - 1; that of a single pixel is 0.

    That $\lambda$ is on the means, n - 1, the place of $\epsilon$ and the sum over channels are those of the authors'
    code, as two repositories derived from it have it: https://github.com/hainn2803/WKD and
    https://github.com/Changhy26/WKL. There it is one pair of maps, the last before the pooling.

    Args:
        student_maps: one (B, c, h, w) per pair.
        teacher_maps: the same, whose h and w may differ.
        mean_weight: $\lambda$, the weight of the means against the deviations.
        grid: g, cells along each side; they are as those of adaptive pooling.
        eps: added to the variance.

    Raises:
        ValueError: unequal counts or channels, or a map with fewer pixels along a side than the grid has cells.
    """
    check_pairs(student_maps, teacher_maps)
    distances = []
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        if student.ndim != 4 or teacher.ndim != 4 or student.shape[:2] != teacher.shape[:2]:
            shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
            raise ValueError(f"wanted maps (B, c, h, w) of equal B and c, got {shapes}")
        means, deviations = zip(*(_gaussians(at_least_float32(m), grid, eps) for m in (student, teacher)), strict=True)
        distance = mean_weight * (means[0] - means[1]).square() + (deviations[0] - deviations[1]).square()
        distances.append(distance.sum() / (len(student) * grid**2))
    return torch.stack(distances).sum()


def _gaussians(maps: Tensor, grid: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in each cell of a grid, (cells, B, c) both."""
    height, width = maps.shape[2:]
    if min(height, width) < grid:
        raise ValueError(f"grid: wanted at most {min(height, width)}, the pixels of a {height}×{width} map, got {grid}")
    cells = [maps[:, :, rows, columns] for rows in _slices(height, grid) for columns in _slices(width, grid)]
    variances, means = zip(*(_var_mean(cell) for cell in cells), strict=True)
    return torch.stack(means), (torch.stack(variances) + eps).sqrt()


def _slices(length: int, parts: int) -> list[slice]:
    return [slice(i * length // parts, -(-(i + 1) * length // parts)) for i in range(parts)]


def _var_mean(cell: Tensor) -> tuple[Tensor, Tensor]:
    pixels = cell.shape[2] * cell.shape[3]
    return torch.var_mean(cell, dim=(2, 3), correction=min(1, pixels - 1))


class WKDFLoss(nn.Module):
    r"""Bring the student's maps to the teacher's channels and match their distributions, see ``wkdf_loss``.

    It reads the feature maps of student and teacher, each (B, c, h, w). Both models tap as many maps as the other; the
    authors tap one, the last before the pooling. Each of the student's maps goes through a 1×1 convolution, BatchNorm
    and ReLU, which are trained with the student and dropped after training. Where the maps differ in size, the authors'
    convolution resizes as well, which means and deviations do not need.

    Args:
        mean_weight: $\lambda$, the weight of the means against the deviations.
        grid: cells along each side of a map; 1 takes it as a whole.
        eps: added to the variance.

    Raises:
        ValueError: unequal numbers of maps, or maps that are not (B, c, h, w).

    Examples:
        >>> from types import SimpleNamespace
        >>> student, teacher = [torch.rand(2, 3, 8, 8)], [torch.rand(2, 5, 4, 4)]
        >>> loss = WKDFLoss()
        >>> loss.build(SimpleNamespace(feature_maps=student), SimpleNamespace(feature_maps=teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    inputs = ("student.feature_maps", "teacher.feature_maps")

    def __init__(self, mean_weight: float = 4.0, grid: int = 1, eps: float = 1e-5):
        super().__init__()
        check_not_negative(mean_weight=mean_weight)
        check_positive(grid=grid, eps=eps)
        self.mean_weight, self.grid, self.eps = mean_weight, grid, eps
        self.adapters = nn.ModuleList()  # made by build

    def build(self, student: HasMaps, teacher: HasMaps) -> None:
        """Make the adapters for the maps of two model outputs (of a dry forward)."""
        student_shapes, teacher_shapes = map_shapes("WKD-F", student, teacher)
        self.adapters = nn.ModuleList()
        for (in_channels, *_), (out_channels, *_) in zip(student_shapes, teacher_shapes, strict=True):
            layers = nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
            self.adapters.append(nn.Sequential(*layers))

    def forward(self, student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
        check_built(self.adapters, student_maps)
        adapted = [adapter(student_map) for adapter, student_map in zip(self.adapters, student_maps, strict=True)]
        return wkdf_loss(adapted, teacher_maps, self.mean_weight, self.grid, self.eps)
