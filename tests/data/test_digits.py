"""scikit-learn's digits as a DataModule: the split, its sizes, and the images."""

import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ndkd.data import DigitsDataModule
from ndkd.data.digits import digit_images
from ndkd.errors import NdkdError


def prepared(**options):
    data = DigitsDataModule(**options)
    data.setup()
    return data


def counts(loader):
    """Images per class."""
    return torch.cat([target for _, target in loader]).bincount(minlength=10)


def keys(part):
    """The images as things that can be told apart."""
    return {image.tobytes() for image in part[0]}


@pytest.mark.parametrize(
    ("options", "train", "val"),
    [
        ({}, 597, 200),
        ({"train_size": 100}, 100, 200),
        ({"val_size": 0}, 797, 1000),
        ({"val_size": 97, "train_size": 700}, 700, 97),
    ],
)
def test_sizes(options, train, val):
    data = prepared(**options)
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()
    assert [int(counts(loader).sum()) for loader in loaders] == [train, val, 1000, 1000]
    assert data.validates_on_test == (options.get("val_size") == 0)


def test_split_is_stratified_disjoint_and_the_same_for_every_seed(monkeypatch):
    data = prepared(train_size=100)
    parts = {name: keys(part) for name, part in data.splits.items()}
    assert len(parts["train"] | parts["val"] | parts["test"]) == 1300
    for loader, size in ((data.train_dataloader(), 100), (data.val_dataloader(), 200), (data.test_dataloader(), 1000)):
        assert (counts(loader) / size - 0.1).abs().max() < 0.015
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    other = prepared(train_size=100)
    assert {name: keys(part) for name, part in other.splits.items()} == parts
    # scarce labels: the test images stay the same
    assert keys(prepared().splits["test"]) == parts["test"]
    assert parts["train"] < keys(prepared().splits["train"])


def test_images_are_the_digits_enlarged():
    images, target = digit_images()
    original = load_digits()
    assert images.shape == (1797, 32, 32, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(target, original.target)
    assert np.array_equal(images[..., 0], images[..., 2])
    small = images[..., 0].reshape(1797, 8, 4, 8, 4).mean(axis=(2, 4)) / 255 * 16
    assert np.corrcoef(small.ravel(), original.images.ravel())[0, 1] > 0.97


def test_statistics_are_those_of_the_images():
    data = prepared()
    batch = torch.cat([images for images, _ in data.class_mean_dataloader()])
    assert tuple(batch.shape[1:]) == data.image_shape
    assert batch.min() == 0
    assert batch.max() == 1
    torch.testing.assert_close(batch.mean(dim=(0, 2, 3)), torch.tensor(data.mean), rtol=0, atol=5e-3)
    torch.testing.assert_close(batch.std(dim=(0, 2, 3)), torch.tensor(data.std), rtol=0, atol=5e-3)


def test_training_is_augmented_and_class_means_only_if_asked():
    data = prepared(train_size=100, batch_size=100)
    plain = torch.from_numpy(data.splits["train"][0]).permute(0, 3, 1, 2) / 255
    assert torch.equal(next(iter(data.class_mean_dataloader()))[0], plain)
    augmented = next(iter(data.class_mean_dataloader(augment=True)))[0]
    assert not torch.equal(augmented, plain)
    shuffled, target = next(iter(data.train_dataloader()))
    assert not torch.equal(target, next(iter(data.class_mean_dataloader()))[1])
    assert not torch.equal(shuffled.sum(dim=(1, 2, 3)).sort().values, plain.sum(dim=(1, 2, 3)).sort().values)
    whole = next(iter(prepared(train_size=100, batch_size=100, pad=0).train_dataloader()))[0]
    torch.testing.assert_close(whole.sum(dim=(1, 2, 3)).sort().values, plain.sum(dim=(1, 2, 3)).sort().values)


def test_a_seed_gives_the_same_batches(monkeypatch):
    def batches(seed):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        return torch.cat([images for images, _ in prepared(train_size=40).train_dataloader()])

    assert torch.equal(batches("1"), batches("1"))
    assert not torch.equal(batches("1"), batches("2"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 5}, "train_size: wanted 10 to 587 images (there are 597), got 5"),
        ({"train_size": 590}, "train_size: wanted 10 to 587 images (there are 597), got 590"),
        ({"val_size": 790}, "val_size: wanted 10 to 787 images (there are 797), got 790"),
        ({"val_size": -1}, "val_size: wanted a number of images, 0 for none of the training images, got -1"),
        ({"batch_size": 0}, "batch_size: wanted at least 2 images, got 0"),
        ({"pad": -1}, "pad: wanted a number of pixels, got -1"),
        ({"train_size": 0}, "train_size: wanted 10 to 587 images (there are 597), got 0"),
    ],
)
def test_impossible_sizes(options, message):
    with pytest.raises(NdkdError, match=f"^{re.escape(message)}$"):
        prepared(**options)
