"""Tests on a GPU: ``pytest tests/gpu``. Without one they are skipped.

``NDKD_GPU_TESTS_ON=cpu`` runs on a CPU what does not need CUDA itself, to try the tests.
"""

import os
from pathlib import Path

import pytest
import torch

from tests.losses.conftest import built, inputs_of, tensors, value_and_grad  # noqa: F401

ON_CPU = os.environ.get("NDKD_GPU_TESTS_ON") == "cpu"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    no_gpu = pytest.mark.skip(reason="needs a GPU: torch.cuda.is_available() is False")
    for item in items:
        if item.path.is_relative_to(HERE) and not (ON_CPU and item.get_closest_marker("cuda") is None):
            item.add_marker(no_gpu)


def pytest_configure(config):
    config.addinivalue_line("markers", "cuda: asks CUDA itself, so that no CPU can stand in")


@pytest.fixture(scope="session")
def device():
    """Where the tests of this folder run."""
    return torch.device("cpu" if ON_CPU else "cuda")


@pytest.fixture(scope="session")
def accelerator():
    """The same, as the trainer calls it."""
    return "cpu" if ON_CPU else "gpu"


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Products in float32, not in TF32, and sums in one order."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
