"""Several teachers, asked together."""

import torch

from ndkd.models.ensemble import Ensemble, Projectors
from ndkd.models.features import FeatureExtractor
from ndkd.models.output import EnsembleOutput, ModelOutput
from tests.distillation.watching import Small


def test_logits_are_the_mean_in_float32():
    logits = torch.tensor([[[1.0, 2.0]], [[3.0, 6.0]], [[5.0, 1.0]]])
    outputs = {name: ModelOutput(rows.bfloat16(), rows) for name, rows in zip("abc", logits, strict=True)}
    assert torch.equal(EnsembleOutput(outputs).logits, torch.tensor([[3.0, 3.0]]))
    assert EnsembleOutput(outputs).logits.dtype == torch.float32


def test_each_answers_for_itself():
    teachers = {name: FeatureExtractor(Small(3)).eval() for name in ("a", "resnet-8")}
    images = torch.rand(2, 3, 8, 8)
    output = Ensemble(teachers)(images)
    assert {name: torch.equal(output.each[name].logits, teacher(images).logits) for name, teacher in teachers.items()}
    assert list(output.each) == ["a", "resnet-8"]


def test_projectors():
    projectors = Projectors(4, {"a": 4, "b": 6}, std=0.01).eval()
    embedding = torch.rand(3, 4)
    projected = projectors(embedding)
    assert projected["a"] is embedding
    assert projected["b"].shape == (3, 6)
    assert projectors["b"][2].weight.std() < 0.02
