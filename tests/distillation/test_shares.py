"""Weights by shares."""

import pytest

from ndkd.distillation.shares import check_shares, shares_of, weights_for
from tests.command import refusal

NORMS = {"ce": 3.0, "kd": 1.0, "nd": 0.25}


@pytest.mark.parametrize("shares", [{"nd": 0.2}, {"nd": 0.05, "kd": 0.9}, {"ce": 0.5}])
def test_weights_give_the_shares_that_were_asked_for(shares):
    weights = {"ce": 1.0, "kd": 2.0, "nd": 7.0}
    found = weights_for(shares, weights, NORMS)
    assert found.keys() == shares.keys()
    got = shares_of(weights | found, NORMS)
    assert {name: got[name] for name in shares} == pytest.approx(shares, abs=2e-3)
    assert sum(got.values()) == pytest.approx(1)
    assert all(float(f"{weight:g}") == weight for weight in found.values())  # what is printed is the number itself


def test_what_a_weight_was_before_does_not_count():
    assert weights_for({"nd": 0.2}, {"ce": 1, "kd": 1}, NORMS) == {"nd": 4.0}


def test_no_share_asks_for_nothing():
    assert weights_for({}, {"ce": 1.0}, {"ce": float("nan")}) == {}
    assert shares_of({"ce": 1.0}, {"ce": 0.0}) == {"ce": 0.0}


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"nx": 0.2}, "there is no loss term nx; known: ce, kd, nd"),
        ({"nd": 0.5, "kd": 0.5}, "wanted less than 1 in all, got 1 (nd 0.5, kd 0.5)"),
        ({"ce": 0.3, "nd": 0.3, "kd": 0.3}, "are all terms; leave out one"),
    ],
)
def test_shares_that_cannot_be(shares, message):
    assert message in refusal(check_shares, shares, NORMS)


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        ({**NORMS, "nd": 0.0}, "nd has no gradient on the student"),
        ({**NORMS, "kd": float("inf")}, "the gradient of kd is not finite"),
        ({"ce": 0.0, "kd": 0.0, "nd": 1.0}, "the terms without a share have no gradient"),
    ],
)
def test_gradients_that_give_no_share(norms, message):
    assert message in refusal(weights_for, {"nd": 0.2}, dict.fromkeys(NORMS, 1.0), norms)
