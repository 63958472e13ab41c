"""Images without labels: which are found, when each is shown, and what a batch with them looks like."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ndkd.callbacks.auto_weights import AutoWeights
from ndkd.callbacks.image_counts import counts
from ndkd.callbacks.opening import described
from ndkd.commands.export_int8 import training_images
from ndkd.data import CIFAR10DataModule, ImageFolderDataModule, InMemoryImageFolderDataModule
from ndkd.data.base import HasUnlabeled, PartlyLabeled, labeled_part
from ndkd.data.samplers import BalancedOrder, ShardedOrder
from ndkd.data.unlabeled import UnlabeledBeside, mixed_apart, unlabeled_files
from ndkd.errors import NdkdError
from ndkd.models import build_model
from tests.distillation.watching import Watch

KINDS = {
    ImageFolderDataModule: {"image_size": 8, "num_workers": 0},
    InMemoryImageFolderDataModule: {"pad": 1},
}


def save(file, seed):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(file)


@pytest.fixture
def root(tmp_path):
    """Two classes of three images to train on and one to validate and test on; seven others, in three folders."""
    for number, name in enumerate(("cat", "dog")):
        for index in range(3):
            save(tmp_path / "labelled/train" / name / f"{index}.png", 10 * number + index)
        save(tmp_path / "labelled/val" / name / "0.png", 90 + number)
        save(tmp_path / "labelled/test" / name / "0.png", 95 + number)
    for index, folder in enumerate(("", "", "", "cat", "cat", "a/b", "a/b")):
        save(tmp_path / "others" / folder / f"{index}.png", 100 + index)
    (tmp_path / "others/notes.txt").write_text("no image")
    return tmp_path


def prepared(root, kind=InMemoryImageFolderDataModule, stage=None, **options):
    data = kind(root / "labelled", **({"batch_size": 4, "unlabeled": root / "others"} | KINDS[kind] | options))
    data.setup(stage)
    return data


def order(size=6, unlabeled=7, batch_size=4, ratio=1.0, rank=0, world_size=1, seed=3, epoch=0, **options):
    made = UnlabeledBeside(ShardedOrder(size, True, seed, rank, world_size), unlabeled, batch_size, ratio, **options)
    made.set_epoch(epoch)
    return made


# ---- the order --------------------------------------------------------------------------------------------------


def test_labelled_images_are_those_of_an_epoch_without_the_others_and_come_first_in_each_batch():
    mixed = order(size=10)
    plain = ShardedOrder(10, True, 3, 0, 1)
    for epoch in range(3):
        mixed.set_epoch(epoch)
        plain.set_epoch(epoch)
        indices = mixed.indices()
        assert (mixed.batch_size, len(mixed)) == (8, len(indices)) == (8, 20)
        batches = [indices[start : start + 8] for start in range(0, 20, 8)]
        assert [[int(index >= 10) for index in batch] for batch in batches] == [[0] * 4 + [1] * 4] * 2 + [[0, 0, 1, 1]]
        items = list(mixed)
        assert [index for index, _ in items] == indices.tolist()
        assert [item for item in items if item[0] < 10] == list(plain)  # with their seeds


@pytest.mark.parametrize(
    ("ratio", "batch_size", "last"), [(1.0, 8, 4), (0.5, 6, 3), (0.1, 5, 3), (3.0, 16, 8), (1.4, 10, 5)]
)
def test_the_ratio(ratio, batch_size, last):
    mixed = order(size=10, ratio=ratio)
    assert mixed.batch_size == batch_size
    assert len(mixed) % batch_size == last


def test_a_single_labelled_image_at_the_end_is_left_out_as_ever_and_others_if_asked():
    assert order(size=9).sizes == [4, 4]
    assert order(size=10, drop_last=True).sizes == [4, 4]
    assert order(size=3, drop_last=True).sizes == [3]


def test_each_is_shown_once_before_one_is_shown_again_whatever_the_epochs():
    mixed, shown = order(size=10), []
    for epoch in range(7):  # 10 of 7 images in each: ten passes
        mixed.set_epoch(epoch)
        shown += [item for item in mixed if item[0] >= 10]
    for start in range(0, 70, 7):
        assert sorted(index for index, _ in shown[start : start + 7]) == list(range(10, 17))
    assert len({tuple(index for index, _ in shown[start : start + 7]) for start in range(0, 70, 7)}) > 5
    assert len({seed for _, seed in shown}) == 70  # the same image is augmented otherwise in each pass


def test_an_epoch_is_a_function_of_seed_and_epoch_alone():
    going_on = order()
    for epoch in range(5):
        going_on.set_epoch(epoch)
    assert list(going_on) == list(order(epoch=4))  # of a resumed run
    assert list(order(epoch=4)) != list(order(epoch=3))
    assert [i for i in order(epoch=4, seed=5).indices() if i >= 6] != [i for i in order(epoch=4).indices() if i >= 6]


def test_two_processes_share_what_one_would_show():
    for epoch in range(3):
        alone = [item for item in order(size=16, batch_size=8, epoch=epoch) if item[0] >= 16]
        shares = [[i for i in order(size=16, rank=r, world_size=2, epoch=epoch) if i[0] >= 16] for r in range(2)]
        assert [len(share) for share in shares] == [8, 8]
        assert [item for pair in zip(*shares, strict=True) for item in pair] == alone


def test_overfit_batches_are_the_same_in_every_epoch():
    mixed = order()
    first = list(mixed)
    mixed.is_fixed = True
    mixed.set_epoch(4)
    assert list(mixed) == first


def test_balanced_sampling_is_of_the_labelled_images():
    target = np.array([0] * 7 + [1])
    mixed = UnlabeledBeside(BalancedOrder(target, 0, 0, 1), 5, 4, 1.0)
    shown = [index for index, _ in mixed if index < 8]
    assert np.bincount(target[shown]).tolist() == [4, 4]


# ---- the files --------------------------------------------------------------------------------------------------


def test_images_in_any_layout(root):
    paths, skipped = unlabeled_files(root / "others", {}, False)
    assert [os.path.basename(path) for path in paths.tolist()] == [b"%d.png" % n for n in (0, 1, 2, 5, 6, 3, 4)]
    assert not skipped
    (root / "others/broken.png").write_text("no image")
    assert len(unlabeled_files(root / "others", {}, True)[0]) == 7
    with pytest.raises(NdkdError, match=r"^image .*broken.png cannot be read"):
        prepared(root)
    data = prepared(root, on_error="skip")
    assert data.remarks[-1].startswith("of the unlabelled, not read: 1 that cannot be read")


def as_it_is(root, file):
    return root / "labelled/train"


def symbolic_link(root, file):
    (root / "others/x.png").symlink_to(file)


def hard_link(root, file):
    os.link(file, root / "others/x.png")


def folder_of_links(root, file):
    (root / "others/x").symlink_to(file.parent, target_is_directory=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [as_it_is, symbolic_link, hard_link, folder_of_links])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_labelled_images_among_them_are_named(root, kind, way, split):
    folder = way(root, root / "labelled" / split / "dog/0.png") or root / "others"
    where = "train" if way is as_it_is else split
    with pytest.raises(NdkdError, match=rf"^unlabeled: .* among the labelled {where} images.*; give a folder") as found:
        prepared(root, kind, unlabeled=folder)
    assert ("/dog/0.png); give" in str(found.value)) == (way is not as_it_is)  # under its other name


def test_the_whole_set_is_no_folder_of_others(root):
    with pytest.raises(NdkdError, match=r"^unlabeled: .*0.png and 9 more of .*labelled are among the labelled test"):
        prepared(root, unlabeled=root / "labelled")


def test_nothing_to_read(root):
    with pytest.raises(NdkdError, match=r"^unlabeled: wanted a folder of images, .*nowhere does not exist$"):
        prepared(root, unlabeled=root / "nowhere")
    with pytest.raises(NdkdError, match=r"^unlabeled: wanted a folder of images, .*notes.txt is a file$"):
        prepared(root, unlabeled=root / "others/notes.txt")
    (root / "empty").mkdir()
    (root / "empty/a.gif").touch()
    with pytest.raises(NdkdError, match=r"^unlabeled: .*empty holds no image \(.*\); not read: 1 .gif; add some, or "):
        prepared(root, ImageFolderDataModule, unlabeled=root / "empty")


def test_links_that_lead_nowhere(root):
    (root / "link").symlink_to("gone")
    with pytest.raises(NdkdError, match=r"link is a link to gone, which leads nowhere: mend or remove it$"):
        prepared(root, unlabeled=root / "link")
    (root / "others/y.png").symlink_to("gone.png")
    with pytest.raises(NdkdError, match=r"others/y.png is a link to gone.png, which leads nowhere"):
        prepared(root, unlabeled=root / "others")
    data = prepared(root, unlabeled=root / "others", on_error="skip")
    assert not [path for path in data.unlabeled_paths if path.endswith(b"y.png")]


@pytest.mark.parametrize("ratio", [0, -1.0, float("nan"), float("inf"), 101, True, None])
@pytest.mark.parametrize("kind", KINDS)
def test_a_ratio_of_nothing(tmp_path, kind, ratio):
    with pytest.raises(NdkdError, match=rf"^unlabeled_ratio: wanted a number above 0 and at most 100, got {ratio};"):
        kind(tmp_path, unlabeled_ratio=ratio)


def test_the_folder_is_wanted_in_training_alone(root):
    shutil.rmtree(root / "others")
    for kind in KINDS:
        data = prepared(root, kind, stage="test")
        assert data.unlabeled_size == 0
        with pytest.raises(NdkdError, match=r"^unlabeled: wanted a folder"):
            data.setup("fit")


# ---- batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transforms", [None, [v2.RandomHorizontalFlip()]])
@pytest.mark.parametrize("kind", KINDS)
def test_batches(root, kind, transforms):
    data = prepared(root, kind, transforms=transforms)
    assert isinstance(data, HasUnlabeled)
    batches = list(data.train_dataloader())
    assert [(len(b.images), b.labeled, b.target.tolist()[b.labeled :]) for b in batches] == [
        (8, 4, [-1] * 4),
        (4, 2, [-1] * 2),
    ]
    for batch in batches:
        assert isinstance(batch, PartlyLabeled)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert (batch.target[: batch.labeled] >= 0).all()
        images, target = labeled_part(batch)
        assert len(images) == len(target) == batch.labeled
    assert all(torch.equal(a.images, b.images) for a, b in zip(batches, data.train_dataloader(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_loaders_have_labelled_images_alone(root, kind):
    data = prepared(root, kind)
    for loader in (data.class_mean_dataloader(), data.class_mean_dataloader(augment=True), data.val_dataloader()):
        assert all(len(batch) == 2 and (batch[1] >= 0).all() for batch in loader)
    assert data.class_counts["train"] == [3, 3]
    assert data.sizes["train"] == 6


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shown_of_them(root, kind):
    """Each of the unlabelled files, with its own pixels."""
    plain = {"pad": 0, "flip": False} if kind is InMemoryImageFolderDataModule else {"transforms": [v2.Identity()]}
    data = prepared(root, kind, **plain, **({"resize": 8} if kind is ImageFolderDataModule else {}))
    files = sorted((root / "others").rglob("*.png"))
    wanted = {np.asarray(Image.open(file)).transpose(2, 0, 1).tobytes() for file in files}
    seen, loader = [], data.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            rest = batch.images[batch.labeled :]
            rest = rest if rest.dtype == torch.uint8 else (rest * 255).round().byte()
            seen += [image.contiguous().numpy().tobytes() for image in rest]
    assert len(seen) == 12
    assert set(seen[:7]) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_their_folder_may_lie_beside_those_of_the_splits(root, kind):
    (root / "others").rename(root / "labelled/others")
    (root / "labelled/more").mkdir()
    data = prepared(root, kind, unlabeled=root / "labelled/others")
    assert data.unlabeled_size == 7
    assert data.remarks == ["train/, val/, test/; folders beside them that are not used: more"]
    for split in ("val", "test"):
        shutil.rmtree(root / "labelled" / split)
    (root / "labelled/more").rmdir()
    for place in ("others", "cat", "dog"):  # class folders alone: it would be a class
        source = root / "labelled" / place if place == "others" else root / "labelled/train" / place
        shutil.move(source, root / "classes" / place)
    data = kind(root / "classes", batch_size=4, unlabeled=root / "classes/others", **KINDS[kind])
    with pytest.raises(NdkdError, match=r"among the labelled (train|test|val) images; give a folder that has none"):
        data.setup()


def test_small_images_of_another_size_are_named(root):
    Image.new("RGB", (9, 8)).save(root / "others/wide.png")
    with pytest.raises(NdkdError, match=r"wide.png is 8×9, wanted 8×8 as the first; set image_size$"):
        prepared(root)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_knows_them(root, kind):
    digest = prepared(root, kind).train_dataloader().fingerprint()
    assert digest == prepared(root, kind).train_dataloader().fingerprint()
    assert digest != prepared(root, kind, unlabeled=None).train_dataloader().fingerprint()
    save(root / "others/7.png", 7)
    assert digest != prepared(root, kind).train_dataloader().fingerprint()


def test_the_first_line_says_how_many(root):
    data = prepared(root)
    assert described(data).startswith("6 images, 2 classes, validation 2, test 2, unlabelled 7; train/, val/, test/")
    assert counts(data)["unlabelled"] == 7
    assert "unlabelled" not in counts(prepared(root, stage="test"))


def test_cifar_takes_them_too(root, monkeypatch):
    class Tiny:
        classes, targets = [str(k) for k in range(10)], list(range(10)) * 2

        def __init__(self, root, train):
            self.data = np.zeros((20, 32, 32, 3), np.uint8)

    monkeypatch.setattr(CIFAR10DataModule, "dataset", Tiny)
    data = CIFAR10DataModule(root, unlabeled=root / "others", batch_size=10)
    data.setup("fit")
    assert [(b.images.shape, b.labeled) for b in data.train_dataloader()] == [((20, 3, 32, 32), 10)] * 2


def test_mixing_keeps_both_parts_apart():
    images = torch.cat([torch.zeros(4, 3, 2, 2), torch.ones(4, 3, 2, 2)])
    target = torch.tensor([0, 1, 2, 0, -1, -1, -1, -1])
    for kind in (v2.MixUp, v2.CutMix):
        mixed = mixed_apart(kind(alpha=1.0, num_classes=3), PartlyLabeled(images, target, 4))
        assert torch.equal(mixed.images, images)
        assert mixed.labeled == 4
        assert torch.allclose(mixed.target.sum(dim=1), torch.tensor([1.0] * 4 + [0.0] * 4))
    varied = torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    mixed = mixed_apart(v2.MixUp(alpha=1.0, num_classes=3), PartlyLabeled(varied, target, 4))
    assert not torch.equal(mixed.images[4:], varied[4:])  # these are mixed as well


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_takes_them(root, kind, fit, make_module, terms):
    """Photos with MixUp as well, and a weight that is found by gradients of such batches."""
    losses = terms("ce", "kd", "nd")
    losses["nd"].pseudo_labels = 0.6
    losses["kd"].weight = {"auto": 0.3}
    module = make_module(losses, teacher=build_model("cifar/resnet8", 2))
    mixing = {"mixup": 0.5} if kind is ImageFolderDataModule else {}
    data = kind(root / "labelled", batch_size=4, unlabeled=root / "others", **KINDS[kind], **mixing)
    watch = Watch()
    trainer = fit(module, AutoWeights(), watch, data=data, epochs=2)
    assert [batch.labeled for batch in watch.batches] == [4, 2] * 2
    assert all((batch.target.ndim == 2) == bool(mixing) for batch in watch.batches)
    assert all(loss.isfinite() for loss in watch.losses)
    assert trainer.callback_metrics["train/kd"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_of_an_export_does_without_them(root, kind):
    data = prepared(root, kind, stage="test", unlabeled=root / "gone")
    assert sum(len(images) for images in training_images(data, 5)) == 5
