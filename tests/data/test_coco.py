"""Images with boxes in COCO's format: what is read, how it is sharded and mirrored, and what is wrong with it."""

import gc
import json
import os
import re

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from PIL import Image

from ndkd.data import CocoDataModule
from ndkd.data.samplers import GroupedOrder, ShardedOrder
from ndkd.errors import NdkdError

SIZES = {12: (40, 30), 5: (30, 40), 900: (64, 48), 7: (33, 70), 8: (24, 24)}
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
ANNOTATIONS = [
    {"id": 3, "image_id": 900, "category_id": 18, "bbox": [1.5, 2, 10, 20.25], "area": 99.5, "iscrowd": 0},
    {"id": 1, "image_id": 12, "category_id": 90, "bbox": [-5, 10, 15, 30]},
    {"id": 2, "image_id": 900, "category_id": 1, "bbox": [10, 10, 30, 20], "area": 300, "iscrowd": 1},
    {"id": 4, "image_id": 900, "category_id": 1, "bbox": [0, 0, 64, 48], "area": 3000},
    {"id": 9, "image_id": 7, "category_id": 1, "bbox": [30, 60, 3, 10]},
]


@pytest.fixture
def root(tmp_path):
    """Five images in two splits alike: number 5 and 8 are empty."""
    (tmp_path / "annotations").mkdir()
    images = [{"id": k, "file_name": f"{k}.png", "width": w, "height": h} for k, (w, h) in SIZES.items()]
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for number, (width, height) in SIZES.items():
            pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / f"{number}.png")
        content = {"images": images, "categories": CATEGORIES, "annotations": ANNOTATIONS}
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return tmp_path


def change(root, edit, split="train"):
    """Spoil a JSON file."""
    file = root / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def prepared(root, **options):
    files = (root / "annotations" / f"instances_{split}.json" for split in ("train", "val"))
    data = CocoDataModule(*files, **({"num_workers": 0} | options))
    data.setup()
    return data


def by_id(loader):
    return {
        target["image_id"].item(): (image, target) for batch in loader for image, target in zip(*batch, strict=True)
    }


def on_rank(data, rank, world_size):
    attributes = {"global_rank": rank, "world_size": world_size, "num_devices": 1, "overfit_batches": 0}
    data.trainer = type("Trainer", (), attributes)()
    data.trainer.fit_loop = L.Trainer(logger=False, barebones=True).fit_loop
    return data


# ---- what is read -----------------------------------------------------------------------------------------------


def test_classes(root):
    data = prepared(root)
    assert data.class_names == ("__background__", "person", "dog", "toothbrush")
    assert data.category_ids == (0, 1, 18, 90)
    assert (data.num_classes, data.validates_on_test, data.mean[0], data.std[0]) == (4, True, 0.485, 0.229)
    assert (data.train.name, data.val.name) == ("instances_train.json", "instances_val.json")


def test_evaluation_has_every_annotation_as_it_is(root):
    data = prepared(root)
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        batches = list(loader)
        assert [target["image_id"].item() for _, (target,) in batches] == list(SIZES)
    found = by_id(data.val_dataloader())
    for number, (image, target) in found.items():
        wanted = np.array(Image.open(root / "val" / f"{number}.png"))
        assert torch.equal(image, torch.from_numpy(wanted).permute(2, 0, 1))
        assert target["boxes"].shape == (len(target["labels"]), 4)
        types = {name: value.dtype for name, value in target.items()}
        whole, real = torch.int64, torch.float32
        assert types == {"boxes": real, "labels": whole, "iscrowd": whole, "area": real, "image_id": whole}
    target = found[900][1]
    assert target["boxes"].tolist() == [[1.5, 2, 11.5, 22.25], [10, 10, 40, 30], [0, 0, 64, 48]]
    assert [target[name].tolist() for name in ("labels", "iscrowd", "area")] == [
        [2, 1, 1],
        [0, 1, 0],
        [99.5, 300, 3000],
    ]
    assert found[12][1]["boxes"].tolist() == [[-5, 10, 10, 40]]
    assert found[12][1]["area"].tolist() == [450]
    assert found[5][1]["boxes"].shape == (0, 4)


def test_training_leaves_out_crowds_and_cuts_boxes_off(root):
    found = by_id(prepared(root, flip=False).train_dataloader())
    assert found.keys() == SIZES.keys()
    assert found[900][1]["boxes"].tolist() == [[1.5, 2, 11.5, 22.25], [0, 0, 64, 48]]
    assert found[900][1]["iscrowd"].tolist() == [0, 0]
    assert found[12][1]["boxes"].tolist() == [[0, 10, 10, 30]]
    assert found[8][1]["boxes"].shape == (0, 4)


def test_boxes_without_area_are_left_out_of_training(root):
    """COCO's train2017 has two of them."""
    change(root, lambda content: content["annotations"][4].update(bbox=[5, 60, 10, 0]))
    change(root, lambda content: content["annotations"][4].update(bbox=[5, 60, 10, 0]), "val")
    with pytest.warns(UserWarning, match="instances_train.json: boxes without area are left out: 1, .* of image 7"):
        data = prepared(root)
    assert by_id(data.class_mean_dataloader())[7][1]["boxes"].shape == (0, 4)
    assert by_id(data.val_dataloader())[7][1]["boxes"].tolist() == [[5, 60, 15, 60]]


def test_batches(root):
    images, targets = next(iter(prepared(root, batch_size=3).train_dataloader()))
    assert (type(images), type(targets), len(images), len(targets)) == (list, list, 3, 3)


def test_other_folders(root):
    os.rename(root / "train", root / "pictures")
    os.rename(root / "val", root / "more")
    data = prepared(root, train_images=root / "pictures", val_images=root / "more")
    assert len(by_id(data.train_dataloader())) == len(by_id(data.val_dataloader())) == 5


def test_images_are_read_as_they_are_stored(root):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    with Image.open(root / "val" / "12.png") as image:
        image.convert("L").save(root / "val" / "12.png", exif=exif)
    image, _ = by_id(prepared(root).val_dataloader())[12]
    assert image.shape == (3, 30, 40)
    assert torch.equal(image[0], image[1])


# ---- order, mirroring -------------------------------------------------------------------------------------------


def epochs(data, count=8):
    loader = data.train_dataloader()
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        yield by_id(loader)


def test_images_are_mirrored_with_their_boxes(root):
    plain = by_id(prepared(root).class_mean_dataloader())
    mirrored = 0
    for found in epochs(prepared(root)):
        for number, (image, target) in found.items():
            width, boxes = SIZES[number][0], plain[number][1]["boxes"]
            if not torch.equal(image, plain[number][0]):
                mirrored += 1
                assert torch.equal(image, plain[number][0].flip(2))
                boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
            assert torch.equal(target["boxes"], boxes)
    assert 10 < mirrored < 30  # of 40


def test_neither_workers_nor_processes_change_the_images(root):
    alone = list(epochs(prepared(root, num_workers=1), 2))[1]
    shards = [list(epochs(on_rank(prepared(root, batch_size=1), rank, 2), 2))[1] for rank in range(2)]
    assert [len(shard) for shard in shards] == [2, 2]
    for number, (image, target) in {**shards[0], **shards[1]}.items():
        assert torch.equal(image, alone[number][0])
        assert torch.equal(target["boxes"], alone[number][1]["boxes"])


def test_each_image_is_evaluated_once(root):
    data = prepared(root)
    for loader in (data.val_dataloader, data.class_mean_dataloader):
        shards = []
        for rank in range(2):
            on_rank(data, rank, 2)
            shards.append([target["image_id"].item() for _, (target,) in loader()])
        assert shards == [[12, 900, 8], [5, 7]]


def test_batches_of_one_shape(root):
    data = prepared(root, group_by_shape=True)
    seen = set()
    for epoch in range(8):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader) == 2
        for images, targets in batches:
            assert len({image.shape[1] > image.shape[2] for image in images}) == 1
            seen |= {target["image_id"].item() for target in targets}
    assert seen == SIZES.keys()


@pytest.mark.parametrize("size", [1, 7, 20, 61])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_all_ranks_have_as_many_batches_of_one_shape(size, batch_size):
    group = np.random.default_rng(size).integers(0, 2, size)
    for world_size in (1, 2, 3)[: min(size, 3)]:
        counts, seen = set(), []
        for rank in range(world_size):
            order = GroupedOrder(ShardedOrder(size, True, 0, rank, world_size), group, batch_size)
            items = [index for index, _ in order]
            batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
            assert all(len(set(group[batch])) == 1 for batch in batches)
            assert len(batches) == -(-len(order) // batch_size)
            counts.add(len(batches))
            seen += items
        assert counts == {max(1, size // world_size // batch_size)}
        assert len(seen) == len(set(seen)) > size - 2 * batch_size * world_size


# ---- name of what is in it --------------------------------------------------------------------------------------


def test_fingerprint(root, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")

    def fingerprint(augment=False, **options):
        return prepared(root, **options).class_mean_dataloader(augment).fingerprint()

    first, mirrored = fingerprint(), fingerprint(augment=True)
    assert fingerprint(batch_size=3, num_workers=1) == fingerprint(augment=True, flip=False) == first != mirrored
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    assert fingerprint() == first
    assert fingerprint(augment=True) != mirrored
    change(root, lambda content: content["annotations"][0]["bbox"].__setitem__(0, 2))
    changed = fingerprint()
    os.utime(root / "train" / "5.png", ns=(0, 1))
    assert len({first, changed, fingerprint()}) == 3


# ---- wrong ------------------------------------------------------------------------------------------------------


def annotation(place=0, **new):
    return lambda content: content["annotations"][place].update(new)


FILE = "{root}/annotations/instances_train.json"
ABOUT = FILE + ": annotation 3 of image 900, category 18, bbox "


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.pop("images"), FILE + " is not in COCO's format: wanted a list 'images', it is missing, empty or"),
        (lambda c: c.update(images=[]), FILE + " is not in COCO's format: wanted a list 'images'"),
        (lambda c: c.pop("categories"), FILE + " is not in COCO's format: wanted a list 'categories'"),
        (lambda c: c.update(annotations=3), FILE + " is not in COCO's format: wanted a list 'annotations'"),
        (lambda c: c["images"][1].update(id=12), FILE + ": two of the images have the id 12; give each its own"),
        (lambda c: c["categories"][1].update(id=18), FILE + ": two of the categories have the id 18; give"),
        (annotation(id=1), FILE + ": two of the annotations have the id 1; give each its own"),
        (lambda c: c["images"][2].pop("width"), FILE + ": images[2] (id 900): wanted 'width' as int, got None"),
        (lambda c: c["images"].append(5), FILE + ": images[5]: wanted 'id' as int, got None; correct it"),
        (annotation(bbox="1 2 3 4"), FILE + ": annotations[0] (id 3): wanted 'bbox' as list, got '1 2 3 4'; correct"),
        (annotation(category_id=2), FILE + ": annotation 3 of image 900, category 2, bbox [1.5, 2, 10, 20.25]: "
         "wanted one of the categories, 1, 18, 90; correct or remove it"),
        (annotation(image_id=2), FILE + ": annotation 3 of image 2, category 18, bbox [1.5, 2, 10, 20.25]: wanted "
         "the id of one of the images; correct or remove it"),
        (annotation(bbox=[1, 2, 3]), ABOUT + "[1, 2, 3]: wanted a bbox of four numbers, left, top, width and height"),
        (annotation(bbox=[1, 2, 3, None]), ABOUT + "[1, 2, 3, None]: wanted a bbox of four numbers"),
        (annotation(bbox=[1, 2, 3, float("nan")]), ABOUT + "[1, 2, 3, nan]: wanted a bbox of four numbers"),
        (annotation(bbox=[1, 2, "3", 4], iscrowd=1), ABOUT + "[1, 2, '3', 4]: wanted a bbox of four numbers"),
        (annotation(bbox=[1, 2, -3, 4]), ABOUT + "[1, 2, -3, 4]: wanted no negative width or height; correct or"),
        (annotation(bbox=[64, 2, 3, 4]), ABOUT + "[64, 2, 3, 4]: wanted a box inside the image; correct or remove it"),
        (annotation(bbox=[1, -9, 3, 9]), ABOUT + "[1, -9, 3, 9]: wanted a box inside the image; correct or remove it"),
        (lambda c: [a.update(iscrowd=1) for a in c["annotations"]], FILE + ": no image has a box to train on, crowds"),
        (lambda c: c.update(annotations=[]), FILE + ": no image has a box to train on, crowds left out; add annotat"),
        (lambda c: c["categories"][0].update(name="brush"), FILE + " and {root}/annotations/instances_val.json have "
         "different categories; only in one of them: 90 (brush), 90 (toothbrush)"),
        (lambda c: c["images"][1].update(file_name="x.png"), FILE + ": image 5 is missing, there is no file "
         "{root}/train/x.png; add it, or set data.init_args.train_images to the folder"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(root, spoil, message):
    change(root, spoil)
    with pytest.raises(NdkdError, match=f"^{re.escape(message.format(root=root))}"):
        prepared(root)


def test_crowds_may_have_any_numbers(root):
    change(root, annotation(2, bbox=[100, 100, 0, -3]), "val")
    assert by_id(prepared(root).val_dataloader())[900][1]["boxes"][1].tolist() == [100, 100, 100, 97]


@pytest.mark.parametrize(("content", "why"), [(None, "No such file or directory"), ("{", "not JSON: .*")])
def test_no_json(root, content, why):
    file = root / "annotations" / "instances_val.json"
    file.unlink()
    if content:
        file.write_text(content)
    message = rf"^{file} cannot be read \({why}\): set data.init_args.val to a file like COCO's$"
    with pytest.raises(NdkdError, match=message):
        prepared(root)
    file.write_text("[]")
    with pytest.raises(NdkdError, match=f"^{file} is not in COCO's format: "):
        prepared(root)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_corrupt_image_is_named(root, num_workers, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # its worker is waited for
    file = root / "train" / "900.png"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(NdkdError, match=rf"\Aimage {file} cannot be read \(.*\): replace or remove it\Z"):
        list(prepared(root, num_workers=num_workers).train_dataloader())
    gc.collect()  # the worker, before the interval is what it was


def test_an_image_of_another_size_is_named(root):
    Image.new("RGB", (30, 40)).save(root / "train" / "12.png")
    message = rf"^image {root}/train/12.png is 30×40, its entry \(id 12\) says 40×30; correct the one that is wrong$"
    with pytest.raises(NdkdError, match=message):
        list(prepared(root).train_dataloader())


def test_batch_size(root):
    with pytest.raises(NdkdError, match="^batch_size: wanted at least 1, got 0$"):
        prepared(root, batch_size=0)
