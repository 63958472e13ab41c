"""The drawn shapes: COCO's format, real boxes and areas, the same bytes for the same seed."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from ndkd.data import CocoDataModule, DrawnShapesDataModule, drawn_shapes
from ndkd.errors import NdkdError

SMALL = {"train": 12, "val": 6, "size": 96}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "set"
    drawn_shapes.draw_set(folder, **SMALL)
    return folder


def content(folder):
    return {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_cocos_own_reader_and_ours_agree(drawn):
    for split, count in (("train", 12), ("val", 6)):
        coco = COCO(drawn / "annotations" / f"instances_{split}.json")
        assert len(coco.getImgIds()) == count
        names = [coco.cats[number]["name"] for number in sorted(coco.cats)]
        assert names == ["circle", "square", "triangle", "star", "ring"]
        boxes = {number: coco.loadAnns(coco.getAnnIds(number)) for number in coco.getImgIds()}
        assert boxes[1] == []
        assert [box["iscrowd"] for box in boxes[2]] == [1]
        assert all(1 <= len(boxes[number]) <= 5 for number in range(3, count + 1))
        assert not any(box["iscrowd"] for number in range(3, count + 1) for box in boxes[number])
        for box in coco.anns.values():
            assert 0 < box["area"] <= box["bbox"][2] * box["bbox"][3]
            left, top, width, height = box["bbox"]
            assert min(left, top) >= 0
            assert max(left + width, top + height) <= 96
    data = CocoDataModule(*(drawn / "annotations" / f"instances_{split}.json" for split in ("train", "val")))
    data.num_workers = 0
    data.setup()
    assert data.category_ids == (0, 2, 3, 7, 40, 90)
    assert [len(targets[0]["boxes"]) for _, targets in data.val_dataloader()][:2] == [0, 1]


def test_outlines():
    """Their areas are those of geometry."""
    for kind, share in {2: np.pi / 4, 3: 1.0, 90: np.pi / 4 * 0.75}.items():
        mask = drawn_shapes.outline(kind, 96, np.array([50.0, 40.0]), 30.0, np.pi / 4)
        (top, left), (bottom, right) = np.argwhere(mask).min(axis=0), np.argwhere(mask).max(axis=0)
        assert mask.sum().item() == pytest.approx((bottom + 1 - top) * (right + 1 - left) * share, rel=0.05)
        assert (top + bottom) / 2 == pytest.approx(40, abs=1)
        assert (left + right) / 2 == pytest.approx(50, abs=1)
    assert not drawn_shapes.outline(90, 96, np.array([50.0, 40.0]), 30.0, 0.0)[40, 50]
    star, triangle = (drawn_shapes.outline(kind, 96, np.array([50.0, 40.0]), 30.0, 0.0).sum() for kind in (40, 7))
    assert triangle == pytest.approx(3 * 3**0.5 / 4 * 30**2, rel=0.05)
    assert star == pytest.approx(10 * 0.5 * 30 * 0.45 * 30 * np.sin(np.pi / 5), rel=0.05)


def test_the_same_seed_draws_the_same_bytes(drawn, tmp_path):
    drawn_shapes.draw_set(tmp_path / "again", **SMALL)
    drawn_shapes.draw_set(tmp_path / "other", **SMALL, seed=1)
    assert content(tmp_path / "again") == content(drawn)
    assert not {file.read_bytes() for file in drawn.glob("*/*.png")} & set(content(tmp_path / "other").values())
    assert sorted(os.listdir(tmp_path)) == ["again", "other"]
    train, val = ({file.read_bytes() for file in (drawn / split).iterdir()} for split in ("train", "val"))
    assert len(train | val) == 18


def test_nothing_is_left_half_drawn(tmp_path, monkeypatch):
    draw = drawn_shapes.draw

    def interrupted(number, *arguments):
        if number == 5:
            raise KeyboardInterrupt
        return draw(number, *arguments)

    monkeypatch.setattr(drawn_shapes, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        drawn_shapes.draw_set(tmp_path / "half", **SMALL)
    assert os.listdir(tmp_path) == []


def module(root, **options):
    data = DrawnShapesDataModule(root, **({"train_size": 12, "val_size": 6, "num_workers": 0} | options))
    data.prepare_data()
    data.setup()
    return data


def test_the_set_is_drawn_when_it_is_first_wanted(drawn, tmp_path):
    data = module(tmp_path / "data" / "shapes")
    assert content(data.root) == content(drawn)
    assert data.sizes == {"train": 12, "val": 6, "test": 6}
    written = {file: file.stat().st_mtime_ns for file in data.root.rglob("*.png")}
    module(data.root)
    assert {file: file.stat().st_mtime_ns for file in data.root.rglob("*.png")} == written


def test_a_folder_of_something_else_is_left_as_it_is(drawn, tmp_path):
    with pytest.raises(NdkdError, match="holds shapes drawn with train 12, val 6, size 96, seed 0: remove it, or name"):
        module(drawn, val_size=7)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(NdkdError, match=f"^{tmp_path} holds no drawn shapes: remove it, or name another root$"):
        module(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize(
    ("name", "number", "least"), [("train_size", 2, 3), ("val_size", 0, 3), ("size", 8, 64), ("drawing_seed", -1, 0)]
)
def test_numbers_that_are_too_small(tmp_path, name, number, least):
    with pytest.raises(NdkdError, match=f"^{name}: wanted at least {least}, got {number}$"):
        DrawnShapesDataModule(tmp_path, **{name: number})


def test_files(drawn):
    entries = json.loads((drawn / "annotations" / "instances_val.json").read_text())["images"]
    for entry in entries:
        with Image.open(drawn / "val" / entry["file_name"]) as image:
            assert (image.mode, image.size) == ("RGB", (entry["width"], entry["height"]))
