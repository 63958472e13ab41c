"""The examples in the docstrings of the models run."""

import doctest
import importlib
import pkgutil

import pytest

import ndkd.models

MODULES = [ndkd.models.__name__, *(m.name for m in pkgutil.walk_packages(ndkd.models.__path__, "ndkd.models."))]


def attempt(name):
    return doctest.testmod(importlib.import_module(name))


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert attempt(name).failed == 0


def test_there_are_examples():
    assert sum(attempt(name).attempted for name in MODULES) > 0
