"""An interval for a mean after each observation, of which all hold at once: one may look and stop whenever one likes.

A t-test repeated after every observation is wrong far more often than it says. This is the confidence sequence of the
t-test martingale of Wang and Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown
variance" (Sequential Analysis 44, 2025; https://arxiv.org/abs/2310.03722), theorem 4.9: the likelihood ratio of
scale-invariant data, mixed over standardised means θ = μ/σ ~ N(0, 1/c²). With S_n = Σ(x_i − μ), V_n = Σ(x_i − μ)² it is

    G_n = √(c²/(n + c²)) · ((n + c²)V_n / ((n + c²)V_n − S_n²))^(n/2),

a martingale that starts at 1 if μ is the mean, so that it ever reaches 1/α with probability α at most (Ville).
"""

import numpy as np

FIRST = 3  # observations; before, an interval would say nothing
EXPECTED = 3.0  # standard deviation 1/c of θ: the differences, in their own deviations, that are found soonest


def confidence_sequence(values: np.ndarray, error_rate: float, resolution: float = 0.0) -> tuple[np.ndarray, ...]:
    """Lower and upper ends of the mean's interval after each observation.

    ``mean ± s·√((n + c²)(1 − D)/((n + c²)D − c²))``, where ``D = (α²c²/(n + c²))^(1/n)`` and ``s²`` is the mean square
    of the deviations.

    Args:
        values: observations along the last axis, any further axes are other series.
        error_rate: α, the probability that any of a series' intervals leaves the mean out; for normal observations.
        resolution: step of the observations; s is at least half of it, since equal ones may differ unseen.

    Returns:
        Two arrays of the shape of ``values``; infinite where nothing can be said yet: of fewer than three
        observations, and of equal ones without a resolution.

    Examples:
        >>> low, high = confidence_sequence(np.array([1.0, 1.2, 0.9, 1.1, 1.0]), 0.05)
        >>> low.round(2).tolist(), high.round(2).tolist()
        ([-inf, -inf, -0.25, 0.63, 0.77], [inf, inf, 2.32, 1.47, 1.31])
    """
    n = np.arange(1, values.shape[-1] + 1)
    start = values[..., :1]  # so that sums of squares are small
    mean = (values - start).cumsum(-1) / n
    square = np.maximum(((values - start) ** 2).cumsum(-1) / n - mean**2, (resolution / 2) ** 2)
    precision = EXPECTED**-2
    root = (error_rate**2 * precision / (n + precision)) ** (1 / n)
    below = (n + precision) * root - precision
    is_known = (n >= FIRST) & (below > 0) & (square > 0)
    factor = (n + precision) * (1 - root) / np.where(below > 0, below, 1)
    half = np.where(is_known, np.sqrt(square * factor), np.inf)
    return mean + start - half, mean + start + half
