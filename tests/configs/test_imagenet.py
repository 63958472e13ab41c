"""The page's commands for the paper's ImageNet table: the published recipes, which are built and take steps."""

import re
import sys
from string import Template
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ndkd.configuration.arguments import default_run_dir, values_of
from ndkd.distillation.building import build_for_training, build_student, dry_forward
from ndkd.distillation.module import DistillationModule
from ndkd.errors import NdkdError
from ndkd.models import FeatureExtractor, build_model
from ndkd.models.projector import Projector
from ndkd.models.teacher import fold_batchnorm, freeze
from tests.command import REPOSITORY, ndkd
from tests.configs.recipes import read, resolved, rows
from tests.pages import section, shipped

SECTION = "paper-tables", "ImageNet"
WNIDS = ("n01443537", "n01440764")
R18, MV1 = "torchvision/resnet18", "imagenet/mobilenet_v1"
VIT = "timm/vit_{}_patch16_224.augreg_in21k_ft_in1k"
WIDTHS = {R18: 512, MV1: 1024, "timm/deit_base_distilled_patch16_224": 768}  # of the students' embeddings
AFTER = [*(f"layer{stage}" for stage in (1, 2, 3, 4)), "avgpool"]
MV1_TAPS = [*(f"blocks.{block}.preact" for block in (2, 4, 10, 12)), "avgpool"]
BLOCKS = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}


def before(name):
    """The maps of a ResNet that enter the last activation of each stage."""
    blocks = BLOCKS[name.partition(".")[0].removeprefix("torchvision/resnet")]
    return [*(f"layer{stage}.{number - 1}.relu:input" for stage, number in enumerate(blocks, 1)), "avgpool"]


class Pair(NamedTuple):
    """Names, the weights that differ by pair, and the width of the teacher's embedding."""

    teacher: str
    student: str
    kdpp: tuple  # kd, nd
    dkdpp: tuple  # alpha, beta, nd
    reviewkdpp: tuple | None  # reviewkd, nd, middle width
    width: int

    @property
    def has_projector(self):
        return self.width != WIDTHS[self.student]


PAIRS = {
    "r34_r18": Pair("torchvision/resnet34.IMAGENET1K_V1", R18, (2.5, 1), (0.8, 0.5, 1), (1, 3, 512), 512),
    "r50_r18": Pair("torchvision/resnet50.IMAGENET1K_V1", R18, (4, 1), (0.6, 0.5, 2), (3, 2, 512), 2048),
    "r101_r18": Pair("torchvision/resnet101.IMAGENET1K_V1", R18, (3.5, 4), (0.8, 0.5, 1), (3, 1, 512), 2048),
    "r152_r18": Pair("torchvision/resnet152.IMAGENET1K_V1", R18, (4, 2), (1, 1, 1), (3, 1, 512), 2048),
    "r50_mv1": Pair("torchvision/resnet50.IMAGENET1K_V1", MV1, (4, 1), (0.8, 1, 1), (8, 4, 256), 2048),
    "vits_r18": Pair(VIT.format("small"), R18, (1.5, 1), (1, 1, 2), None, 384),
    "vitb_r18": Pair(VIT.format("base"), R18, (2, 1), (1.4, 0.5, 2), None, 768),
}
REVIEW, REVIEWPP, ALONE = "ReviewKD, not from ViTs", "ReviewKD++, not from ViTs", "student alone"
DEIT, TEACHER = "configs/imagenet/regnety_deit/deit++.yaml", "configs/imagenet/teacher.yaml"
ROWS = {
    (name, row): command
    for (name, row), command in rows(*SECTION).items()
    if row not in (REVIEW, REVIEWPP) or PAIRS[name].reviewkdpp
}


def terms(row, pair):
    """The terms: class, arguments, weight, warm-up and the number of its first epoch."""
    ce, to_mv1 = {"ce": ("CrossEntropyLoss", {}, 0.5 if row == "KD" else 1, 0, 0)}, pair.student == MV1
    if row == "KD++":
        kd, nd = pair.kdpp
        return ce | {"kd": ("KDLoss", {"temperature": 1}, kd, 5, 0), "nd": ("NDLoss", {}, nd, 0, 0)}
    if row == "DKD++":
        alpha, beta, nd = pair.dkdpp
        dkd = {"alpha": alpha, "beta": beta, "temperature": 1}
        return ce | {"dkd": ("DKDLoss", dkd, 1, 5, 0), "nd": ("NDLoss", {}, nd, 5, 0)}
    if row == REVIEWPP:
        review, nd, middle = pair.reviewkdpp
        review = ("ReviewKDLoss", {"max_mid_channels": middle}, review, 5, 0)
        return ce | {"reviewkd": review, "nd": ("NDLoss", {}, nd, 0, 0)}
    # mdistiller's weights for ResNet-34 → ResNet-18, which stand for all of this student, and ResNet-50 → MobileNetV1
    if row == "KD":
        return ce | {"kd": ("KDLoss", {"temperature": 1}, 0.5, 0, 0)}
    if row == "DKD":
        return ce | {"dkd": ("DKDLoss", {"alpha": 1, "beta": 2 if to_mv1 else 0.5, "temperature": 1}, 1, 1, 1)}
    if row == REVIEW:
        middle = {"max_mid_channels": pair.reviewkdpp[2]}
        return ce | {"reviewkd": ("ReviewKDLoss", middle, 8 if to_mv1 else 1, 1, 1)}
    return ce


def taps(row, pair):
    """Of student and teacher: the published ReviewKD++ reads ResNets after the activation, mdistiller before it."""
    if row not in (REVIEW, REVIEWPP):
        return None, None
    if row == REVIEW:
        return MV1_TAPS if pair.student == MV1 else before(pair.student), before(pair.teacher)
    return MV1_TAPS if pair.student == MV1 else AFTER, AFTER


def starts(row, pair):
    """The deviations of the linear layers of student and projector, None as torch draws them."""
    drawn = row in ("KD++", "DKD++") and pair.has_projector
    return 0.01 if drawn and pair.student == R18 else None, 0.01 if drawn else None


def recipe(row, pair):
    """What the paper and mdistiller say, in the form of :func:`recipes.read`."""
    is_alone, is_plain = row == ALONE, row in ("KD", "DKD", REVIEW)
    return {
        "epochs": 100,
        "student": pair.student,
        "teacher": None if is_alone else pair.teacher,
        "weights": None if is_alone else True,
        "taps": taps(row, pair),
        "starts": starts(row, pair),
        "losses": terms(row, pair),
        "inputs": {"ce": ["student.logits", "target"]},
        "optimizer": ("torch.optim.SGD", 0.1 if row == REVIEW else 0.2, 0.9, not is_plain, 1e-4),
        "lr_scheduler": ("torch.optim.lr_scheduler.MultiStepLR", [30, 60, 90], 0.1),
        "data": ("ndkd.data.ImageNetDataModule", 256 if row == REVIEW else 512, 224, "bilinear", None, 0, 0, 0),
    }


DEIT_RECIPE = {
    "epochs": 300,
    "student": "timm/deit_base_distilled_patch16_224",
    "teacher": "timm/regnety_160.deit_in1k",
    "weights": True,
    "taps": (None, None),
    "starts": (0.01, 0.01),
    "losses": {
        "ce": ("CrossEntropyLoss", {}, 1, 0, 0),
        "kd": ("HardKDLoss", {}, 0.5, 5, 0),
        "nd": ("NDLoss", {}, 1.5, 0, 0),
    },
    "inputs": {"ce": ["student.extra.head", "target"], "kd": ["student.extra.head_dist", "teacher.logits"]},
    "optimizer": ("torch.optim.AdamW", 1e-4 * 2048 / 256, [0.9, 0.95], 0.3),
    "lr_scheduler": ("ndkd.schedules.WarmupCosineLR", pytest.approx(20 / 300), 1e-6),
    "data": ("ndkd.data.ImageNetDataModule", 2048, 224, "bicubic", "rand-m9-mstd0.5-inc1", 0.25, 0.8, 1.0),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the shipped configs and four training images of two of ImageNet's classes, to work in."""
    folder, random = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    for part in ("train/{}/0.JPEG", "train/{}/1.JPEG", "val/{}/0.JPEG"):
        for wnid in WNIDS:
            file = folder / "data/imagenet" / part.format(wnid)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(file, "JPEG")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["ndkd"])
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.setattr("ndkd.models.config.build_model", random_model)
        yield folder


def random_model(name, num_classes, pretrained=False, **kwargs):
    """In place of the hub's weights random ones, drawn at once: large models take seconds to draw theirs."""
    with torch.device("meta"):
        model = build_model(name, num_classes or 1000, **kwargs)
    if torch.get_default_device().type == "meta":
        return model
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)
    for module in model.modules():  # timm's are subclasses
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            module.reset_parameters()
    return model


def test_the_page_has_every_row():
    wanted = dict.fromkeys(("KD++", "DKD++", "KD", "DKD", ALONE), PAIRS)
    wanted |= dict.fromkeys((REVIEW, REVIEWPP), [name for name in PAIRS if PAIRS[name].reviewkdpp])
    assert set(ROWS) == {(name, row) for row, names in wanted.items() for name in names}
    assert f"`ndkd fit --config {DEIT.removeprefix('configs/')}`" in section(*SECTION)


def test_the_page_uses_every_configuration():
    used = {REPOSITORY / config for arguments in ROWS.values() for config in values_of(("--config",), arguments)}
    configs = REPOSITORY / "configs"
    there = configs.glob("imagenet/**/*.yaml")
    used |= {REPOSITORY / DEIT, REPOSITORY / TEACHER}
    assert used == {file for file in there if "\nmodel:\n" in file.read_text()}


@pytest.mark.parametrize("name", PAIRS)
def test_row_is_the_published_recipe(name, place):
    for row in [row for pair, row in ROWS if pair == name]:
        config = resolved(ROWS[name, row])
        assert read(config) == recipe(row, PAIRS[name]), row
        assert config["class_means"]["cache_dir"] == "runs/class_means"


def test_deit_is_the_published_recipe(place):
    config = resolved(["fit", "--config", DEIT])
    assert read(config) == DEIT_RECIPE
    model = config["model"]["init_args"]
    assert model["student"]["kwargs"] == {"drop_path_rate": 0.1}
    assert model["losses"]["ce"]["loss"]["init_args"]["label_smoothing"] == 0.1
    assert (model["decay"], model["lr_interval"]) == ("matrices", "step")  # positions and tokens decay
    assert config["data"]["init_args"]["drop_last"] is True
    steps = 1281167 // 2048
    assert round(model["lr_scheduler"]["init_args"]["warmup"] * 300 * steps) == 20 * steps


def test_rows_have_run_folders_of_their_own():
    folders = {default_run_dir(arguments, seed=0).as_posix() for arguments in ROWS.values()}
    assert len(folders) == len(ROWS)


@pytest.mark.parametrize("name", [*PAIRS, "deit"])
def test_two_steps(name, place, monkeypatch):
    """Through the whole command; every parameter gets a gradient, without which DDP would fail."""
    steps = []

    def on_before_optimizer_step(module, optimizer):
        trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        steps.append([name for name, parameter in trained if parameter.grad is None])

    monkeypatch.setattr(DistillationModule, "on_before_optimizer_step", on_before_optimizer_step)
    size = 64 if PAIRS.get(name, PAIRS["vits_r18"]).reviewkdpp else 224
    options = {"trainer.fast_dev_run": 2, "trainer.accelerator": "cpu", "data.init_args.num_workers": 0}
    options |= {"data.init_args.batch_size": 2, "data.init_args.image_size": size}
    if name in ("vitb_r18", "deit"):  # time: three blocks of twelve
        options[f"model.init_args.{'student' if name == 'deit' else 'teacher'}.kwargs.depth"] = 3
    config = DEIT if name == "deit" else f"configs/imagenet/{name}/kd++.yaml"
    status, _, err = ndkd("fit", "--config", config, *(f"--{key}={value}" for key, value in options.items()))
    assert status == 0, err
    assert steps == [[], []]


BUILT = [key for key in ROWS if key[1] in ("DKD++", REVIEWPP) or key in (("vitb_r18", "KD++"), ("r50_mv1", ALONE))]
BUILT += [("r34_r18", REVIEW), ("r50_mv1", REVIEW), ("vits_r18", "DKD")]


@pytest.mark.parametrize(("name", "row"), [*BUILT, ("deit", "DeiT++")])
def test_row_is_built(name, row, place, monkeypatch):
    """At full size and without numbers: models, projector, losses and their forward."""
    built = []

    def configure_model(module):
        with torch.device("meta"):
            build_student(module)
            build_for_training(module)
        built.append(module)
        raise NdkdError("that is enough")

    monkeypatch.setattr(DistillationModule, "configure_model", configure_model)
    monkeypatch.setattr(DistillationModule, "cpu", lambda module: module)
    monkeypatch.setattr(
        "ndkd.distillation.building.portable", lambda config, built: {}
    )  # it reads numbers, and so does
    monkeypatch.setattr("ndkd.distillation.teachers._check_apart", lambda teacher, student, who: None)
    command = ROWS.get((name, row), ["fit", "--config", DEIT])
    status, _, err = ndkd(*command, "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu")
    assert (status, err) == (2, "ndkd: that is enough\n")
    (module,) = built
    pair = PAIRS.get(name)
    student, width = (pair.student, pair.width) if pair else (DEIT_RECIPE["student"], 3024)
    assert module.student.embedding_dim == WIDTHS[student]
    if row == ALONE:
        assert module.teacher is None
        return
    assert module.teacher.embedding_dim == width
    assert (module.projector is not None) == ("++" in row and width != WIDTHS[student])
    if row in (REVIEW, REVIEWPP):
        fusions = list(module.objective.get_submodule("reviewkd").fusions)[::-1]
        widths = [128, 256, 512, 1024, 1024] if student == MV1 else [64, 128, 256, 512, 512]
        assert [fusion.narrow[0].in_channels for fusion in fusions] == widths
        widths = [64, 128, 256, 512, 512] if width == 512 else [256, 512, 1024, 2048, 2048]
        assert [fusion.widen[0].out_channels for fusion in fusions] == widths
        with torch.device("meta"):
            maps = dry_forward(module).teacher.feature_maps
        assert [m.shape[2:] for m in maps] == [(side, side) for side in (56, 28, 14, 7, 1)]
        assert {fusion.narrow[0].out_channels for fusion in fusions} == {pair.reviewkdpp[2]}


@pytest.mark.parametrize("name", [R18, MV1, *sorted({pair.teacher for pair in PAIRS.values() if pair.reviewkdpp})])
def test_taps_are_before_and_after_the_last_activation(name):
    entering = MV1_TAPS if name == MV1 else before(name)
    leaving = [f"blocks.{k}" for k in (2, 4, 10, 12)] if name == MV1 else AFTER[:4]
    extractor = FeatureExtractor(random_model(name, 5), taps=[*entering, *leaving])
    freeze(extractor)
    fold_batchnorm(extractor.model)
    output = extractor(torch.rand(2, 3, 32, 32)).feature_maps
    maps, pooled, ends = output[:4], output[4], output[5:]
    for entered, left in zip(maps, ends, strict=True):
        assert (entered < 0).any()
        assert torch.equal(entered.relu(), left)
    assert torch.equal(pooled, ends[-1].mean((2, 3), keepdim=True))


def test_reviewkdpps_projector_starts_with_torchs_weights_and_no_bias(place):
    std = resolved(ROWS["r50_r18", REVIEWPP])["model"]["init_args"]["projector_std"]
    linear = Projector(512, 2048, std)[-1]
    assert not linear.bias.any()
    assert 0.99 * 512**-0.5 < linear.weight.abs().max() <= 512**-0.5


def test_a_teacher_is_measured_by_one_command(place):
    """The page's, with the pairs' settings."""
    (command,) = re.findall(r"`ndkd (test --config imagenet/teacher.yaml .*?)`", section(*SECTION))
    teachers = dict(re.findall(r"`PAIR=(\S+) TEACHER=(\S+)`", section(*SECTION)))
    assert teachers == {name: pair.teacher for name, pair in PAIRS.items()}
    arguments = shipped(Template(command).substitute(TEACHER=teachers["r34_r18"]).split())
    student = resolved(arguments)["model"]["init_args"]["student"]
    assert student == resolved(ROWS["r34_r18", "KD++"])["model"]["init_args"]["teacher"]
    torch.save(random_model(student["name"], 1000).state_dict(), "teacher.pth")
    options = ["--model.init_args.student.checkpoint=teacher.pth", "--data.init_args.num_workers=0"]
    status, out, err = ndkd(*arguments, *options, "--data.init_args.image_size=64", "--trainer.accelerator=cpu")
    assert status == 0, err
    assert "test/acc1" in out
