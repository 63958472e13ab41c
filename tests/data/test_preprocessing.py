"""A transform's steps in words, and the lines of the model card that take them without ndkd."""

import numpy as np
import pytest
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from ndkd.commands.export_card import TEMPLATES
from ndkd.data import CIFAR10DataModule, ImageFolderDataModule, ImageNetDataModule, InMemoryImageFolderDataModule
from ndkd.data.image_files import open_image
from ndkd.data.preprocessing import photo_steps
from ndkd.data.transforms import InRGB, Pixels
from tests.odd_photos import write_odd_photos

DATA = {
    "middle": (lambda: ImageFolderDataModule("x", image_size=24), {"resize": 27, "crop": [24, 24]}),
    "bicubic": (
        lambda: ImageFolderDataModule("x", image_size=24, resize=31, interpolation="bicubic"),
        {"resize": 31, "crop": [24, 24], "interpolation": "bicubic"},
    ),
    "black border": (lambda: ImageFolderDataModule("x", image_size=25, resize=20), {"resize": 20, "crop": [25, 25]}),
    "whole": (lambda: InMemoryImageFolderDataModule("x", image_size=24), {"resize": [24, 24], "crop": None}),
    "as it is": (lambda: InMemoryImageFolderDataModule("x"), {"resize": None, "crop": None}),
    "CIFAR": (lambda: CIFAR10DataModule("x"), {"resize": [32, 32], "crop": None, "upright": True}),
    "ImageNet": (lambda: ImageNetDataModule("x"), {"resize": 256, "crop": [224, 224], "upright": False}),
    "one's own": (
        lambda: type("", (), {"transform": v2.Compose([InRGB(upright=False), v2.CenterCrop((11, 40)), Pixels()])}),
        {"resize": None, "crop": [11, 40], "upright": False},
    ),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_odd_photos(tmp_path_factory.mktemp("odd"))


@pytest.mark.parametrize("kind", DATA)
def test_the_cards_lines_give_the_transforms_pixels(kind, photos):
    make, wanted = DATA[kind]
    transform = make().transform
    photo = photo_steps(transform)
    assert photo.items() >= wanted.items()
    names = {"np": np, "Image": Image}
    code = TEMPLATES.get_template("photo.py.jinja").render(photo=photo, shape=(3, 1, 1))
    exec(f"from PIL import ImageOps\n{code}", names)
    for file in photos:
        with open_image(bytes(file)) as image:
            pixels = transform(image).numpy()
        found = names["pixels_of"](file)
        assert (found.dtype, found.shape) == (np.float32, pixels.shape), file.name
        assert np.array_equal((found * 255).round().astype(np.uint8), pixels), file.name


def test_numbers_that_are_no_brightness_are_refused(tmp_path):
    names = {"np": np, "Image": Image}
    photo = photo_steps(InMemoryImageFolderDataModule("x").transform)
    exec(
        "from PIL import ImageOps\n" + TEMPLATES.get_template("photo.py.jinja").render(photo=photo, shape=(3, 1, 1)),
        names,
    )
    Image.fromarray(np.full((4, 4), 3, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="brightness from 3 to 3, wanted 0 to 1"):
        names["pixels_of"](tmp_path / "a.tif")


@pytest.mark.parametrize(
    "transform",
    [
        lambda image: image,
        v2.Compose([v2.Resize(24), Pixels()]),
        v2.Compose([InRGB(True), v2.CenterCrop(24), v2.Resize(24), Pixels()]),
        v2.Compose([InRGB(True), v2.Resize(24, max_size=30), Pixels()]),
        v2.Compose([InRGB(True), v2.Resize(24, v2.InterpolationMode.NEAREST_EXACT), Pixels()]),
        v2.Compose([InRGB(True), nn.Identity(), Pixels()]),
    ],
)
def test_other_steps_are_not_known(transform):
    assert photo_steps(transform) is None
