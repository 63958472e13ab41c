"""Small images in folders: what is read, and what is wrong with them."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from ndkd.data import InMemoryImageFolderDataModule
from ndkd.errors import NdkdError

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture
def root(tmp_path):
    """Three classes of one colour: four images to train on and two to test on, of 6×8 pixels."""
    for split, number in (("train", 4), ("test", 2)):
        for name, colour in COLOURS.items():
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                Image.new("RGB", (8, 6), colour).save(folder / f"{index}.png")
    return tmp_path


def prepared(root, **options):
    data = InMemoryImageFolderDataModule(root, **({"batch_size": 4, "pad": 1} | options))
    data.setup()
    return data


def test_images_classes_and_statistics(root):
    (root / "train" / "red" / "Thumbs.db").write_text("no image")
    data = prepared(root)
    assert data.class_names == ("blue", "green", "red")
    assert (data.num_classes, data.image_shape) == (3, (3, 6, 8))
    images, target = (torch.cat(parts) for parts in zip(*data.class_mean_dataloader(), strict=True))
    assert target.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for image, label in zip(images, target, strict=True):
        colour = torch.tensor(list(COLOURS.values())[label]) / 255
        assert torch.equal(image, colour[:, None, None].expand(3, 6, 8))
    assert data.mean == pytest.approx([1 / 3] * 3, abs=1e-4)
    assert data.std == pytest.approx([2**0.5 / 3] * 3, abs=1e-4)
    assert sum(len(target) for _, target in data.test_dataloader()) == 6
    assert data.validates_on_test


def test_a_folder_val_is_the_validation_set(root):
    (root / "train").rename(root / "val")
    (root / "test").rename(root / "train")
    (root / "val").rename(root / "test")
    for name, colour in COLOURS.items():
        (root / "val" / name).mkdir(parents=True)
        Image.new("RGB", (8, 6), colour).save(root / "val" / name / "0.jpg")
    data = prepared(root)
    assert [len(data.splits[name][1]) for name in ("train", "val", "test")] == [6, 3, 12]
    assert not data.validates_on_test


def test_kinds_of_images_become_rgb(root):
    folder = root / "train" / "blue"
    Image.new("L", (8, 6), 7).save(folder / "a.png")
    Image.new("RGBA", (8, 6), (1, 2, 3, 4)).save(folder / "b.png")
    Image.new("CMYK", (8, 6)).save(folder / "c.jpg")
    images, target = prepared(root).splits["train"]
    assert images.shape == (15, 6, 8, 3)
    assert images[target == 0][4:6, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]


def test_images_are_resized_only_if_asked(root):
    Image.new("RGB", (9, 6)).save(root / "train" / "red" / "x.png")
    with pytest.raises(NdkdError, match=r"red/x.png is 6×9, wanted 6×8 as the first; set image_size$"):
        prepared(root)
    assert prepared(root, image_size=5).image_shape == (3, 5, 5)
    with pytest.raises(NdkdError, match="^image_size: wanted a number of pixels, got 0$"):
        prepared(root, image_size=0)


def truncated(root):
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    file = root / "train" / "red" / "x.jpg"
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:-60])


def remove_folder(folder):
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "train").rename(root / "x"),
            "{root} holds {root}/test, but no folder of training images",
        ),
        (
            lambda root: remove_folder(root / "test" / "red"),
            "{root}: train and test have different classes; only in train: red",
        ),
        (lambda root: (root / "train" / "zoo").mkdir(), "class folder {root}/train/zoo holds no image (.jpg, .jpeg, "),
        (lambda root: (root / "train/red/x.png").touch(), "image {root}/train/red/x.png cannot be read ("),
        (lambda root: (root / "train/red/x.png").write_text("no"), "image {root}/train/red/x.png cannot be read ("),
        (truncated, "image {root}/train/red/x.jpg cannot be read ("),
    ],
)
def test_what_is_wrong_is_named(root, spoil, message):
    spoil(root)
    with pytest.raises(NdkdError, match=f"^{re.escape(message.format(root=root))}"):
        prepared(root)


def test_a_split_without_classes(root):
    for folder in (root / "test").iterdir():
        remove_folder(folder)
    with pytest.raises(NdkdError, match=f"^{root}/test holds no class folder"):
        prepared(root)


def test_a_channel_that_is_alike_everywhere_does_not_divide_by_0(tmp_path):
    for split in ("train", "test"):
        for name, red in (("cat", 40), ("dog", 200)):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (red, 0, 128)).save(tmp_path / split / name / "0.png")
    data = prepared(tmp_path)
    assert data.std == (0.3137, 0.0039, 0.0039)
    images, _ = next(iter(data.val_dataloader()))
    assert torch.isfinite(
        (images - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None]
    ).all()
