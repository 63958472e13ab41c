"""Data and teachers that are not what the configuration says, typed in by hand: one line, and no run folder."""

import re
from pathlib import Path
from shutil import copytree, rmtree

import numpy as np
import pytest
import torch
from PIL import Image

from ndkd.data import CIFAR10DataModule
from ndkd.models import build_model
from tests.command import ndkd

CONFIG = """
trainer: {max_epochs: 1, accelerator: cpu}
model:
  class_path: DistillationModule
  init_args:
    student: {name: cifar/resnet8}
    teacher: {name: cifar/resnet8, checkpoint: teacher.pth}
    losses:
      ce: {loss: torch.nn.CrossEntropyLoss, inputs: [student.logits, target]}
      kd: {loss: KDLoss}
data:
"""
CLASSES = ["cat", "dog", "emu"]
NO_ROOT = "there is no folder images: wanted images/train/CLASS/IMAGE.jpg or images/CLASS/IMAGE.jpg"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with images of three classes, a teacher for them, and a configuration for each DataModule."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setattr("sys.argv", ["ndkd"])
    monkeypatch.setattr(CIFAR10DataModule.dataset, "url", f"file://{tmp_path}/nowhere/cifar-10-python.tar.gz")
    random = np.random.default_rng(0)
    for folder in (Path("images", split, name) for split in ("train", "test") for name in CLASSES):
        folder.mkdir(parents=True)
        for number in range(2):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    torch.save(build_model("cifar/resnet8", 3).state_dict(), "teacher.pth")
    Path("folder.yaml").write_text(
        f"{CONFIG}  class_path: InMemoryImageFolderDataModule\n  init_args: {{root: images, batch_size: 2}}"
    )
    Path("cifar.yaml").write_text(f"{CONFIG}  class_path: CIFAR10DataModule\n  init_args: {{root: cifar}}")
    return tmp_path


def assert_refused(message, config, *options):
    """The message stands alone; % is anything, such as another package's words."""
    status, _, err = ndkd("fit", "--config", config, "--run_dir", "run", *options)
    pattern = ".*".join(map(re.escape, f"ndkd: {message}\n".split("%")))
    assert status == 2
    assert re.fullmatch(pattern, err.rpartition("\r")[2]), err  # after the progress bar has been wiped out
    assert not Path("run").exists()


def cut(file, size):
    file = Path(file)
    file.write_bytes(file.read_bytes()[:size])


def spoil_bytes(file):
    content = bytearray(Path(file).read_bytes())
    content[60:90] = bytes(30)
    Path(file).write_bytes(content)


def only_texts():
    for file in Path("images").rglob("*.png"):
        file.rename(file.with_suffix(".txt"))


def root_as_a_file():
    rmtree("images")
    Path("images").touch()


FOLDERS = {
    "a corrupt image": (
        lambda: spoil_bytes("images/train/dog/1.png"),
        "image images/train/dog/1.png cannot be read (%): replace or remove it, or set on_error skip",
    ),
    "a truncated image": (
        lambda: cut("images/test/emu/0.png", 150),
        "image images/test/emu/0.png cannot be read (%): replace or remove it, or set on_error skip",
    ),
    "a text called .jpg": (
        lambda: Path("images/train/cat/x.jpg").write_text("hello"),
        "image images/train/cat/x.jpg cannot be read (it is not an image): replace or remove it, or set on_error skip",
    ),
    "no folder train": (
        lambda: rmtree("images/train"),
        "images holds images/test, but no folder of training images: wanted images/train/CLASS/IMAGE.jpg",
    ),
    "an empty class": (
        lambda: Path("images/train/fox").mkdir(),
        "class folder images/train/fox holds no image (.jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff, .webp); "
        "add some, remove it, or set on_error skip",
    ),
    "texts alone": (
        only_texts,
        "class folder images/train/cat holds no image (.jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff, .webp); "
        "add some, remove it, or set on_error skip",
    ),
    "no root": (
        lambda: rmtree("images"),
        NO_ROOT,
    ),
    "a root that is a file": (
        root_as_a_file,
        NO_ROOT,
    ),
    "a class in test alone": (
        lambda: copytree("images/test/cat", "images/test/fox"),
        "images: train and test have different classes; only in test: fox",
    ),
}


@pytest.mark.parametrize("mistake", FOLDERS)
def test_a_folder_of_images(place, mistake):
    spoil, message = FOLDERS[mistake]
    spoil()
    assert_refused(message, "folder.yaml")


def archive_cut_short():
    Path("cifar").mkdir()
    Path("cifar/cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b" + bytes(1000))


def batch_cut_short():
    Path("cifar/cifar-10-batches-py").mkdir(parents=True)
    Path("cifar/cifar-10-batches-py/data_batch_1").write_bytes(bytes(1000))


CIFAR = {
    "a truncated archive": (archive_cut_short, "cifar/cifar-10-python.tar.gz is damaged"),
    "a truncated batch": (batch_cut_short, "cifar/cifar-10-batches-py/data_batch_1 is damaged"),
    "no root": (lambda: None, "neither cifar/cifar-10-python.tar.gz nor cifar/cifar-10-batches-py is there"),
    "an empty root": (
        lambda: Path("cifar").mkdir(),
        "neither cifar/cifar-10-python.tar.gz nor cifar/cifar-10-batches-py is there",
    ),
}


@pytest.mark.parametrize("mistake", CIFAR)
def test_cifar(place, mistake):
    spoil, found = CIFAR[mistake]
    spoil()
    elsewhere = f"get {CIFAR10DataModule.dataset.url} elsewhere and put it at cifar/cifar-10-python.tar.gz"
    assert_refused(
        f"CIFAR10: {found}; set download: true, or {elsewhere}", "cifar.yaml", "--data.init_args.download=false"
    )
    assert_refused(f"CIFAR10: {found}, and a download did not help (%nowhere%); {elsewhere}", "cifar.yaml")


@pytest.mark.parametrize("download", ["false", "true"])
def test_a_root_of_cifar_that_is_a_file(place, download):
    Path("cifar").touch()
    message = "CIFAR10: wanted a folder as root, cifar is a file"
    assert_refused(message, "cifar.yaml", f"--data.init_args.download={download}")


# ---- teachers ---------------------------------------------------------------------------------------------------


def test_a_teacher_of_another_architecture(place):
    torch.save(build_model("cifar/resnet14", 3).state_dict(), "teacher.pth")
    assert_refused(
        "checkpoint teacher.pth does not fit the model; unexpected: layer1.1.conv1.weight, layer1.1.bn1.weight, "
        "layer1.1.bn1.bias, layer1.1.bn1.running_mean and 32 more. Is it another architecture or data set?",
        "folder.yaml",
    )


def test_a_teacher_of_another_number_of_classes(place):
    torch.save({"model": build_model("cifar/resnet8", 5).state_dict()}, "teacher.pth")
    assert_refused(
        "checkpoint teacher.pth has 5 classes without names, the data has 3: train a teacher on this data",
        "folder.yaml",
    )


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (["cat", "dog"], "1 of the data's 3 classes: emu; it has cat, dog"),
        (["cat", "dog", "owl"], "1 of the data's 3 classes: emu; it has cat, dog, owl"),
        (
            ["ant", "bee", "fly", "gnat", "moth"],
            "3 of the data's 3 classes: cat, dog, emu; it has ant, bee, fly, gnat and 1 more",
        ),
    ],
)
def test_a_teacher_of_other_classes(place, names, difference):
    state = build_model("cifar/resnet8", len(names)).state_dict()
    content = {
        "state_dict": {f"student.model.{key}": value for key, value in state.items()},
        "hyper_parameters": {"class_names": names},
    }
    torch.save(content, "teacher.pth")
    assert_refused(
        f"checkpoint teacher.pth does not know {difference}. Train a teacher on this data, or give its classes the "
        "teacher's names",
        "folder.yaml",
    )


def test_an_option_of_the_data_that_cannot_be(place):
    assert_refused("batch_size: wanted at least 2 images, got 1", "folder.yaml", "--data.init_args.batch_size=1")
    assert_refused("pad: wanted a number of pixels, got -1", "folder.yaml", "--data.init_args.pad=-1")


def test_an_option_of_a_term_that_cannot_be(place):
    options = "--model.init_args.losses.kd.warmup_epochs=-1"
    assert_refused("loss kd: warmup_epochs: wanted 0 or more, got -1", "folder.yaml", options)


@pytest.fixture
def large_images(place):
    """The images for a DataModule that reads them from disk, and its configuration."""
    Path("images/test").rename("images/val")
    options = "{root: images, batch_size: 2, image_size: 32, num_workers: 1}"
    Path("large.yaml").write_text(f"{CONFIG}  class_path: ImageFolderDataModule\n  init_args: {options}")


def test_large_images(large_images, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # broken off workers are waited for
    assert_refused("image_size: wanted at least 1, got 0", "large.yaml", "--data.init_args.image_size=0")
    hub = "--model.init_args.teacher={name: torchvision/resnet18, checkpoint: null, pretrained: true}"
    state = build_model("torchvision/resnet18", 1000).state_dict()
    monkeypatch.setattr("torchvision.models.WeightsEnum.get_state_dict", lambda *args, **options: dict(state))
    assert_refused(
        "pretrained torchvision/resnet18 does not know 3 of the data's 3 classes: cat, dog, emu; it has tench, "
        "goldfish, great white shark, tiger shark and 996 more. Train a teacher on this data, or give its classes the "
        "teacher's names",
        "large.yaml",
        hub,
    )
    rmtree("images/val/emu")
    assert_refused("images: train and val have different classes; only in train: emu", "large.yaml")
    rmtree("images/val")
    options = ["--data.init_args.val_fraction=0"]
    assert_refused("images has no images to validate on: set val_fraction above 0", "large.yaml", *options)


def test_a_large_image_that_is_damaged(large_images, monkeypatch):
    """Found by a worker, in the first epoch or before it."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    Path("images/val/dog/1.png").write_bytes(b"no image")
    assert_refused(
        "image images/val/dog/1.png cannot be read (it is not an image): replace or remove it, or set on_error skip",
        "large.yaml",
    )
