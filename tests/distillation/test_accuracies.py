"""Accuracies of all images and of each class."""

import doctest

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from ndkd.distillation import accuracies
from ndkd.distillation.accuracies import BalancedAccuracy


def test_doctest():
    assert doctest.testmod(accuracies).failed == 0


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_balanced_accuracy_is_scikit_learns():
    random = np.random.default_rng(0)
    target, predicted = random.choice(5, 200, p=[0.6, 0.3, 0.05, 0.05, 0]), random.choice(5, 200)
    accuracy = BalancedAccuracy(5)
    for part in np.array_split(np.arange(200), 3):
        accuracy.update(torch.eye(5)[predicted[part]], torch.from_numpy(target[part]))
    assert accuracy.compute().item() == pytest.approx(balanced_accuracy_score(target, predicted))
    accuracy.reset()
    assert accuracy.measured.sum(dim=0).tolist() == [(target == predicted).sum(), 200]
    assert not accuracy.counts.any()
