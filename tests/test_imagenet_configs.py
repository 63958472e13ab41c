"""README's commands for the paper's ImageNet table: the published recipes, which are built and take steps."""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from command import REPOSITORY, ndkd
from PIL import Image
from recipes import read, readme_rows, readme_section, resolved
from torch import nn

from ndkd.cli import values_of
from ndkd.distillation import DistillationModule
from ndkd.errors import NdkdError
from ndkd.models import FeatureExtractor, build_model
from ndkd.models.teacher import fold_batchnorm, freeze
from ndkd.training_cli import default_run_dir

SECTION = "The paper's ImageNet table"
WNIDS = ("n01443537", "n01440764")
R18, MV1 = "torchvision/resnet18", "imagenet/mobilenet_v1"
VIT = "timm/vit_{}_patch16_224.augreg_in21k_ft_in1k"
WIDTHS = {R18: 512, MV1: 1024, "timm/deit_base_distilled_patch16_224": 768}  # of the students' embeddings


class Pair(NamedTuple):
    """Names, the weights that differ by pair, and the width of the teacher's embedding."""

    teacher: str
    student: str
    kdpp: tuple  # kd, nd
    dkdpp: tuple  # alpha, beta, nd
    reviewkdpp: tuple | None  # reviewkd, nd, middle width
    width: int


PAIRS = {
    "r34_r18": Pair("torchvision/resnet34.IMAGENET1K_V1", R18, (2.5, 1), (0.8, 0.5, 1), (1, 3, 512), 512),
    "r50_r18": Pair("torchvision/resnet50.IMAGENET1K_V1", R18, (4, 1), (0.6, 0.5, 2), (3, 2, 512), 2048),
    "r101_r18": Pair("torchvision/resnet101.IMAGENET1K_V1", R18, (3.5, 4), (0.8, 0.5, 1), (3, 1, 512), 2048),
    "r152_r18": Pair("torchvision/resnet152.IMAGENET1K_V1", R18, (4, 2), (1, 1, 1), (3, 1, 512), 2048),
    "r50_mv1": Pair("torchvision/resnet50.IMAGENET1K_V1", MV1, (4, 1), (0.8, 1, 1), (8, 4, 256), 2048),
    "vits_r18": Pair(VIT.format("small"), R18, (1.5, 1), (1, 1, 2), None, 384),
    "vitb_r18": Pair(VIT.format("base"), R18, (2, 1), (1.4, 0.5, 2), None, 768),
}
REVIEW, ALONE, DEIT = "ReviewKD++, not from ViTs", "student alone", "configs/imagenet_deit.yaml"
ROWS = {key: command for key, command in readme_rows(SECTION).items() if key[1] != REVIEW or PAIRS[key[0]].reviewkdpp}


def terms(row, pair):
    """The terms beside cross-entropy: class, arguments, weight, warm-up."""
    if row == "KD++":
        kd, nd = pair.kdpp
        return {"kd": ("KDLoss", {"temperature": 1}, kd, 5), "nd": ("NDLoss", {}, nd, 0)}
    if row == "DKD++":
        alpha, beta, nd = pair.dkdpp
        dkd = {"alpha": alpha, "beta": beta, "temperature": 1}
        return {"dkd": ("DKDLoss", dkd, 1, 5), "nd": ("NDLoss", {}, nd, 5)}
    if row == REVIEW:
        review, nd, middle = pair.reviewkdpp
        return {"reviewkd": ("ReviewKDLoss", {"max_mid_channels": middle}, review, 5), "nd": ("NDLoss", {}, nd, 0)}
    return {}


def recipe(row, pair):
    """What the paper says, in the form of :func:`recipes.read`."""
    is_alone = row == ALONE
    return {
        "epochs": 100,
        "student": pair.student,
        "teacher": None if is_alone else pair.teacher,
        "weights": None if is_alone else True,
        "has taps": (row == REVIEW, row == REVIEW),
        "losses": {"ce": ("CrossEntropyLoss", {}, 1, 0)} | terms(row, pair),
        "inputs": {"ce": ["student.logits", "target"]},
        "optimizer": ("torch.optim.SGD", 0.2, 0.9, True, 1e-4),
        "lr_scheduler": ("torch.optim.lr_scheduler.MultiStepLR", [30, 60, 90], 0.1),
        "data": ("ndkd.data.ImageNetDataModule", 512, 224, "bilinear", None, 0, 0, 0),
    }


DEIT_RECIPE = {
    "epochs": 300,
    "student": "timm/deit_base_distilled_patch16_224",
    "teacher": "timm/regnety_160.deit_in1k",
    "weights": True,
    "has taps": (False, False),
    "losses": {
        "ce": ("CrossEntropyLoss", {}, 1, 0),
        "kd": ("HardKDLoss", {}, 0.5, 5),
        "nd": ("NDLoss", {}, 1.5, 0),
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


def test_readme_has_every_row():
    rows = {"KD++": PAIRS, "DKD++": PAIRS, REVIEW: [n for n in PAIRS if PAIRS[n].reviewkdpp], ALONE: PAIRS}
    assert set(ROWS) == {(name, row) for row, names in rows.items() for name in names}
    assert f"`ndkd fit --config {DEIT}`" in readme_section(SECTION)


def test_readme_uses_every_config():
    used = {REPOSITORY / config for arguments in ROWS.values() for config in values_of(("--config",), arguments)}
    configs = REPOSITORY / "configs"
    there = [*configs.glob("imagenet_*.yaml"), *configs.glob("imagenet/**/*.yaml")]
    assert used | {REPOSITORY / DEIT} == {file for file in there if "\nmodel:\n" in file.read_text()}


@pytest.mark.parametrize("name", PAIRS)
def test_row_is_the_published_recipe(name, place):
    for row in [row for pair, row in ROWS if pair == name]:
        config = resolved(ROWS[name, row])
        assert read(config) == recipe(row, PAIRS[name]), row
        has_projector = PAIRS[name].width != WIDTHS[PAIRS[name].student]
        assert config["model"]["init_args"]["projector_std"] == (0.01 if has_projector else None)
        assert config["class_means"]["cache_dir"] == "runs/class_means"


def test_deit_is_the_published_recipe(place):
    config = resolved(["fit", "--config", DEIT])
    assert read(config) == DEIT_RECIPE
    model = config["model"]["init_args"]
    assert model["student"]["kwargs"] == {"drop_path_rate": 0.1}
    assert model["losses"]["ce"]["loss"]["init_args"]["label_smoothing"] == 0.1
    assert (model["decay"], model["lr_interval"]) == ("matrices", "step")  # positions and tokens decay
    assert (model["projector_std"], model["linear_std"]) == (0.01, 0.01)
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
    status, _, err = ndkd(
        "fit", "--config", f"configs/imagenet_{name}.yaml", *(f"--{key}={value}" for key, value in options.items())
    )
    assert status == 0, err
    assert steps == [[], []]


BUILT = [key for key in ROWS if key[1] in ("DKD++", REVIEW) or key in (("vitb_r18", "KD++"), ("r50_mv1", ALONE))]


@pytest.mark.parametrize(("name", "row"), [*BUILT, ("deit", "DeiT++")])
def test_row_is_built(name, row, place, monkeypatch):
    """At full size and without numbers: models, projector, losses and their forward."""
    built = []

    def configure_model(module):
        with torch.device("meta"):
            module._build_student()
            module._build_for_training()
        built.append(module)
        raise NdkdError("that is enough")

    monkeypatch.setattr(DistillationModule, "configure_model", configure_model)
    monkeypatch.setattr(DistillationModule, "cpu", lambda module: module)
    monkeypatch.setattr("ndkd.distillation._portable", lambda config, built: {})  # it reads numbers
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
    assert (module.projector is None) == (width == WIDTHS[student])
    if row == REVIEW:
        fusions = list(module.loss_modules["reviewkd"].fusions)[::-1]
        widths = [128, 256, 512, 1024, 1024] if student == MV1 else [64, 128, 256, 512, 512]
        assert [fusion.narrow[0].in_channels for fusion in fusions] == widths
        widths = [64, 128, 256, 512, 512] if width == 512 else [256, 512, 1024, 2048, 2048]
        assert [fusion.widen[0].out_channels for fusion in fusions] == widths
        with torch.device("meta"):
            maps = module._dry_forward().teacher.feature_maps
        assert [m.shape[2:] for m in maps] == [(side, side) for side in (56, 28, 14, 7, 1)]
        assert {fusion.narrow[0].out_channels for fusion in fusions} == {pair.reviewkdpp[2]}


def test_reviewed_maps_are_those_before_the_relu():
    tapped = set()
    for name in (name for name in PAIRS if PAIRS[name].reviewkdpp):
        file = Path(REPOSITORY, "configs/imagenet", name, "reviewkd++.yaml")
        model = yaml.safe_load(file.read_text())["model"]["init_args"]
        tapped |= {(getattr(PAIRS[name], role), tuple(model[role]["taps"])) for role in ("student", "teacher")}
    assert len(tapped) == 6
    for name, taps in sorted(tapped):
        ends = [f"layer{k}" for k in (1, 2, 3, 4)] if "resnet" in name else [f"blocks.{k}" for k in (2, 4, 10, 12)]
        extractor = FeatureExtractor(random_model(name, 5), taps=[*taps, *ends])
        freeze(extractor)
        fold_batchnorm(extractor.model)
        *maps, pooled = (output := extractor(torch.rand(2, 3, 32, 32)).feature_maps)[:5]
        for before, after in zip(maps, output[5:], strict=True):
            assert (before < 0).any(), name
            assert torch.equal(before.relu(), after), name
        assert torch.equal(pooled, maps[-1].relu().mean((2, 3), keepdim=True)), name
