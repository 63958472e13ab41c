"""Images of any size in folders: what is read, how it is augmented, and what is wrong with it."""

import gc
import os
import random
import re

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

from ndkd.data import ImageFolderDataModule, ImageNetDataModule
from ndkd.data.image_files import ImageFiles
from ndkd.data.layouts import find_images
from ndkd.errors import NdkdError
from tests.command import refusal

SIZES = [(40, 30), (30, 40), (64, 48), (33, 70), (24, 24)]


def photo(width, height, seed=0):
    """A smooth picture with some grain: no two places of it are alike."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (4, 4, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((pixels + random.integers(-8, 9, pixels.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of JPEG and PNG files of several sizes: nine images to train on, five to validate on."""
    root = tmp_path_factory.mktemp("photos")
    for split, counts in (("train", {"cat": 5, "dog": 4}), ("val", {"cat": 2, "dog": 3})):
        for name, count in counts.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image = photo(*SIZES[number], seed=len(name + split) * 10 + number)
                image.save(root / split / name / f"{number}.{'png' if number == 1 else 'jpg'}", quality=90)
    (root / "train" / "cat" / "Thumbs.db").write_text("no image")
    return root


@pytest.fixture
def root(photos, tmp_path):
    """The same, to spoil."""
    for file in photos.rglob("*.*"):
        target = tmp_path / file.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, target)
    return tmp_path


def prepared(root, kind=ImageFolderDataModule, **options):
    data = kind(root, **({"batch_size": 4, "image_size": 16, "num_workers": 0} | options))
    data.setup()
    return data


def whole(loader):
    images, target = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(target)


# ---- what is read -----------------------------------------------------------------------------------------------


def test_classes_and_batches(photos):
    data = prepared(photos)
    assert data.class_names == ("cat", "dog")
    assert (data.num_classes, data.image_shape, data.validates_on_test) == (2, (3, 16, 16), True)
    sizes = [len(target) for _, target in data.train_dataloader()]
    assert sizes == [4, 4]  # BatchNorm cannot use the ninth by itself
    for drop_last, wanted in ((False, [5, 4]), (True, [5])):
        data = prepared(photos, batch_size=5, drop_last=drop_last)
        assert [len(target) for _, target in data.train_dataloader()] == wanted
    data = prepared(photos)
    images, target = next(iter(data.val_dataloader()))
    assert (images.dtype, images.shape) == (torch.uint8, (4, 3, 16, 16))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert target.tolist() == [0, 0, 1, 1]
    assert [os.path.basename(file) for file in data.predict_files] == ["0.jpg", "1.png", "0.jpg", "1.png", "2.jpg"]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 28])
def test_evaluation_has_the_pixels_of_torchvisions_reference(photos, size, interpolation):
    kind = v2.InterpolationMode(interpolation)
    steps = [v2.Resize(round(size * 8 / 7), kind, antialias=True), v2.CenterCrop(size), v2.PILToTensor()]
    reference = datasets.ImageFolder(photos / "val", v2.Compose(steps))
    images, target = whole(prepared(photos, image_size=size, interpolation=interpolation).val_dataloader())
    assert target.tolist() == reference.targets
    for image, (wanted, _) in zip(images, reference, strict=True):
        assert torch.equal(image, wanted)


def test_kinds_of_images(root):
    folder = root / "val" / "cat"
    for file in folder.iterdir():
        file.unlink()
    plain = photo(40, 30)
    plain.convert("L").save(folder / "a.png")
    plain.convert("RGBA").save(folder / "b.png")
    plain.convert("CMYK").save(folder / "c.jpg", quality=95)
    plain.quantize(256).save(folder / "d.png")
    plain.save(folder / "e.JPEG", quality=95)
    images, target = whole(prepared(root).val_dataloader())
    grey, alpha, cmyk, palette, wanted = images[:5].float()
    assert target.tolist() == [0] * 5 + [1] * 3
    assert torch.equal(grey[0], grey[1])
    for image in (alpha, cmyk, palette):
        assert (image - wanted).abs().mean() < 6
    augmented, _ = whole(prepared(root, batch_size=8).class_mean_dataloader(augment=True))
    assert augmented.shape == (9, 3, 16, 16)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("kind", [ImageFolderDataModule, ImageNetDataModule])
def test_images_are_turned_as_their_exif_data_says(root, kind, augment):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    ramp = Image.linear_gradient("L").resize((32, 32)).convert("RGB")  # brighter from top to bottom
    ramp.transpose(Image.Transpose.ROTATE_90).save(root / "train" / "cat" / "0.jpg", quality=95, exif=exif)
    images, _ = next(iter(prepared(root, kind).class_mean_dataloader(augment)))
    down, across = (images[0, 0].float().mean(dim=dim).diff().mean().abs() for dim in (1, 0))
    assert (down > 10 * across) == (kind is ImageFolderDataModule)  # ImageNet's are published as they are
    assert (across > 10 * down) == (kind is ImageNetDataModule)


def test_a_folder_test(root):
    (root / "test").mkdir()
    for name in ("cat", "dog"):
        os.rename(root / "val" / name, root / "test" / name)
        (root / "val" / name).mkdir()
        photo(20, 20).save(root / "val" / name / "x.jpg")
    data = prepared(root)
    assert not data.validates_on_test
    assert [len(whole(loader())[1]) for loader in (data.val_dataloader, data.test_dataloader)] == [2, 5]


def test_more_classes_than_imagenet(tmp_path):
    for split in ("train", "val"):
        for number in range(1001):
            (tmp_path / split / f"{number:04d}").mkdir(parents=True)
            (tmp_path / split / f"{number:04d}" / "x.jpg").touch()
    found = find_images(tmp_path)
    names, files = found.class_names, found.splits
    assert (len(names), names[-1]) == (1001, "1000")
    assert files["val"].target.tolist() == list(range(1001))
    assert files["train"].paths.nbytes < 1001 * (len(str(tmp_path)) + 24)  # no Python object for each


# ---- augmentation -----------------------------------------------------------------------------------------------


def by_image(loader, epoch=0):
    """Training images by the index of their file: order and batches do not matter."""
    loader.sampler.set_epoch(epoch)
    return dict(zip(loader.sampler.indices().tolist(), whole(loader)[0], strict=False))


def same(one, other):
    return [torch.equal(one[index], other[index]) for index in sorted(one.keys() & other.keys())]


def test_augmentation_depends_on_seed_epoch_and_image(photos, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    data = prepared(photos, batch_size=3)
    first = by_image(data.train_dataloader())
    torch.manual_seed(99)
    assert all(same(first, by_image(data.train_dataloader())))
    assert not any(same(first, by_image(data.train_dataloader(), epoch=1)))
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    assert not any(same(first, by_image(data.train_dataloader())))


def test_neither_workers_nor_processes_change_the_images(photos, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    options = {"rand_augment": "rand-m9-mstd0.5-inc1", "erase": 0.5}
    alone = by_image(prepared(photos, batch_size=3, **options).train_dataloader())
    data = prepared(photos, batch_size=2, num_workers=2, **options)
    assert all(same(alone, by_image(data.train_dataloader())))
    shards = []
    for rank in range(2):
        data.trainer = type(
            "Trainer", (), {"global_rank": rank, "world_size": 2, "num_devices": 2, "overfit_batches": 0}
        )()
        data.trainer.fit_loop = L.Trainer(logger=False, barebones=True).fit_loop
        shards.append(by_image(data.train_dataloader()))
    assert not shards[0].keys() & shards[1].keys()
    assert len(shards[0]) == len(shards[1]) == 4
    assert all(same(alone, shards[0]) + same(alone, shards[1]))


def own():
    """An augmentation of one's own, made of transforms that draw with three generators."""
    return [v2.RandomResizedCrop(24), v2.RandomApply([v2.ColorJitter(0.5)], p=0.9), Drawn()]


class Drawn(v2.Transform):
    """Draws with Python and NumPy."""

    def transform(self, inpt, params):
        return inpt.roll(random.randrange(8), dims=2) ^ np.random.randint(64)


def test_own_transforms_depend_on_seed_epoch_and_image_whatever_the_workers(photos, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    data = prepared(photos, batch_size=3, image_size=24, transforms=own())
    first = by_image(data.train_dataloader())
    random.seed(9)
    np.random.seed(9)
    workers = prepared(photos, batch_size=2, image_size=24, num_workers=2, transforms=own())
    assert all(same(first, by_image(workers.train_dataloader())))
    assert not any(same(first, by_image(data.train_dataloader(), epoch=1)))
    assert not any(same(first, by_image(prepared(photos, image_size=24).train_dataloader())))
    for loader in (data.class_mean_dataloader(), data.val_dataloader()):  # nothing but training is augmented
        assert loader.dataset.transform is data.plain
    assert data.class_mean_dataloader(augment=True).fingerprint() != data.class_mean_dataloader().fingerprint()


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([v2.RandomHorizontalFlip()], "transforms: wanted bytes or float32 of 3×24×24 after the last one "
            "(RandomHorizontalFlip), got uint8 of "),
        ([v2.CenterCrop(24), v2.Grayscale()], "transforms: wanted bytes or float32 of 3×24×24 after the last one "
            "(Grayscale), got uint8 of 1×24×24 from uint8 of "),
        ([v2.CenterCrop(24), v2.ToPILImage()], "transforms: wanted bytes or float32 of 3×24×24 after the last one "
            "(ToPILImage), got a Image from "),
        ([v2.CenterCrop(24), v2.ToDtype(torch.float64)], "transforms: wanted bytes or float32 of 3×24×24 after the "
            "last one (ToDtype), got float64 of 3×24×24"),
        ([v2.CenterCrop(24), v2.ToDtype(torch.float32)], "transforms: wanted bytes or floats in [0, 1], got floats up "
            "to 2"),
        ([v2.RandomCrop(200)], "transforms: RandomCrop fails on uint8 of 3×"),
        ([v2.RandomApply([v2.Normalize([0.5], [0.5])])], "transforms: Normalize: each model normalises for itself; "
            "leave it out"),
        ([v2.MixUp(num_classes=3)], "transforms: MixUp mixes whole batches; leave it out, and set mixup of an "
            "ImageFolderDataModule"),
        ([], "transforms: wanted bytes or float32 of 3×24×24 after the last one (no transform), got uint8 of "),
    ],
)  # fmt: skip
def test_transforms_that_make_no_batch_are_named_before_the_run(photos, transforms, message):
    assert refusal(prepared, photos, image_size=24, transforms=transforms).startswith(message)


@pytest.mark.parametrize("options", [{"erase": 0.5}, {"rand_augment": "rand-m9"}])
def test_own_transforms_take_the_place_of_others(photos, options):
    message = "transforms take the place of rand_augment and erase; leave these out"
    assert refusal(prepared, photos, transforms=own(), **options) == message


def test_an_image_that_is_shown_again_is_augmented_otherwise(photos):
    few = prepared(photos, batch_size=5, balanced_sampling=True)
    few.splits["train"] = ImageFiles(few.splits["train"].paths[:5], np.array([0, 0, 0, 0, 1]))
    indices, images = few.train_dataloader().sampler.indices().tolist(), whole(few.train_dataloader())[0]
    again = [image for index, image in zip(indices, images, strict=True) if index == 4]
    assert len(again) in (2, 3)
    assert not torch.equal(*again[:2])
    assert few.class_counts == {"train": [2, 2], "val": [2, 3], "test": [2, 3]}


def test_a_class_whose_training_images_are_all_damaged_is_named(root):
    classes = sorted(path.name for path in (root / "train").iterdir())
    for file in (root / "train" / classes[0]).iterdir():
        file.unlink()  # a link to the others' photo
        file.write_bytes(b"no image")
    message = f"no training image of class {classes[0]}: none can be read; replace them, or drop the class"
    assert refusal(prepared, root, on_error="skip") == message


def test_the_global_generator_is_left_alone(photos):
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    list(prepared(photos).train_dataloader())
    assert torch.equal(torch.rand(3), wanted)


def test_large_images_are_decoded_small(tmp_path):
    """A picture of 1,600 pixels: the crop is that of the whole, but for rounding."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            photo(1600, 1200, seed=len(name)).save(tmp_path / split / name / "x.jpg", quality=95)
    data = prepared(tmp_path)
    crop, seen = data.augmented.transforms[0], []
    draft = Image.Image.draft
    with Image.open(tmp_path / "val" / "cat" / "x.jpg") as image:
        torch.manual_seed(3)
        small = np.asarray(crop(image)).astype(int)
        assert image.size in [(200, 150), (400, 300), (800, 600)]
        assert draft is Image.Image.draft
    with Image.open(tmp_path / "val" / "cat" / "x.jpg") as image:
        image.draft = lambda *args: seen.append(args)
        torch.manual_seed(3)
        whole_image = np.asarray(crop(image)).astype(int)
        assert image.size == (1600, 1200)
    assert seen
    assert np.abs(small - whole_image).mean() < 2


def test_random_erasing_draws_noise_between_normalised_pixels(photos):
    data = prepared(photos, erase=1.0)
    images, _ = whole(data.train_dataloader())
    assert images.dtype == torch.float32
    outside = (images < -0.05) | (images > 1.05)  # N(mean, std) leaves [0, 1] now and then, pixels do not
    assert 0.002 < outside.float().mean() < 0.2
    untouched, _ = whole(prepared(photos, erase=1e-9).train_dataloader())
    bytes_, _ = whole(prepared(photos).train_dataloader())
    torch.testing.assert_close(untouched, bytes_.float() / 255, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1), (0.8, 1.0)])  # an int as well
def test_mixing(photos, mixup, cutmix, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    data = prepared(photos, mixup=mixup, cutmix=cutmix)
    data.trainer = L.Trainer(logger=False, barebones=True)
    data.trainer.training = True
    batch = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8), torch.tensor([0, 1, 1, 0])
    torch.manual_seed(1)
    images, target = data.on_after_batch_transfer(batch, 0)
    torch.manual_seed(2)  # whatever a student has drawn before
    assert torch.equal(data.on_after_batch_transfer(batch, 0)[0], images)
    data.trainer.fit_loop.epoch_loop.batch_progress.current.ready += 1
    assert not torch.equal(data.on_after_batch_transfer(batch, 0)[0], images)
    assert images.shape == (4, 3, 16, 16)
    assert 0 <= images.min() < images.max() <= 1
    assert target.shape == (4, 2)
    torch.testing.assert_close(target.sum(dim=1), torch.ones(4))
    data.trainer.validating = True
    assert data.on_after_batch_transfer(batch, 0) is batch
    assert prepared(photos).on_after_batch_transfer(batch, 0) is batch


class Watcher(L.LightningModule):
    """Keeps the targets it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[1])

    def configure_optimizers(self):
        return None


@pytest.mark.filterwarnings("ignore:.*configure_optimizers:UserWarning")
def test_mixing_differs_by_batch_and_epoch(photos, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    seen = []
    for _ in range(2):
        trainer = L.Trainer(max_epochs=2, accelerator="cpu", logger=False, barebones=True)
        trainer.fit(watcher := Watcher(), prepared(photos, mixup=0.8, batch_size=2))
        seen.append(watcher.seen)
        torch.rand(7)  # whatever is drawn in between
    mixed = [target.max().item() for target in seen[0] if target.max() < 1]  # else of one class
    assert len(set(mixed)) == len(mixed) > 2
    assert all(map(torch.equal, *seen))


# ---- name of what is in it --------------------------------------------------------------------------------------


def test_fingerprint(root, monkeypatch):
    def fingerprint(augment=False, **options):
        return prepared(root, **options).class_mean_dataloader(augment).fingerprint()

    first = fingerprint()
    assert fingerprint(batch_size=2) == fingerprint(num_workers=1) == first
    found = {first, fingerprint(augment=True), fingerprint(image_size=17), fingerprint(resize=20)}
    found.add(fingerprint(interpolation="bicubic"))
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert fingerprint() == first  # the plain images are the same for every seed
    found.add(fingerprint(augment=True))
    assert len(found) == 6
    file = root / "train" / "dog" / "0.jpg"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    os.utime(file, ns=(0, 1))
    found.add(fingerprint())  # another file of the same name
    photo(20, 20).save(root / "train" / "dog" / "new.jpg")
    found.add(fingerprint())
    os.rename(root / "train" / "dog" / "new.jpg", root / "train" / "cat" / "new.jpg")
    found.add(fingerprint())
    assert len(found) == 9


# ---- wrong ------------------------------------------------------------------------------------------------------


def remove(folder):
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train").rename(root / "x"), "{root} holds {root}/val, but no folder of training images"),
        (lambda root: remove(root / "val" / "dog"), "{root}: train and val have different classes; only in train: dog"),
        (lambda root: (root / "val" / "zoo").mkdir(), "class folder {root}/val/zoo holds no image (.jpg, .jpeg, "),
    ],
)
def test_what_is_wrong_is_named(root, spoil, message):
    spoil(root)
    with pytest.raises(NdkdError, match=f"^{re.escape(message.format(root=root))}"):
        prepared(root)


@pytest.mark.parametrize(
    ("content", "num_workers"), [(b"", 0), (b"no image", 0), (None, 0), (None, 1)], ids=lambda value: str(value)
)
def test_a_corrupt_file_is_named(root, content, num_workers, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # its worker is waited for
    file = root / "train" / "dog" / "0.jpg"
    whole_file = file.read_bytes()
    file.unlink()
    file.write_bytes(whole_file[:-40] if content is None else content)
    why = "[^()]*truncated[^()]*.*" if content is None else "it is not an image"
    data = prepared(root, batch_size=3, num_workers=num_workers)  # nobody is left over
    for loader in (data.train_dataloader(), data.class_mean_dataloader()):
        with pytest.raises(
            NdkdError, match=rf"\Aimage {file} cannot be read \({why}\): replace or remove it, or set on_error skip\Z"
        ):
            list(loader)
    gc.collect()  # the workers, before the interval is what it was


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "batch_size: wanted at least 2, got 1"),
        ({"image_size": 0}, "image_size: wanted at least 1, got 0"),
        ({"num_workers": -1}, "num_workers: wanted at least 0, got -1"),
        ({"mixup": -0.1}, "mixup: wanted at least 0, got -0.1"),
        ({"cutmix": -1.0}, "cutmix: wanted at least 0, got -1.0"),
        ({"erase": 1.1}, "erase: wanted a probability, 0 to 1, got 1.1"),
        ({"rand_augment": "strong"}, "rand_augment: timm does not know 'strong'; try rand-m9-mstd0.5-inc1"),
    ],
)
def test_options(photos, options, message):
    with pytest.raises(NdkdError, match=f"^{message}$"):
        prepared(photos, **options)


# ---- ImageNet ---------------------------------------------------------------------------------------------------


def test_imagenet_in_folders(photos):
    data = prepared(photos, ImageNetDataModule)
    data.prepare_data()
    assert isinstance(data, L.LightningDataModule)
    assert len(whole(data.val_dataloader())[1]) == 5


def test_imagenet_is_unpacked_from_its_archives(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "ImageNet", lambda root, split: asked.append((root, split)))
    (tmp_path / "train").mkdir()
    ImageNetDataModule(tmp_path).prepare_data()
    assert asked == [(tmp_path, "val")]


def test_imagenet_is_not_there(tmp_path):
    message = (
        f"^ImageNet: there is no folder {tmp_path}/train, and no archive that can be unpacked \\(.*{tmp_path}.*\\); "
    )
    with pytest.raises(NdkdError, match=message + "set data.init_args.root to the folder with train and val$"):
        ImageNetDataModule(tmp_path).prepare_data()
