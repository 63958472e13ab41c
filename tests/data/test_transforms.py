"""Deep images: by the range of their type, never cut off."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ndkd.data import ImageFolderDataModule, InMemoryImageFolderDataModule
from ndkd.data.image_files import open_image
from ndkd.data.transforms import CropWhileDecoding, InRGB
from ndkd.errors import NdkdError

RAMP = np.linspace(0, 1, 64, dtype=np.float64).reshape(8, 8)  # from black to white


def saved(file, dtype, share=1.0):
    """A grey ramp over a share of the range of a type."""
    if dtype == np.float32:
        image = Image.fromarray((RAMP * share).astype(np.float32))
    else:
        pixels = (RAMP * share * np.iinfo(dtype).max).round().astype(dtype)
        if dtype == np.uint32:  # Pillow writes them as they are and reads them as signed
            image, tags = (
                Image.fromarray(pixels.astype(np.int64).astype(np.uint32).view(np.int32)),
                ImageFileDirectory_v2(),
            )
            tags[339] = 1
            image.save(file, tiffinfo=tags)
            return file
        image = Image.fromarray(pixels)
    image.save(file)
    return file


def grey(file):
    with open_image(bytes(file)) as image:
        pixels = np.asarray(InRGB(True)(image))
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()
    return pixels[..., 0]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a.png", np.uint8), ("a.png", np.uint16), ("a.tif", np.uint16), ("a.tif", np.int32), ("a.tif", np.float32)],
)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_grey_image_is_scaled_by_the_range_of_its_type(tmp_path, name, dtype, share):
    pixels = grey(saved(tmp_path / name, dtype, share))
    assert np.abs(pixels.astype(int) - 255 * share * RAMP).max() <= 1


def test_a_palette_with_transparency_keeps_its_colours_without_a_word(tmp_path, recwarn):
    colours = Image.new("P", (2, 1))
    colours.putpalette([10, 20, 30, 200, 100, 50])
    colours.putpixel((1, 0), 1)
    colours.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    with open_image(bytes(tmp_path / "a.png")) as image:
        assert np.asarray(InRGB(True)(image)).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert not recwarn.list


def test_a_random_crop_scales_as_the_whole(tmp_path):
    file = saved(tmp_path / "a.png", np.uint16)
    with open_image(bytes(file)) as image:
        torch.manual_seed(0)
        pixels = np.asarray(CropWhileDecoding(8, scale=(1.0, 1.0), ratio=(1.0, 1.0))(image))
    assert np.abs(pixels[..., 0].astype(int) - 255 * RAMP).max() <= 2


@pytest.mark.parametrize(
    ("pixels", "why"),
    [
        (
            RAMP.astype(np.float32) * 255,
            "wanted brightness from 0 to 1 in a file of floats, got 0 to 255; scale it first",
        ),
        (RAMP.astype(np.float32) - 0.5, "wanted brightness from 0 to 1 in a file of floats, got -0.5 to 0.5"),
        (np.full((8, 8), np.nan, np.float32), "wanted brightness from 0 to 1 in a file of floats, got nan to nan"),
        (
            (RAMP * 255).astype(np.int32),
            "wanted brightness of 32 bits, got 0 to 255, as of fewer; save it with 8 or 16 bits",
        ),
    ],
)
@pytest.mark.parametrize("kind", [ImageFolderDataModule, InMemoryImageFolderDataModule])
def test_numbers_that_nobody_can_scale_are_refused_by_name(tmp_path, pixels, why, kind):
    for name in ("cat", "dog"):
        for number in range(4):
            file = tmp_path / name / f"{number}.tif"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(file)
    options = {"num_workers": 0, "batch_size": 2} if kind is ImageFolderDataModule else {"batch_size": 2}
    data = kind(tmp_path, image_size=8, **options)

    def read():
        data.setup()
        list(data.class_mean_dataloader())

    with pytest.raises(NdkdError, match=rf"^image {tmp_path}/cat/\d.tif cannot be read \({re.escape(why)}"):
        read()
