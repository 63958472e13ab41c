"""ReviewKD on the paper's six pairs: teacher and student tap as many maps, and the student learns from them."""

import pytest
import torch

from ndkd.losses import ReviewKDLoss
from ndkd.models import FeatureExtractor, build_model
from ndkd.models.teacher import freeze

# Taps, and the channels of their maps. The last map is the embedding: its channels are the projector's widths.
TEACHERS = {
    "resnet56": (["layer1.8.preact", "layer2.8.preact", "layer3.8.preact", "avgpool"], [16, 32, 64, 64]),
    "resnet32x4": (["layer1.4.preact", "layer2.4.preact", "layer3.4.preact", "avgpool"], [64, 128, 256, 256]),
    "wrn_40_2": (["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1", "avgpool"], [32, 64, 128, 128]),
    "resnet50": (
        ["layer1.2.preact", "layer2.3.preact", "layer3.5.preact", "layer4.2.preact", "avgpool"],
        [256, 512, 1024, 2048, 2048],
    ),
}
STUDENTS = {
    "resnet20": (["layer1", "layer2", "layer3", "avgpool"], [16, 32, 64, 64]),
    "resnet8x4": (["layer1", "layer2", "layer3", "avgpool"], [64, 128, 256, 256]),
    "wrn_40_1": (["block1", "block2", "block3", "avgpool"], [16, 32, 64, 64]),
    "mobilenet_v2_half": (["blocks.1", "blocks.2", "blocks.4", "blocks.6", "avgpool"], [12, 16, 48, 160, 1280]),
    "shufflenet_v1": (["layer1", "layer2", "layer3", "avgpool"], [240, 480, 960, 960]),
    "shufflenet_v2": (["layer1", "layer2", "layer3", "avgpool"], [116, 232, 464, 1024]),
}
PAIRS = zip(["resnet56", "resnet32x4", "wrn_40_2", "resnet50", "resnet32x4", "resnet32x4"], STUDENTS, strict=True)


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_reviewkd(teacher, student):
    torch.manual_seed(0)
    images, outputs = torch.rand(2, 3, 32, 32), []
    models = build_model(f"cifar/{student}", 5), freeze(build_model(f"cifar/{teacher}", 5))
    for model, (taps, channels) in zip(models, (STUDENTS[student], TEACHERS[teacher]), strict=True):
        extractor = FeatureExtractor(model, taps=taps)
        output = extractor(images)
        assert [values.shape[1] for values in output.feature_maps] == channels
        assert output.feature_maps[-1].shape == (2, extractor.embedding_dim, 1, 1)
        outputs.append(output)

    loss = ReviewKDLoss()
    loss.build(*outputs)
    value = loss(*(output.feature_maps for output in outputs))
    assert value.isfinite()
    value.backward()
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())
    first = next(models[0].parameters()).grad
    assert first.isfinite().all()
    assert first.any()
