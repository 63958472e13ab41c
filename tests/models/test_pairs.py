"""ReviewKD on the paper's six pairs: teacher and student tap as many maps, and the student learns from them."""

import pytest
import torch
import yaml

from ndkd.losses import ReviewKDLoss
from ndkd.models import FeatureExtractor, build_model
from ndkd.models.teacher import freeze
from tests.command import REPOSITORY

# Channels of the tapped maps. The last map is the embedding: its channels are the projector's widths.
PAIRS = {
    "r56_r20": {"teacher": [16, 32, 64, 64], "student": [16, 32, 64, 64]},
    "r32x4_r8x4": {"teacher": [64, 128, 256, 256], "student": [64, 128, 256, 256]},
    "wrn402_wrn401": {"teacher": [32, 64, 128, 128], "student": [16, 32, 64, 64]},
    "r50_mv2": {"teacher": [256, 512, 1024, 2048, 2048], "student": [12, 16, 48, 160, 1280]},
    "r32x4_sv1": {"teacher": [64, 128, 256, 256], "student": [240, 480, 960, 960]},
    "r32x4_sv2": {"teacher": [64, 128, 256, 256], "student": [116, 232, 464, 1024]},
}


@pytest.mark.parametrize("pair", PAIRS)
def test_reviewkd(pair):
    torch.manual_seed(0)
    config = yaml.safe_load((REPOSITORY / f"configs/cifar100/{pair}/kd++.yaml").read_text())["model"]["init_args"]
    images, outputs = torch.rand(2, 3, 32, 32), []
    models = {role: build_model(config[role]["name"], 5) for role in ("student", "teacher")}
    freeze(models["teacher"])
    for role, model in models.items():
        extractor = FeatureExtractor(model, taps=config[role]["taps"])
        output = extractor(images)
        assert [values.shape[1] for values in output.feature_maps] == PAIRS[pair][role]
        assert output.feature_maps[-1].shape == (2, extractor.embedding_dim, 1, 1)
        outputs.append(output)

    loss = ReviewKDLoss()
    loss.build(*outputs)
    value = loss(*(output.feature_maps for output in outputs))
    assert value.isfinite()
    value.backward()
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())
    first = next(models["student"].parameters()).grad
    assert first.isfinite().all()
    assert first.any()
