"""Every shipped configuration lies in its place, is built and takes a step."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from PIL import Image
from torchvision import datasets
from torchvision.models import WeightsEnum

from ndkd.data import CIFAR100DataModule
from ndkd.models import build_model
from tests.command import REPOSITORY, SHORT, ndkd

CONFIGS = sorted(file.relative_to(REPOSITORY).as_posix() for file in (REPOSITORY / "configs").rglob("*.yaml"))
WHOLE = {name: yaml.safe_load((REPOSITORY / name).read_text()) for name in CONFIGS}
WHOLE = {name: content for name, content in WHOLE.items() if "class_path" in content.get("model", {})}
ELSEWHERE = ("imagenet", "coco", "shapes")  # in test_imagenet.py, test_coco.py, test_detection.py
WHOLE = {name: content for name, content in WHOLE.items() if not {*Path(name).parts} & {*ELSEWHERE}}
PAIRS = [Path(name).parent for name in WHOLE if re.fullmatch(r"configs/cifar100/[^/]+/kd\+\+\.yaml", name)]
PAIRS = [pair for pair in PAIRS if pair.name != "r56_r20_short"]
STEPS = [  # all that need code of their own; test_cifar.py has the numbers of the others
    *([name] for name in WHOLE),
    ["configs/digits/student.yaml", "configs/loggers/wandb.yaml"],
    ["configs/cifar10/kd++.yaml", "configs/cifar10/overlays/outside_teacher.yaml"],
    *(["configs/cifar10/few_labels/kd++.yaml", name] for name in CONFIGS if "/few_labels/overlays/" in name),
    [
        "configs/cifar100/r56_r20/kd++.yaml",
        "configs/cifar100/overlays/alone.yaml",
        "configs/cifar100/overlays/mdistiller.yaml",
    ],
    *([f"{pair}/kd++.yaml", f"{pair}/overlays/reviewkd++.yaml"] for pair in map(Path.as_posix, PAIRS)),
    *(["configs/digits/kd++.yaml", name] for name in CONFIGS if name.startswith("configs/digits/overlays/newer/")),
    ["configs/digits/kd++.yaml", "configs/digits/overlays/two_teachers.yaml"],
]
CIFAR10_TEACHER = "fit --config configs/cifar10/student.yaml --model.init_args.student.name cifar/resnet56"
CIFAR10_TEACHER = [*CIFAR10_TEACHER.split(), "--run_dir", "runs/cifar10/teacher"]
FOLDER_TEACHER = ["fit", "--config", "configs/imagefolder/teacher.yaml", "--data.init_args.root", "FOLDER"]
FOLDER_TEACHER += ["--model.init_args.student.name", "timm/resnet50"]
SMALL = ["--trainer.max_epochs=1"] + [
    f"--data.init_args.{o}" for o in ("batch_size=4", "image_size=32", "num_workers=0")
]


# ---- their places ---------------------------------------------------------------------------------------------------


PLACES = (
    r"[a-z0-9]+/([a-z0-9_]+/)?[a-z0-9+]+\.yaml",  # DATASET/PAIR/METHOD or, of data with one pair, DATASET/METHOD
    r"[a-z0-9]+/([a-z0-9_]+/)?overlays/((ablation|newer)/)?[a-z0-9_.+]+\.yaml",
    r"[a-z0-9]+/fragments/[a-z0-9_.]+\.yaml",
    r"(loggers|trainer|sweeps)/[a-z_]+\.yaml",
    r"cifar_wrn\.yaml",  # older than the folders
)


@pytest.mark.parametrize("name", CONFIGS)
def test_its_folder_says_what_it_is(name):
    place = name.removeprefix("configs/")
    assert any(re.fullmatch(pattern, place) for pattern in PLACES)
    content = yaml.safe_load((REPOSITORY / name).read_text())
    is_part = {*Path(place).parts[:-1]} & {"overlays", "fragments", "loggers", "trainer", "sweeps"}
    assert ("class_path" in content.get("model", {})) == (not is_part)
    assert ("class_path" in content) == ("fragments" in Path(place).parts)


@pytest.mark.parametrize("name", CONFIGS)
def test_its_first_line_says_it_in_words(name):
    assert re.match(r"# [A-Z]\S*", (REPOSITORY / name).read_text())


# ---- a step ---------------------------------------------------------------------------------------------------------


class SmallCIFAR100(datasets.CIFAR100):
    """An image of each class, as torchvision would read them."""

    classes, targets = [f"class {k}" for k in range(100)], list(range(100))

    def __init__(self, root, train=True, download=False):
        self.data = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def with_cifar(workplace):
    """The workplace with a CIFAR-10 folder, and with teachers of random weights as published ones are kept."""
    for split in ("train", "test"):
        for number in range(60):
            file = Path("data/cifar10-jpeg", split, f"class {number % 10}", f"{number}.jpg")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (number, 100, 200)).save(file)
    Path("data/cifar100").symlink_to("cifar10-jpeg")
    Path("data/cifar10-few/unlabelled").mkdir(parents=True)
    Path("data/cifar10-few/labelled").symlink_to("../cifar10-jpeg")
    for number in range(20):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(f"data/cifar10-few/unlabelled/{number}.jpg")
    teachers = [content["model"]["init_args"].get("teacher", {}) for content in WHOLE.values()]
    teachers = {Path(teacher["checkpoint"]): (teacher["name"], 100) for teacher in teachers if teacher}
    teachers[Path("checkpoints/cifar10-jpeg-resnet56.pth")] = ("cifar/resnet56", 10)
    teachers[Path("runs/cifar100/r56_r20_short/teacher/checkpoints/last.ckpt")] = ("cifar/resnet56", 10)
    teachers[Path("checkpoints/digits-resnet8x4.pth")] = ("cifar/resnet8x4", 10)
    teachers[Path("runs/flowers/teacher/checkpoints/last.ckpt")] = ("timm/tf_efficientnet_lite0", 2)
    for file, (name, num_classes) in teachers.items():
        if file.parts[0] == "checkpoints" or num_classes < 100:
            model = build_model(name, num_classes)
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"model": {f"module.{key}": value for key, value in model.state_dict().items()}}, file)
    status, _, err = ndkd(*CIFAR10_TEACHER, *SHORT, "--trainer.max_epochs=1")
    assert status == 0, err


@pytest.fixture(scope="module")
def with_images(workplace):
    """A folder of images of two of ImageNet's classes, a teacher for them, and random weights on every hub."""
    random = np.random.default_rng(0)
    for name in ("goldfish", "tench"):
        for split, number in (("train", 6), ("val", 2)):
            for index in range(number):
                file = Path("FOLDER", split, name, f"{index}.jpg")
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (30, 40 + index, 3), np.uint8)).save(file)

    def random_weights(weights, *args, **options):
        model = type(weights).__name__.removesuffix("_Weights").lower()
        return torchvision.models.get_model(model, weights=None).state_dict()

    create = timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightsEnum, "get_state_dict", random_weights)
        patch.setattr(timm, "create_model", lambda name, pretrained=False, **options: create(name, **options))
        status, _, err = ndkd(*FOLDER_TEACHER, *SMALL)
        assert status == 0, err
        yield


@pytest.mark.parametrize("configs", STEPS, ids=",".join)
def test_config_takes_a_step(configs, with_cifar, with_images, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(CIFAR100DataModule, "dataset", SmallCIFAR100)
    options = [part for name in configs for part in ("--config", name)]
    if "cifar" in configs[0]:
        options += ["--data.init_args.batch_size=4", "--class_means.cache_dir=cache"]
    if "imagefolder" in configs[0] or "flowers" in configs[0]:
        options += [*SMALL, "--data.init_args.root=FOLDER"]
    if "two_teachers" in configs[-1]:
        options += ["--model.init_args.teachers.resnet8x4.checkpoint=checkpoints/digits-resnet8x4.pth"]
    if "flowers" in configs[0]:
        options += ["--class_means.cache_dir=cache"]
    if configs[0] == "configs/imagefolder/kd++.yaml":
        options += ["--model.init_args.teacher.name=timm/resnet50"]
    status, _, err = ndkd("fit", *options, "--trainer.fast_dev_run=true", "--run_dir", "dev")
    assert status == 0, err
    assert not Path("dev/config.yaml").exists()


def resolved(config, *options):
    _, out, _ = ndkd("fit", "--config", config, *options, "--print_config")
    return yaml.safe_load(out)


@pytest.mark.parametrize("folder", ["digits", "cifar100/r56_r20_short", "flowers"])
def test_methods_differ_in_teacher_losses_and_start_alone(folder, workplace):
    student = resolved(f"configs/{folder}/student.yaml")
    methods = sorted((REPOSITORY / "configs" / folder).glob("*++.yaml"))
    assert methods
    for file in methods:
        config = resolved(f"configs/{folder}/{file.name}")
        assert "nd" in config["model"]["init_args"]["losses"]
        for key in ("teacher", "losses", "student", "linear_std"):
            config["model"]["init_args"][key] = student["model"]["init_args"][key]
        config["class_means"] = student["class_means"]
        assert config == student, file.name


def test_the_short_cifar_runs_are_the_papers_recipe_in_a_sixth_of_its_epochs(workplace):
    assert weights_of("cifar100/r56_r20_short/kd++") == {"ce": (1, 0), "kd": (1, 3), "nd": (2, 0)}
    assert weights_of("cifar100/r56_r20_short/dkd++") == {"ce": (1, 0), "dkd": (1, 3), "nd": (3.5, 0)}
    config = resolved("configs/cifar100/r56_r20_short/kd++.yaml")
    model = config["model"]["init_args"]
    assert (config["trainer"]["max_epochs"], config["trainer"]["precision"]) == (40, "bf16-mixed")
    assert model["lr_scheduler"]["init_args"]["milestones"] == [25, 30, 35]  # 5/8, 6/8 and 7/8
    assert model["linear_std"] == 0.01
    rates = {key: model["optimizer"]["init_args"][key] for key in ("lr", "momentum", "nesterov", "weight_decay")}
    assert rates == {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    assert config["data"]["init_args"]["batch_size"] == 128


def weights_of(name):
    """Weight and warm-up of each loss term."""
    losses = resolved(f"configs/{name}.yaml")["model"]["init_args"]["losses"]
    return {term: (entry["weight"], entry["warmup_epochs"]) for term, entry in losses.items()}


def test_kd_is_kdpp_with_nd_at_zero(workplace):
    plain, plus = (resolved(f"configs/digits/{name}.yaml")["model"]["init_args"] for name in ("kd", "kd++"))
    del plus["losses"]["nd"]
    assert plain == plus
