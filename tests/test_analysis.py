"""Norms, angles and projections of trained runs, against plain torch."""

import doctest
import math
import shutil
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch.nn import functional as F

from ndkd import analysis
from ndkd.analysis import angles_to, distribution_figure, embed, load_run, measure, projection_figure
from ndkd.data import DigitsDataModule
from ndkd.errors import NdkdError
from ndkd.models import ModelConfig, build_model
from ndkd.runs import Run
from tests.command import SHORT, ndkd

ONE_EPOCH = [*SHORT, "--trainer.max_epochs=1"]
WIDTHS = [8, 8, 8, 16]


@pytest.fixture(scope="module")
def narrow(workplace):
    """A KD++ run whose student is 16 wide, its teacher 64, tested on all test images."""
    model = f"--model.init_args.student.kwargs={{widths: {WIDTHS}}}"
    options = [*ONE_EPOCH, model, "--trainer.limit_test_batches=1.0", "--run_dir=narrow"]
    assert ndkd("fit", "--config", "configs/digits/kd++.yaml", *options)[0] == 0
    return Run("narrow")


@pytest.fixture(scope="module")
def loaded(narrow):
    return load_run(narrow.path)


@pytest.fixture(scope="module")
def alone(workplace):
    """The teacher's own run: a model trained alone."""
    return load_run("runs/digits/teacher")


@pytest.fixture(scope="module")
def alone_embedded(alone):
    return embed(alone[0].student, alone[1])


@pytest.fixture(scope="module")
def embedded(loaded):
    module, data = loaded
    return {"student": embed(module.student, data, module.projector), "teacher": embed(module.teacher, data)}


@pytest.fixture(scope="module")
def measured(loaded, embedded):
    return pd.concat([measure(name, values, loaded[0].class_means) for name, values in embedded.items()])


@pytest.fixture
def copied(narrow, tmp_path):
    """A copy of the run to spoil."""
    return Run(shutil.copytree(narrow.path, tmp_path / "copied"))


def weights_of(run):
    return torch.load(run.checkpoint("last"), weights_only=True)["state_dict"]


def part(weights, prefix):
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def plain_embedding(model, images):
    """What enters the last layer, and what leaves it, without our extractor."""
    seen = []
    handle = model.fc.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    data = DigitsDataModule
    channels = (1, 3, 1, 1)
    with torch.no_grad():
        logits = model.eval()((images - torch.tensor(data.mean).view(channels)) / torch.tensor(data.std).view(channels))
    handle.remove()
    return logits, seen[0]


# ---- loading -------------------------------------------------------------------------------------------------------


def test_a_run_is_built_again_from_its_folder(narrow, loaded):
    module, data = loaded
    weights = weights_of(narrow)
    assert isinstance(data, DigitsDataModule)
    assert not any(part.training for part in module.modules())
    assert torch.equal(module.class_means, weights["class_means"])
    assert torch.equal(module.projector[2].weight, weights["projector.2.weight"])
    assert (module.student.embedding_dim, module.teacher.embedding_dim) == (16, 64)


def test_of_a_model_trained_alone_there_is_the_student_only(alone):
    module, _ = alone
    assert module.projector is module.class_means is module.teacher is None


def test_either_checkpoint_can_be_loaded(narrow, copied):
    content = torch.load(narrow.checkpoint("last"), weights_only=True)
    content["state_dict"]["class_means"] += 1
    torch.save(content, copied.checkpoint("best"))
    last, best = (load_run(copied.path, name)[0].class_means for name in ("last", "best"))
    assert torch.allclose(best - last, torch.ones(()))


def test_without_its_checkpoint_there_is_no_teacher(copied):
    config = yaml.safe_load(copied.config.read_text())
    config["model"]["init_args"]["teacher"]["checkpoint"] = "gone.ckpt"
    copied.config.write_text(yaml.safe_dump(config))
    assert load_run(copied.path)[0].teacher is None


def test_a_short_name_of_the_data_will_do(copied):
    config = yaml.safe_load(copied.config.read_text())
    config["data"] = {"class_path": "DigitsDataModule", "init_args": {"batch_size": 7}}
    copied.config.write_text(yaml.safe_dump(config))
    assert load_run(copied.path)[1].batch_size == 7


def test_no_such_run(workplace):
    with pytest.raises(NdkdError, match="run folder runs/none does not exist"):
        load_run("runs/none")


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {}},
        {"hyper_parameters": {"lr": 0.1}, "state_dict": {}},
        {
            "hyper_parameters": {"student": {"name": "detector/resnet18"}, "num_classes": 3, "class_names": None},
            "state_dict": {"student.model.roi_heads.box_head.fc6.weight": torch.zeros(1)},
        },
    ],
    ids=["weights alone", "another program's", "a detector's"],
)
def test_a_checkpoint_of_something_else(copied, content):
    torch.save(content, copied.checkpoint("last"))
    with pytest.raises(NdkdError, match=r"last\.ckpt is not a classifier's from ndkd fit"):
        load_run(copied.path)


# ---- embeddings ----------------------------------------------------------------------------------------------------


def test_embeddings_are_those_of_plain_torch(narrow, loaded, embedded):
    weights, data = weights_of(narrow), loaded[1]
    images, target = map(torch.cat, zip(*data.test_dataloader(), strict=True))
    student = build_model("cifar/resnet8", 10, widths=WIDTHS)
    student.load_state_dict(part(weights, "student.model."))
    logits, embedding = plain_embedding(student, images)
    own = part(weights, "projector.")
    normed = (embedding - own["0.running_mean"]) / (own["0.running_var"] + 1e-5).sqrt() * own["0.weight"] + own[
        "0.bias"
    ]
    found = embedded["student"]
    assert torch.equal(found["target"], target)
    assert len(target) == 1000
    torch.testing.assert_close(found["logits"], logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["embedding"], embedding, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["projected"], normed @ own["2.weight"].T + own["2.bias"], rtol=1e-4, atol=1e-4)


def test_the_teacher_is_that_of_its_own_run(alone_embedded, embedded):
    found, own = embedded["teacher"], alone_embedded
    for name in ("logits", "embedding", "projected"):
        torch.testing.assert_close(found[name], own[name], rtol=1e-4, atol=1e-4)


def test_without_a_projector_the_projected_embedding_is_the_embedding(embedded):
    assert torch.equal(embedded["teacher"]["projected"], embedded["teacher"]["embedding"])


def test_bytes_are_images_too():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    model = ModelConfig("cifar/resnet8").build(10, None, None).eval()
    batches = [[(kind, torch.arange(4))] for kind in (images, images / 255)]
    found = [embed(model, SimpleNamespace(test_dataloader=lambda batch=batch: batch)) for batch in batches]
    torch.testing.assert_close(found[0]["logits"], found[1]["logits"])


# ---- measurements --------------------------------------------------------------------------------------------------


def test_a_row_per_image_and_run(measured):
    assert measured.groupby("run", sort=False).size().to_dict() == {"student": 1000, "teacher": 1000}
    assert measured["image"].tolist() == [*range(1000)] * 2


def test_predictions_are_those_that_ndkd_fit_tested(narrow, measured):
    student = measured[measured["run"] == "student"]
    accuracy = (student["prediction"] == student["target"]).mean()
    assert accuracy == pytest.approx(narrow.status()["results"]["last"]["test/acc1"], abs=1e-6)


def test_norms_and_angles_are_those_of_plain_arithmetic(loaded, embedded, measured):
    means = loaded[0].class_means.double().tolist()
    rows = measured[measured["run"] == "student"]
    for k in (0, 1, 500, 999):
        row, vector = rows.iloc[k], embedded["student"]["projected"][k].double().tolist()
        angles = [
            math.degrees(
                math.acos(sum(a * b for a, b in zip(vector, mean, strict=True)) / math.hypot(*vector) / length)
            )
            for mean, length in ((mean, math.hypot(*mean)) for mean in means)
        ]
        assert row["norm"] == pytest.approx(math.hypot(*embedded["student"]["embedding"][k].tolist()), rel=1e-5)
        assert row["projected_norm"] == pytest.approx(math.hypot(*vector), rel=1e-5)
        assert row["angle"] == pytest.approx(angles.pop(row["target"]), abs=0.01)
        assert row["other_angle"] == pytest.approx(min(angles), abs=0.01)


def test_the_plane_is_that_in_which_the_directions_of_the_class_means_differ_most(loaded, embedded, measured):
    means = F.normalize(loaded[0].class_means.double(), dim=1)
    _, _, axes = torch.linalg.svd(means - means.mean(dim=0), full_matrices=False)
    expected = (F.normalize(embedded["student"]["projected"].double(), dim=1) - means.mean(dim=0)) @ axes[:2].T
    found = measured[measured["run"] == "student"][["x", "y"]].to_numpy()
    np.testing.assert_allclose(abs(found), expected.abs(), atol=1e-4)


def test_class_means_of_another_run_serve_a_model_trained_alone(alone_embedded, loaded, measured):
    own = measure("alone", alone_embedded, loaded[0].class_means)
    teacher = measured[measured["run"] == "teacher"]
    np.testing.assert_allclose(own["angle"], teacher["angle"], atol=0.1)


def test_a_run_without_class_means_needs_another_s(alone, embedded):
    with pytest.raises(
        NdkdError, match="run alone: wanted class means 64 wide, got None; take those of a run with NDL"
    ):
        measure("alone", embedded["teacher"], alone[0].class_means)


def test_embeddings_of_another_width_cannot_be_compared(loaded):
    module, data = loaded
    with pytest.raises(NdkdError, match="run raw: wanted class means 16 wide, got 64"):
        measure("raw", embed(module.student, data), module.class_means)


def test_an_embedding_of_length_0_is_at_right_angles():
    assert angles_to(torch.eye(3), torch.zeros(1, 3)).tolist() == [[90, 90, 90]]


# ---- figures -------------------------------------------------------------------------------------------------------


def test_distributions_hold_every_image_of_every_run(measured):
    measured = measured.reset_index(drop=True)
    measured.loc[0, "norm"] = 0.0  # a dead embedding
    figure = distribution_figure(measured, ["norm", "projected_norm"], log=True)
    assert [axis.get_xlabel() for axis in figure.axes] == ["norm", "projected norm"]
    assert {axis.get_xscale() for axis in figure.axes} == {"log"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["student", "teacher"]
    for axis in figure.axes:
        for outline in axis.patches:  # a staircase, each step from its left to its right edge
            assert outline.get_xy()[1:-1:2, 1].sum() == 1000


def test_angles_are_drawn_on_a_linear_axis(measured):
    figure = distribution_figure(measured, ["angle"])
    assert figure.axes[0].get_xscale() == "linear"


def test_projection_shows_a_panel_per_run_with_all_class_means(loaded, measured):
    figure = projection_figure(measured, loaded[0].class_means)
    assert [axis.get_title() for axis in figure.axes] == ["student", "teacher"]
    for axis, (_, rows) in zip(figure.axes, measured.groupby("run", sort=False), strict=True):
        np.testing.assert_allclose(axis.collections[0].get_offsets(), rows[["x", "y"]])
        assert [text.get_text() for text in axis.texts] == [str(k) for k in range(10)]
    assert len(projection_figure(measured[measured["run"] == "teacher"], loaded[0].class_means).axes) == 1


def test_no_figure_stays_open(loaded, measured):
    before = plt.get_fignums()
    distribution_figure(measured, ["norm"])
    projection_figure(measured, loaded[0].class_means)
    assert plt.get_fignums() == before


def test_examples():
    assert doctest.testmod(analysis).failed == 0
