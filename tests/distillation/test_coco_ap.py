"""COCO's average precision, of files as people write them."""

import json

import pytest

from ndkd.data import drawn_shapes
from ndkd.distillation.coco_ap import SUMMARY, coco_ap


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """What is there in a set of drawn shapes, an image without any and one of a crowd among them."""
    folder = tmp_path_factory.mktemp("coco") / "shapes"
    drawn_shapes.draw_set(folder, train=3, val=8, size=64)
    return json.loads((folder / "annotations" / "instances_val.json").read_text())


@pytest.fixture
def ap(shapes, tmp_path):
    """The precision of perfect or of no detections, after a change of what is there."""

    def measure(change=lambda content: None, detections=True):
        content = json.loads(json.dumps(shapes))
        rows = [
            {name: box[name] for name in ("image_id", "category_id", "bbox")} | {"score": 0.9}
            for box in content["annotations"]
            if detections and not box["iscrowd"]
        ]
        change(content)
        file = tmp_path / "instances_val.json"
        file.write_text(json.dumps(content))
        return coco_ap(file, rows, [image["id"] for image in content["images"]])

    return measure


def shown(shapes):
    names = {category["id"]: category["name"] for category in shapes["categories"]}
    return {names[box["category_id"]] for box in shapes["annotations"] if not box["iscrowd"]}


def test_perfect_detections(ap, shapes):
    found = ap()
    assert found["ap"] == pytest.approx(1.0)
    assert {name: found[f"ap/{name}"] for name in shown(shapes)} == pytest.approx(dict.fromkeys(shown(shapes), 1.0))


def test_an_annotation_with_the_number_0_counts(ap):
    def from_0(content):
        for number, box in enumerate(content["annotations"]):
            box["id"] = number

    assert ap(from_0) == ap()


@pytest.mark.parametrize("entry", ["iscrowd", "area"])
@pytest.mark.parametrize("is_null", [True, False])
def test_entries_that_a_file_may_leave_out(ap, entry, is_null):
    def without(content):
        content["annotations"] = [box for box in content["annotations"] if not box["iscrowd"]]
        for box in content["annotations"]:
            box[entry] = None
            if not is_null:
                del box[entry]

    assert ap(without)["ap"] == pytest.approx(1.0)


def test_two_categories_of_one_name_have_rows_of_their_own(ap):
    def alike(content):
        for category in content["categories"][:2]:
            category["name"] = "shape"

    found = ap(alike)
    assert {"ap/shape (2)", "ap/shape (3)", "ap/star"} <= found.keys()
    assert "ap/shape" not in found


def test_no_detections_at_all(ap, shapes):
    found = ap(detections=False)
    assert found["ap"] == found["ap50"] == 0
    assert found.keys() == ap().keys()
    assert {name: found[f"ap/{name}"] for name in shown(shapes)} == dict.fromkeys(shown(shapes), 0.0)


def test_nothing_to_detect(ap):
    def nothing(content):
        content["annotations"] = []

    assert set(ap(nothing, detections=False).values()) == {-1.0}
    assert {name: value for name, value in ap(nothing).items() if name in SUMMARY} == dict.fromkeys(SUMMARY, -1.0)
