"""The drawn shapes: COCO's format, real boxes and areas, the same bytes for the same seed."""

import json
import os

import drawn_shapes as shapes
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from ndkd.data import CocoDataModule
from ndkd.errors import NdkdError

SMALL = ["--train", "12", "--val", "6", "--size", "96"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "set"
    shapes.main([str(folder), *SMALL])
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
        mask = shapes.outline(kind, 96, np.array([50.0, 40.0]), 30.0, np.pi / 4)
        (top, left), (bottom, right) = np.argwhere(mask).min(axis=0), np.argwhere(mask).max(axis=0)
        assert mask.sum().item() == pytest.approx((bottom + 1 - top) * (right + 1 - left) * share, rel=0.05)
        assert (top + bottom) / 2 == pytest.approx(40, abs=1)
        assert (left + right) / 2 == pytest.approx(50, abs=1)
    assert not shapes.outline(90, 96, np.array([50.0, 40.0]), 30.0, 0.0)[40, 50]
    star, triangle = (shapes.outline(kind, 96, np.array([50.0, 40.0]), 30.0, 0.0).sum() for kind in (40, 7))
    assert triangle == pytest.approx(3 * 3**0.5 / 4 * 30**2, rel=0.05)
    assert star == pytest.approx(10 * 0.5 * 30 * 0.45 * 30 * np.sin(np.pi / 5), rel=0.05)


def test_the_same_seed_draws_the_same_bytes(drawn, tmp_path):
    shapes.main([str(tmp_path / "again"), *SMALL])
    (tmp_path / "other").mkdir()  # an empty folder will do
    shapes.main([str(tmp_path / "other"), *SMALL, "--seed", "1"])
    assert content(tmp_path / "again") == content(drawn)
    assert not {file.read_bytes() for file in drawn.glob("*/*.png")} & set(content(tmp_path / "other").values())
    assert sorted(os.listdir(tmp_path)) == ["again", "other"]
    train, val = ({file.read_bytes() for file in (drawn / split).iterdir()} for split in ("train", "val"))
    assert len(train | val) == 18


def test_nothing_is_overwritten_and_nothing_is_left_half_written(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for folder in (tmp_path / "full", tmp_path / "full" / "thesis.txt"):
        with pytest.raises(NdkdError, match=f"^{folder} is not empty: remove it or give another folder$"):
            shapes.main([str(folder), *SMALL])
    draw = shapes.draw

    def interrupted(number, *arguments):
        if number == 5:
            raise KeyboardInterrupt
        return draw(number, *arguments)

    monkeypatch.setattr(shapes, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shapes.main([str(tmp_path / "half"), *SMALL])
    assert os.listdir(tmp_path) == ["full"]


@pytest.mark.parametrize("wrong", [["--train", "2"], ["--val", "0"], ["--size", "8"], ["--seed", "-1"]])
def test_options(tmp_path, wrong):
    with pytest.raises(NdkdError, match="^wanted at least --train 3, --val 3, --size 64 and --seed 0$"):
        shapes.main([str(tmp_path / "set"), *wrong])


def test_files(drawn):
    entries = json.loads((drawn / "annotations" / "instances_val.json").read_text())["images"]
    for entry in entries:
        with Image.open(drawn / "val" / entry["file_name"]) as image:
            assert (image.mode, image.size) == ("RGB", (entry["width"], entry["height"]))
