"""What is said of a run's embeddings, against the same numbers in plain torch."""

import doctest

import numpy as np
import pytest
import torch
import yaml
from tiny_data import TinyData

from ndkd import analysis
from ndkd.data import DigitsDataModule
from ndkd.distillation import StepOutput
from ndkd.errors import NdkdError
from ndkd.models import ModelOutput
from ndkd.runs import Run

ND = ("ce", "kd", "nd")


class ValidationOnly(TinyData):
    """No images to test on."""

    test_dataloader = predict_dataloader = TinyData.__mro__[1].test_dataloader


@pytest.fixture
def make_run(tmp_path, fit, make_module, terms, teacher_checkpoint):
    """Train a module for one epoch on tiny images into a run folder: the folder and the module."""

    def make(name, *losses, data="tiny_data.TinyData", teacher=teacher_checkpoint, **options):
        module = make_module(terms(*losses), **options)
        trainer = fit(module)
        teacher = {"name": "cifar/resnet8", "checkpoint": str(teacher), "taps": ["layer1"]} if len(losses) > 1 else None
        run = Run(tmp_path / name)
        run.start(yaml.safe_dump({"model": {"init_args": {"teacher": teacher}}, "data": {"class_path": data}}), 0)
        trainer.save_checkpoint(run.checkpoint("last"))
        return run.path, module.eval()

    return make


def pixels():
    """The tiny test images (N, c, h, w) in [0, 1]."""
    return torch.from_numpy(TinyData().val_images).permute(0, 3, 1, 2) / 255


@torch.no_grad()
def penultimate(extractor):
    """Logits and what enters the last layer, without our hooks: the images are normalised here."""
    found = []
    handle = extractor.model.fc.register_forward_pre_hook(lambda layer, inputs: found.append(inputs[0]))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (TinyData.mean, TinyData.std))
    logits = extractor.model((pixels() - mean) / std)
    handle.remove()
    return logits, found[0]


def degrees(a, b):
    return np.rad2deg(np.arccos(float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))))


@pytest.mark.parametrize("narrow", [True, False])
def test_embeddings_are_those_of_the_models_that_were_trained(make_run, narrow):
    folder, module = make_run("kd++", *ND, narrow=narrow)
    run = analysis.embed(folder)
    logits, embedding = penultimate(module.student)
    assert embedding.shape == (10, 16 if narrow else 64)
    torch.testing.assert_close(run.student.embedding, embedding)
    torch.testing.assert_close(run.student.logits, logits)
    if narrow:
        norm, _, linear = module.projector
        whitened = (embedding - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        torch.testing.assert_close(run.student.projected, whitened @ linear.weight.T + linear.bias)
    else:
        assert torch.equal(run.student.projected, run.student.embedding)
    # its BatchNorms are folded in training, here they are not
    logits, embedding = penultimate(module.teacher)
    torch.testing.assert_close(run.teacher.embedding, embedding, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run.teacher.logits, logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(run.class_means, module.class_means)
    assert run.target.tolist() == list(range(10))


def test_a_teacher_whose_file_is_gone_is_left_out(make_run, tmp_path):
    runs = analysis.embed_runs({"kd++": make_run("kd++", *ND, teacher=tmp_path / "gone.pth")[0]})
    assert list(runs) == ["kd++"]
    assert runs["kd++"].teacher is None
    assert runs["kd++"].class_means is not None


def test_the_teacher_is_the_first_of_the_runs(make_run):
    runs = analysis.embed_runs({"alone": make_run("student", "ce")[0], "kd++": make_run("kd++", *ND)[0]})
    assert list(runs) == ["teacher", "alone", "kd++"]
    assert runs["alone"].teacher is None
    assert runs["alone"].class_means is None
    assert torch.equal(runs["teacher"].student.embedding, runs["kd++"].teacher.embedding)


def test_without_test_images_the_validation_images_are_shown(make_run):
    folder, module = make_run("kd", "ce", "kd", data="test_analysis.ValidationOnly")
    torch.testing.assert_close(analysis.embed(folder).student.logits, penultimate(module.student)[0])


def test_tables_have_the_numbers_of_plain_torch(make_run):
    runs = analysis.embed_runs({"alone": make_run("student", "ce")[0], "kd++": make_run("kd++", *ND, narrow=True)[0]})
    means = runs["kd++"].class_means
    norms, angles = analysis.norms(runs), analysis.angles(runs, means)
    assert list(norms.columns) == ["run", "image", "target", "prediction", "raw_norm", "projected_norm"]
    assert len(norms) == len(angles) == 3 * 10
    for number in range(30):
        name, k = ("teacher", "alone", "kd++")[number // 10], number % 10
        student, norm, angle = runs[name].student, norms.iloc[number], angles.iloc[number]
        for row in (norm, angle):
            assert (row["run"], row["image"], row["target"]) == (name, k, k)
            assert row["prediction"] == student.logits[k].argmax()
        assert norm["raw_norm"] == pytest.approx(student.embedding[k].square().sum().sqrt().item())
        assert norm["projected_norm"] == pytest.approx(student.projected[k].square().sum().sqrt().item())
        assert angle["angle"] == pytest.approx(degrees(student.projected[k], means[k]), abs=1e-5)
        others = [degrees(student.projected[k], means[other]) for other in range(10) if other != k]
        assert angle["other_angle"] == pytest.approx(min(others), abs=1e-5)
    own = analysis.angles({"kd++": runs["kd++"]})
    assert np.array_equal(own["angle"], angles["angle"][20:])


def test_a_plane_is_that_of_the_class_means():
    random = torch.Generator().manual_seed(0)
    means, embedding = torch.randn(5, 8, generator=random), torch.randn(20, 8, generator=random)
    run = StepOutput(ModelOutput(torch.zeros(20, 5), embedding), torch.arange(20) % 5)
    points, seen = analysis.plane({"run": run}, means)
    axes = torch.linalg.svd((means - means.mean(dim=0)).double()).Vh[:2]
    for found, vectors in ((points, embedding), (seen, means)):
        wanted = (vectors - means.mean(dim=0)).double() @ axes.T
        signs = torch.sign(torch.tensor(seen.to_numpy()) * ((means - means.mean(dim=0)).double() @ axes.T))[0]
        assert np.allclose(found[["x", "y"]], wanted * signs, atol=1e-5)
    assert points["target"].tolist() == run.target.tolist()
    own = analysis.means_of(run)
    assert torch.allclose(own[3], embedding[[3, 8, 13, 18]].sum(dim=0) / 4)


def test_class_means_that_are_missing_or_of_another_width():
    runs = {"alone": StepOutput(ModelOutput(torch.zeros(3, 10), torch.ones(3, 16)), torch.arange(3))}
    with pytest.raises(NdkdError, match="^alone has no class means, for none of its losses uses them: give those of"):
        analysis.angles(runs)
    message = "^alone: embeddings of width 16 and class means of width 64 cannot be compared; leave it out, or train"
    for table in (analysis.angles, analysis.plane):
        with pytest.raises(NdkdError, match=message):
            table(runs, torch.rand(10, 64))


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(NdkdError, match="run folder .*nowhere does not exist"):
        analysis.embed(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {}},
        {"state_dict": {}, "hyper_parameters": {"student": None}},
        {
            "state_dict": {},
            "hyper_parameters": {"student": {"name": "m", "classifier": ["roi_heads.box_predictor.fc"]}},
        },
        {"fc.weight": torch.ones(2, 2)},
    ],
)
def test_a_checkpoint_that_is_not_a_classifiers_of_ours(tmp_path, content):
    run = Run(tmp_path / "run")
    run.start("model: {init_args: {}}", 0)
    run.checkpoints.mkdir()
    torch.save(content, run.checkpoint("last"))
    with pytest.raises(NdkdError, match=r"^checkpoint .*last\.ckpt is none of a classifier that ndkd fit has built"):
        analysis.embed(run.path)
    with pytest.raises(NdkdError, match=r"^checkpoint .*best\.ckpt does not exist"):
        analysis.embed(run.path, "best")


def test_data_by_its_short_name(tmp_path):
    (tmp_path / "config.yaml").write_text("data: {class_path: DigitsDataModule, init_args: {train_size: 40}}")
    data = analysis.load_data(tmp_path)
    assert isinstance(data, DigitsDataModule)
    assert data.train_size == 40
    (tmp_path / "config.yaml").write_text("data: {class_path: DigitDataModule}")
    with pytest.raises(NdkdError, match="there is no class DigitDataModule; did you mean DigitsDataModule"):
        analysis.load_data(tmp_path)


@pytest.fixture
def outputs():
    """A teacher, a run without and a run with a projector, of 20 images."""

    def output(seed, width, scale):
        random = torch.Generator().manual_seed(seed)
        embedding, projected = (torch.rand(20, w, generator=random) * s for w, s in ((width, 1), (8, scale)))
        logits = torch.rand(20, 3, generator=random)
        return StepOutput(ModelOutput(logits, embedding, projected if scale > 1 else None), torch.arange(20) % 3)

    return {"teacher": output(0, 8, 1), "alone": output(1, 8, 1), "kd++": output(2, 4, 10)}


def test_norms_are_shown_on_a_logarithmic_axis_and_the_teacher_in_each_row(outputs):
    figure = analysis.distributions(analysis.norms(outputs))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["alone", "kd++"]
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    assert [len(axes.patches) for axes in figure.axes] == [2, 3]  # the projected where they differ from the raw
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["teacher, norm", "student, norm", "student, norm after the projector"]
    for axes in figure.axes:
        assert axes.get_xlim()[0] < min(analysis.norms(outputs)["raw_norm"])


def test_angles_are_shown_to_the_own_and_to_the_nearest_other_mean(outputs):
    table = analysis.angles(outputs, torch.eye(3, 8))
    figure = analysis.distributions(table)
    assert [len(axes.patches) for axes in figure.axes] == [4, 4]
    # of the first row the third: bars of one degree, as NumPy counts them
    wanted = np.histogram(table[table["run"] == "alone"]["angle"], np.linspace(0, 90, 91))[0]
    drawn = figure.axes[0].patches[2].get_xy()[1:180:2, 1]
    assert np.allclose(drawn, wanted * 100 / 20)
    teacher_only = analysis.distributions(table[table["run"] == "teacher"])
    assert [axes.get_title(loc="left") for axes in teacher_only.axes] == ["teacher"]


def test_a_scatter_has_a_panel_for_each_run_and_the_numbers_of_the_classes(outputs):
    points, means = analysis.plane(outputs, torch.rand(3, 8))
    figure = analysis.scatter(points, means)
    assert [axes.get_title() for axes in figure.axes] == list(outputs)
    for axes, (_, run) in zip(figure.axes, points.groupby("run", sort=False), strict=True):
        assert np.allclose(axes.collections[0].get_offsets(), run[["x", "y"]])
        assert {text.get_text(): text.get_position() for text in axes.texts} == {
            str(k): (means["x"][k], means["y"][k]) for k in range(3)
        }


def test_examples():
    results = doctest.testmod(analysis)
    assert results.attempted
    assert results.failed == 0
