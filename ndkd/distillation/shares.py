"""Weights by shares: how much of the pull at the student a loss term is to have, and the weight that gives it that."""

from collections.abc import Collection, Mapping
from math import inf, isfinite
from typing import Any

from ndkd.errors import NdkdError, suggestion


def check_weight(weight: Any) -> None:
    """Raise ``NdkdError`` unless a term's weight is a number from 0 on or a share to find it by."""
    if isinstance(weight, dict | str):
        if isinstance(weight, str) or list(weight) != ["auto"]:
            raise NdkdError(
                f"weight: wanted a number from 0 on, or {{auto: SHARE}} such as {{auto: 0.2}}, got {weight}"
            )
        check_share("weight: auto", weight["auto"])
    elif weight is None or isinstance(weight, bool) or not 0 <= weight < inf:
        raise NdkdError(f"weight: wanted a number from 0 on, got {weight}; 0 leaves the term out")


def check_share(name: str, share: Any) -> None:
    """Raise ``NdkdError`` unless it is a number between 0 and 1."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise NdkdError(f"{name}: wanted a share above 0 and below 1, got {share}")


def check_shares(shares: Mapping[str, float], terms: Collection[str]) -> None:
    """Raise ``NdkdError`` for shares of terms that there are not, or that leave nothing, or nobody, the rest.

    Args:
        shares: by term.
        terms: the names of all of them.
    """
    for name in shares:
        if name not in terms:
            raise NdkdError(f"share: there is no loss term {name}; {suggestion(name, list(terms))}")
    if (total := sum(shares.values())) >= 1:
        raise NdkdError(f"share: wanted less than 1 in all, got {total:g} ({_listed(shares)})")
    if shares and not set(terms) - set(shares):
        raise NdkdError(
            f"share: {_listed(shares)} are all terms; leave out one, which keeps its weight and has the rest"
        )


def shares_of(weights: Mapping[str, float], norms: Mapping[str, float]) -> dict[str, float]:
    r"""The share of each term, $s_k = w_k n_k / \sum_j w_j n_j$; all 0 where no term pulls.

    Args:
        weights: $w_k$, by term.
        norms: $n_k$, of the terms' gradients on the student before they are weighed.

    Examples:
        >>> shares_of({"ce": 1, "nd": 2}, {"ce": 3.0, "nd": 0.5})
        {'ce': 0.75, 'nd': 0.25}
    """
    pulls = {name: weights[name] * norms[name] for name in weights}
    total = sum(pulls.values())
    return {name: pull / total if total else 0.0 for name, pull in pulls.items()}


def weights_for(
    shares: Mapping[str, float], weights: Mapping[str, float], norms: Mapping[str, float]
) -> dict[str, float]:
    r"""The weights by which terms have their shares, $w_k = s_k R / ((1 - \sum_j s_j) n_k)$, to three digits.

    R is $\sum_i w_i n_i$ over the other terms, which keep their weights and have the rest.

    Args:
        shares: $s_k$, of some terms.
        weights: of the others, at least; what those of ``shares`` have so far does not count.
        norms: $n_k$, of all terms' gradients on the student before they are weighed.

    Raises:
        NdkdError: a term without a gradient, other terms that have none, norms that are not finite.

    Examples:
        >>> weights_for({"nd": 0.2}, {"ce": 1, "kd": 1}, {"ce": 3.0, "kd": 1.0, "nd": 0.25})
        {'nd': 4.0}
    """
    if not shares:
        return {}
    for name, norm in norms.items():
        if not isfinite(norm):
            raise NdkdError(f"share: the gradient of {name} is not finite; lower the learning rate or correct the term")
        if name in shares and norm == 0:
            raise NdkdError(f"share: {name} has no gradient on the student, and no weight gives it a share; drop it")
    rest = sum(weights[name] * norm for name, norm in norms.items() if name not in shares)
    if not rest:
        raise NdkdError("share: the terms without a share have no gradient on the student; give one of them a weight")
    total = rest / (1 - sum(shares.values()))
    # as many digits as are printed: who copies the number repeats the run
    return {name: float(f"{share * total / norms[name]:.3g}") for name, share in shares.items()}


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:g}" for name, share in shares.items())
