"""Batches of small images: which ones, in which order, augmented how."""

import random
from functools import partial

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torchvision.transforms import functional as F
from torchvision.transforms import v2

from ndkd.data import DigitsDataModule
from ndkd.data.in_memory import InMemoryDataModule
from ndkd.data.in_memory_loader import CutOnCPU, CutOnDevice, InMemoryLoader, TransformedLoader
from ndkd.data.own_transforms import OwnTransforms
from ndkd.data.samplers import BalancedOrder, ShardedOrder
from ndkd.errors import NdkdError
from tests.command import refusal

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (23, 6, 5, 3), dtype=np.uint8)
TARGET = np.arange(23)


def loader(images=IMAGES, target=TARGET, batch_size=8, shuffle=False, seed=0, rank=0, world_size=1, pad=0, flip=False):
    order = ShardedOrder(len(images), shuffle, seed, rank, world_size)
    return InMemoryLoader(images, target, batch_size, order, pad, flip)


def epoch(batches, number=0):
    """Images and targets of one epoch."""
    batches.sampler.set_epoch(number)
    images, target = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(target)


def as_floats(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255


def test_plain_images_in_order():
    images, target = epoch(loader())
    assert torch.equal(images, as_floats(IMAGES))
    assert torch.equal(target, torch.from_numpy(TARGET))
    assert target.dtype == torch.int64


def test_batches_are_channels_last_and_the_last_is_smaller():
    batches = loader()
    assert len(batches) == 3
    assert [len(target) for _, target in batches] == [8, 8, 7]
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images, _ in batches)


@pytest.mark.parametrize(("shuffle", "sizes"), [(True, [11, 11]), (False, [11, 11, 1])])
def test_a_last_batch_of_one_image_is_left_out_in_training(shuffle, sizes):
    assert [len(target) for _, target in loader(shuffle=shuffle, batch_size=11)] == sizes
    assert len(loader(shuffle=shuffle, batch_size=11)) == len(sizes)


def test_crops_are_windows_of_the_padded_image():
    pad, seen = 2, set()
    padded = np.pad(IMAGES, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    for number in range(20):
        images, _ = epoch(loader(pad=pad), number)
        for index, image in enumerate(images):
            windows = {
                (y, x): as_floats(padded[index : index + 1, y : y + 6, x : x + 5])[0]
                for y in range(5)
                for x in range(5)
            }
            where = [offset for offset, window in windows.items() if torch.equal(window, image)]
            assert len(where) == 1
            seen.update(where)
    assert seen == {(y, x) for y in range(5) for x in range(5)}


def test_about_half_are_flipped():
    flipped = 0
    for number in range(40):
        images, _ = epoch(loader(flip=True), number)
        for image, plain in zip(images, as_floats(IMAGES), strict=True):
            assert torch.equal(image, plain) or torch.equal(image, plain.flip(-1))
            flipped += torch.equal(image, plain.flip(-1))
    assert 0.44 < flipped / (40 * 23) < 0.56


def test_the_images_themselves_stay_as_they_are():
    before = IMAGES.copy()
    epoch(loader(pad=1, flip=True, shuffle=True))
    assert np.array_equal(IMAGES, before)


def test_a_seed_and_an_epoch_give_the_same_batches_whatever_was_drawn_before():
    options = {"shuffle": True, "pad": 2, "flip": True}
    resumed, unbroken = loader(seed=3, **options), loader(seed=3, **options)
    epoch(unbroken, 0)
    np.random.rand()
    torch.rand(1)
    for left, right in zip(epoch(unbroken, 1), epoch(resumed, 1), strict=True):
        assert torch.equal(left, right)
    for other in (epoch(loader(seed=3, **options), 2), epoch(loader(seed=4, **options), 1)):
        assert not torch.equal(other[1], epoch(resumed, 1)[1])


def test_own_transforms_depend_on_seed_epoch_and_image_alone():
    def transformed(batch_size=8, seed=3, world_size=1, rank=0):
        order = ShardedOrder(len(IMAGES), True, seed, rank, world_size)
        augmentation = OwnTransforms([v2.RandomCrop((6, 5), padding=2), v2.RandomHorizontalFlip()], (6, 5))
        return TransformedLoader(IMAGES, TARGET, batch_size, order, augmentation)

    def by_target(*args, **options):
        images, target = epoch(*args, **options)
        return {label: image for image, label in zip(images, target.tolist(), strict=True)}

    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    first = by_target(transformed(), 1)
    assert torch.equal(torch.rand(1), wanted)  # dropout draws what it drew before
    assert first.keys() == set(TARGET)
    random.seed(5)
    for other in (transformed(batch_size=5), transformed(world_size=2), transformed(world_size=2, rank=1)):
        assert all(torch.equal(image, first[label]) for label, image in by_target(other, 1).items())
    for other in (by_target(transformed(), 2), by_target(transformed(seed=4), 1)):
        assert sum(torch.equal(image, first[label]) for label, image in other.items()) < 8
    images, _ = next(iter(transformed()))
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert 0.9 < images.max() <= 1
    prints = [transformed(**options).fingerprint() for options in ({}, {"seed": 4}, {"batch_size": 5})]
    assert prints[0] == prints[2] != prints[1]


UNEVEN = np.repeat(np.arange(4), [1, 3, 10, 26])


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_balanced_order_shows_all_classes_equally_often(world_size):
    seen = []
    for number in range(3):
        shards = []
        for rank in range(world_size):
            order = BalancedOrder(UNEVEN, 0, rank, world_size)
            order.set_epoch(number)
            shards.append(order.indices().tolist())
            assert [index for index, _ in order] == shards[-1]
        assert len({len(shard) for shard in shards}) == 1
        together = [index for step in zip(*shards, strict=True) for index in step]
        counts = np.bincount(UNEVEN[together], minlength=4)
        assert counts.sum() == 40 - 40 % world_size
        assert counts.max() - counts.min() <= world_size
        times = np.bincount(together, minlength=40)
        for k in range(4):
            assert np.ptp(times[k == UNEVEN]) <= 1 + (world_size > 1)
        seen.append(together)
    assert seen[0] != seen[1]
    assert len({*sum(seen, [])} & {*np.flatnonzero(UNEVEN == 3)}) > 12  # not always the same of a large class


def test_what_all_ranks_see_is_what_one_sees():
    alone = list(BalancedOrder(UNEVEN, 7, 0, 1))
    shards = [list(BalancedOrder(UNEVEN, 7, rank, 2)) for rank in range(2)]
    assert [item for step in zip(*shards, strict=True) for item in step] == alone
    assert len({seed for _, seed in alone}) == 40


def test_more_classes_than_images_of_some():
    order = BalancedOrder(np.array([0, 5, 9]), 0, 0, 1)  # of which some have none
    assert sorted(order.indices()) == [0, 1, 2]


def test_overfitted_batches_are_the_same_in_every_epoch():
    data = DigitsDataModule(train_size=40, batch_size=16)
    data.setup()
    first, *others = (fixed_batch(data, number) for number in (0, 1, 5))
    assert all(torch.equal(one, other) for batch in others for one, other in zip(first, batch, strict=True))
    assert len(set(first[1].tolist())) > 3  # not the first class alone


def fixed_batch(data, number):
    data.trainer = L.Trainer(logger=False, barebones=True, overfit_batches=1)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return next(iter(loader))


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"val_size": 6}, {"train": [1, 3, 8, 22], "val": [0, 0, 2, 4], "test": [1, 1, 1, 1]}),
        ({"train_size": 12}, {"train": [1, 1, 3, 7], "val": [1, 1, 1, 1], "test": [1, 1, 1, 1]}),
    ],
)
def test_the_only_image_of_a_class_stays_in_training(options, sizes):
    assert uneven(**options).class_counts == sizes


def test_a_split_that_takes_all_of_a_class_is_refused():
    message = "no training image of class b: val_size 36 takes all of them; lower it"
    assert refusal(uneven, [1, 2, 10, 27], val_size=36) == message
    message = "no training image of class b, c: train_size 5 is too few; raise it"
    assert refusal(uneven, [1, 2, 10, 97], train_size=5) == message


class Uneven(InMemoryDataModule):
    num_classes, class_names = 4, "abcd"


def uneven(counts=(1, 3, 10, 26), **options):
    data = Uneven(pad=0, **options)
    target = np.repeat(np.arange(4), counts)
    test = np.zeros((4, 6, 6, 3), np.uint8), np.arange(4)
    data.keep({"train": (np.zeros((len(target), 6, 6, 3), np.uint8), target), "test": test})
    return data


def test_balanced_counts_are_equal():
    assert uneven(balanced_sampling=True).class_counts["train"] == [10] * 4


def test_transforms_are_tried_before_the_run():
    message = (
        "transforms: wanted bytes or float32 of 3×6×6 after the last one (Resize), got uint8 of 3×8×8 from uint8 of "
    )
    message += "3×6×6; add or correct a transform such as RandomResizedCrop(size=[6, 6])"
    assert refusal(uneven, transforms=[v2.Resize(8)]) == message
    loader = uneven(transforms=[v2.RandomHorizontalFlip()]).train_dataloader()
    assert isinstance(loader, TransformedLoader)


def test_every_image_once_an_epoch():
    for number in range(3):
        assert sorted(epoch(loader(shuffle=True), number)[1].tolist()) == TARGET.tolist()


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_the_images(shuffle):
    shards = [epoch(loader(shuffle=shuffle, rank=rank, world_size=3))[1].tolist() for rank in range(3)]
    together = [index for shard in shards for index in shard]
    assert len(set(together)) == len(together)
    if shuffle:  # equally many steps on every rank
        assert [len(shard) for shard in shards] == [7, 7, 7]
        alone = epoch(loader(shuffle=True))[1].tolist()
        assert [index for step in zip(*shards, strict=True) for index in step] == alone[:21]
    else:  # each image exactly once
        assert sorted(together) == TARGET.tolist()


def test_more_ranks_than_images():
    message = "^8 processes cannot share 7 images: lower trainer.devices or num_nodes$"
    with pytest.raises(NdkdError, match=message):
        loader(IMAGES[:7], TARGET[:7], world_size=8)


def test_ranks_augment_differently():
    same = loader(IMAGES[:1].repeat(20, 0), np.zeros(20), 20, pad=2, seed=1)
    other = loader(IMAGES[:1].repeat(20, 0), np.zeros(20), 20, pad=2, seed=1, rank=1, world_size=2)
    assert not torch.equal(epoch(same)[0][:10], epoch(other)[0])


def test_fingerprint_changes_with_images_targets_and_augmentation():
    changed = IMAGES.copy()
    changed[-1, -1, -1, -1] ^= 1
    others = [
        loader(changed),
        loader(target=TARGET[::-1]),
        loader(pad=1),
        loader(flip=True),
        loader(pad=1, seed=1),
    ]
    prints = [loader().fingerprint(), *(other.fingerprint() for other in others)]
    assert len(set(prints)) == len(prints)
    for same in (loader(shuffle=True), loader(batch_size=3), loader(rank=1, world_size=2), loader(seed=1)):
        assert same.fingerprint() == prints[0]


@pytest.mark.parametrize("options", [{}, {"pad": 2}, {"flip": True}, {"pad": 2, "flip": True, "shuffle": True}])
def test_cutting_where_the_images_live_gives_the_same_pixels(monkeypatch, options):
    wanted = epoch(loader(**options))
    monkeypatch.setattr("ndkd.data.in_memory_loader.CutOnCPU", partial(CutOnDevice, device=torch.device("cpu")))
    assert all(map(torch.equal, epoch(loader(**options)), wanted))


def test_images_in_another_memory_layout_are_flipped_too():
    planes = np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    options = {"flip": True, "shuffle": True}
    assert all(map(torch.equal, epoch(loader(planes, **options)), epoch(loader(**options))))


def test_pixels_are_those_of_torchvision_at_the_same_offsets_and_flips():
    pad, padded = 2, np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
    cut, random = CutOnCPU(padded, TARGET, (6, 5)), np.random.default_rng(1)
    indices, flipped = np.arange(23), random.random(23) < 0.5
    y, x = random.integers(0, 2 * pad + 1, (2, 23))
    [(images, _)] = cut([(indices, y, x, flipped)])
    for image, *where in zip(images, IMAGES, y, x, flipped, strict=True):
        plain, top, left, is_flipped = where
        expected = F.crop(F.pad(F.to_pil_image(plain), pad), int(top), int(left), 6, 5)
        expected = F.hflip(expected) if is_flipped else expected
        assert np.array_equal(image.numpy(), np.asarray(expected))
        torch.testing.assert_close(image.permute(2, 0, 1).float() / 255, F.to_tensor(expected), rtol=0, atol=1e-6)
