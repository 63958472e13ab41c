"""Histograms of norms and angles, epoch by epoch."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ndkd.callbacks import FeatureStatistics
from ndkd.callbacks.feature_statistics import ANGLE_EDGES, NORM_EDGES
from ndkd.runs import Run


@pytest.fixture
def fitted(fit, make_module, terms, tmp_path):
    """Fit on tiny images with the statistics kept: module, data, run."""

    def run(losses, data, narrow=False, **options):
        module, kept = make_module(losses, narrow), Run(tmp_path)
        fit(module, FeatureStatistics(kept), data=data, **options)
        return module, kept

    return run


def histogram(values, edges):
    return np.histogram(values.detach().double().numpy().clip(edges[0], edges[-1]), edges)[0]


def off_by(counts, wanted):
    """How many values lie in other bins: on an edge, rounding decides."""
    return np.abs(counts - wanted).sum()


@pytest.mark.parametrize("narrow", [False, True])
def test_histograms_are_those_of_the_evaluation_set(fitted, terms, tiny_data, narrow):
    data = tiny_data(val_size=19)
    module, run = fitted(terms("ce", "nd"), data, narrow, epochs=2)
    images, target = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    module.eval()
    output = module.forward_pair((images, target))
    angle = F.cosine_similarity(output.student.projected, module.class_means[target]).acos().rad2deg()
    wanted = {
        "student_norm": histogram(output.student.embedding.norm(dim=1), NORM_EDGES),
        "teacher_norm": histogram(output.teacher.embedding.norm(dim=1), NORM_EDGES),
        "angle": histogram(angle, ANGLE_EDGES),
    }
    if narrow:
        wanted["projected_norm"] = histogram(output.student.projected.norm(dim=1), NORM_EDGES)
    first, last = run.read_epoch("features", 0), run.read_epoch("features", 1)
    assert last.keys() == first.keys() == wanted.keys() | {"norm_edges", "angle_edges"}
    for name, counts in wanted.items():
        assert last[name].sum() == 19
        assert off_by(last[name], counts) <= 2, name
    assert np.array_equal(first["teacher_norm"], last["teacher_norm"])  # the frozen teacher is asked once
    assert not np.array_equal(first["student_norm"], last["student_norm"])


def test_a_student_by_itself_has_norms_alone(fitted, terms, tiny_data):
    _, run = fitted(terms("ce"), tiny_data())
    assert run.read_epoch("features", 0).keys() == {"norm_edges", "angle_edges", "student_norm"}


def test_the_teacher_embeds_the_evaluation_set_once(fitted, terms, tiny_data, monkeypatch):
    from ndkd.distillation import DistillationModule

    seen, original = [], DistillationModule.teacher_embeddings
    monkeypatch.setattr(
        DistillationModule, "teacher_embeddings", lambda self, batch: seen.append(0) or original(self, batch)
    )
    fitted(terms("ce", "kd"), tiny_data(val_size=16), epochs=3)
    assert len(seen) == 2


def test_nothing_is_kept_without_validation(fitted, terms, tiny_data):
    _, run = fitted(terms("ce"), tiny_data(), limit_val_batches=0)
    assert not run.path.joinpath("features").exists()
