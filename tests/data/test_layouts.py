"""The ways in which people arrange their photos, and what lies beside them."""

import csv
import doctest
import os
import re

import numpy as np
import pytest
from PIL import Image

from ndkd.callbacks.opening import described
from ndkd.data import ImageFolderDataModule, InMemoryImageFolderDataModule, image_files
from ndkd.data.layouts import find_images, image_set
from ndkd.errors import NdkdError

COUNTS = {"cat": 10, "dog": 5, "emu": 1}


def draw(file, seed=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)).save(file)


def classes(folder, counts=COUNTS):
    for name, count in counts.items():
        for number in range(count):
            draw(folder / name / f"{number}.png", seed=number)


def names(files):
    return {os.path.basename(os.fsdecode(path)) for path in files.paths}


def prepared(kind, root, **options):
    options = {"batch_size": 4, "image_size": 12} | options
    data = kind(root, **(options | {"num_workers": 0} if kind is ImageFolderDataModule else options))
    data.setup()
    return data


def test_doctests():
    assert doctest.testmod(image_files).failed == 0


# ---- layouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (["train", "val"], ["train", "val"]),
        (["train", "valid"], ["train", "val"]),
        (["train", "validation", "test"], ["train", "val", "test"]),
        (["Train", "Val"], ["train", "val"]),
        (["TRAINING", "Testing"], ["train", "test"]),
        (["train"], ["train"]),
    ],
)
def test_folders_of_splits(tmp_path, folders, splits):
    for folder in folders:
        classes(tmp_path / folder)
    found = find_images(tmp_path)
    assert list(found.splits) == splits
    assert found.class_names == ("cat", "dog", "emu")
    assert [len(files.target) for files in found.splits.values()] == [16] * len(splits)
    assert found.remarks == [", ".join(f"{folder}/" for folder in folders)]


def test_folders_of_classes_alone_are_split_by_the_names_of_the_files(tmp_path):
    classes(tmp_path)
    found = image_set(tmp_path, None, {"test": 0.2, "val": 0.2}, False)
    sizes = {split: np.bincount(files.target, minlength=3).tolist() for split, files in found.splits.items()}
    assert sizes == {"train": [6, 3, 1], "test": [2, 1, 0], "val": [2, 1, 0]}
    parts = [set(files.paths.tolist()) for files in found.splits.values()]
    assert len(set.union(*parts)) == 16
    again = image_set(tmp_path, None, {"test": 0.2, "val": 0.2}, False)
    assert all(np.array_equal(found.splits[split].paths, again.splits[split].paths) for split in sizes)
    assert found.layout == (
        "class folders, 20% of the training images split off as test (of emu, a single image each, none), "
        "20% of the training images split off as val (of emu, a single image each, none)"
    )


def test_the_split_does_not_depend_on_where_the_folder_lies(tmp_path):
    for place in ("here", "there"):
        classes(tmp_path / place)
    found = [image_set(tmp_path / place, None, {"val": 0.3}, False).splits["val"] for place in ("here", "there")]
    assert names(found[0]) == names(found[1])
    assert 0 < len(found[0].target) < 16


def test_what_the_set_has_is_not_split_off(tmp_path):
    for folder in ("train", "test"):
        classes(tmp_path / folder)
    found = image_set(tmp_path, None, {"test": 0.5, "val": 0.5}, False)
    sizes = {split: len(files.target) for split, files in found.splits.items()}
    assert sizes == {"train": 9, "test": 16, "val": 7}


@pytest.mark.parametrize("fractions", [{"val": 1.0}, {"val": -0.1}, {"val": 0.6, "test": 0.4}])
def test_fractions_that_leave_nothing(tmp_path, fractions):
    classes(tmp_path)
    with pytest.raises(
        NdkdError, match="^wanted fractions from 0 to below 1 that leave images to train on, got val_fr"
    ):
        image_set(tmp_path, None, fractions, False)


@pytest.mark.parametrize("kind", [ImageFolderDataModule, InMemoryImageFolderDataModule])
@pytest.mark.parametrize("folders", [[""], ["train"], ["train", "valid"], ["Train", "Test"]])
def test_both_kinds_of_data_read_every_layout(tmp_path, kind, folders):
    for folder in folders:
        classes(tmp_path / folder)
    data = prepared(kind, tmp_path)
    assert data.class_names == ("cat", "dog", "emu")
    assert sum(len(target) for _, target in data.val_dataloader()) == data.sizes["val"] > 0
    assert sum(len(target) for _, target in data.test_dataloader()) == data.sizes["test"] > 0
    assert data.sizes["train"] <= 16
    line = described(data)
    assert re.match(r"\d+ images, 3 classes, validation \d+", line)
    assert ("class folders" if folders == [""] else f"{folders[0]}/") in line


def test_folders_beside_the_splits_are_said(tmp_path):
    for split in ("Train", "val"):
        classes(tmp_path / split, {"a": 2, "b": 2})
    (tmp_path / "roses").mkdir()
    (tmp_path / ".cache").mkdir()
    assert find_images(tmp_path).layout == "Train/, val/; folders beside them that are not used: roses"


def test_one_image_in_every_class(tmp_path):
    classes(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(NdkdError, match=r"no class has two images, of which one could be split off as val; add images"):
        image_set(tmp_path, None, {"val": 0.2}, False)


# ---- a list ---------------------------------------------------------------------------------------------------------


def listed(folder, rows, columns=("file", "label", "split")):
    file = folder / "labels.csv"
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(columns)
        writer.writerows(rows)
    return file


def test_a_list_with_splits(tmp_path):
    for number in range(4):
        draw(tmp_path / "photos" / f"{number}.png")
    rows = [
        ("0.png", "dog", "train"),
        ("1.png", "cat", "Train"),
        ("2.png", "cat", "valid"),
        ("photos/3.png", "dog", ""),
    ]
    labels = listed(tmp_path, rows)
    found = find_images(tmp_path / "photos", labels)
    assert found.class_names == ("cat", "dog")
    assert [names(files) for files in found.splits.values()] == [{"0.png", "1.png", "3.png"}, {"2.png"}]
    assert found.splits["train"].target.tolist() == [1, 0, 1]
    assert found.layout == "listed in labels.csv, 1 without a split in train"


@pytest.mark.parametrize(
    "text",
    [
        "file;label\n{};x\n",
        "File,LABEL\r\n{},x\r\n\r\n",
        "file, label\n{}, x\n",
        "file\tlabel\n{}\tx\n",
        "\ufefffile,label\n{},x\n",
    ],
)
def test_lists_as_other_programs_write_them(tmp_path, text):
    classes(tmp_path, {"a": 1})
    (tmp_path / "labels.csv").write_text(text.format("a/0.png"), encoding="utf-8")
    found = find_images(tmp_path, "labels.csv")  # beside the photos
    assert (found.class_names, len(found.splits["train"].target)) == (("x",), 1)


def test_a_list_without_splits(tmp_path):
    classes(tmp_path / "photos", {"a": 6})
    rows = [(f"photos/a/{number}.png", "odd" if number % 2 else "even") for number in range(6)]
    data = prepared(ImageFolderDataModule, tmp_path, labels=listed(tmp_path, rows, ("file", "label")), val_fraction=0.3)
    assert data.class_names == ("even", "odd")
    assert (data.sizes["train"], data.sizes["val"]) == (4, 2)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            [("notes.txt", "x")],
            ("file", "label"),
            ": notes.txt is not an image by its name; correct or remove its line",
        ),
        ([("a/0.png", "x")], ("path", "label"), " has no column file, its first line has path, label"),
        ([], ("file", "label"), " lists no image: wanted a line for each below the first"),
        ([("x", "a/0.png", "b/0.png")], ("label", "file", "file"), " has the column file twice; keep one"),
        (
            [("a/0.png", "x"), ("a/1.png", "x", "y")],
            ("file", "label"),
            ", line 3: wanted 2 fields as in the first line, got 3; a name with the separator in it belongs in quotes",
        ),
        ([("a/9.png", "x")], ("file", "label"), ": 1 of its files are not there: a/9.png; names count from "),
        (
            [("a/0.png", "x"), ("a/0.png", "y")],
            ("file", "label"),
            " lists a/0.png more than once; keep one line of each",
        ),
        ([("a/0.png", "")], ("file", "label"), ", line 2: wanted a file and a label, got 'a/0.png', ''"),
        ([("a/0.png", "x", "trian")], ("file", "label", "split"), ": there is no split 'trian'; did you mean train"),
        (
            [("a/0.png", "x", "val")],
            ("file", "label", "split"),
            " lists no training image: wanted rows of the split train",
        ),
        (
            [("a/0.png", "x", "train"), ("a/1.png", "y", "val")],
            ("file", "label", "split"),
            ": no training image of class y; add some or leave the class out",
        ),
    ],
)
def test_a_list_that_is_wrong(tmp_path, rows, columns, message):
    classes(tmp_path, {"a": 2})
    (tmp_path / "notes.txt").touch()
    labels = listed(tmp_path, rows, columns)
    with pytest.raises(NdkdError, match=re.escape(f"{labels}{message}")):
        find_images(tmp_path, labels)


def test_a_list_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(NdkdError, match="labels.csv does not exist; give a CSV file with the columns file and label$"):
        find_images(tmp_path, tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe,x\n")
    with pytest.raises(NdkdError, match="labels.csv is not a CSV file in UTF-8; save it as one$"):
        find_images(tmp_path, tmp_path / "labels.csv")


# ---- what lies beside the photos ------------------------------------------------------------------------------------


def test_hidden_files_and_folders_never_count(tmp_path):
    classes(tmp_path / "train")
    for place in ("train/.ipynb_checkpoints/0.png", "train/cat/.thumbs/0.png", "train/cat/._0.png", ".hidden/x/0.png"):
        draw(tmp_path / place)
    found = find_images(tmp_path)
    assert (found.class_names, len(found.splits["train"].target)) == (("cat", "dog", "emu"), 16)
    assert not found.skipped


def test_pictures_that_are_not_read_are_counted_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "has_heif", lambda: False)
    classes(tmp_path)
    for name in ("a.heic", "b.HEIC", "c.avif", "d.gif", "e.jp2", "f.svg", "notes.txt", "Thumbs.db"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    data = prepared(ImageFolderDataModule, tmp_path)
    assert described(data).endswith(
        "; not read: 2 .heic (python -m pip install 'ndkd[heic]'), 1 .avif, 1 .gif, 1 .jp2, 1 .svg"
    )


def test_a_class_of_other_pictures_alone(tmp_path):
    classes(tmp_path)
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox" / "1.svg").write_bytes(b"x")
    with pytest.raises(
        NdkdError, match=f"^class folder {tmp_path}/fox holds 1 pictures that are not read: not read: 1"
    ):
        find_images(tmp_path)


@pytest.mark.parametrize("kind", [ImageFolderDataModule, InMemoryImageFolderDataModule])
def test_skipping_leaves_damaged_files_and_empty_classes_out_and_says_so(tmp_path, kind):
    classes(tmp_path)
    whole = (tmp_path / "cat" / "3.png").read_bytes()
    (tmp_path / "cat" / "3.png").write_bytes(whole[:-40])
    (tmp_path / "dog" / "2.png").write_bytes(b"no image")
    (tmp_path / "fox").mkdir()
    with pytest.raises(NdkdError, match="fox holds no image"):
        prepared(kind, tmp_path)
    data = prepared(kind, tmp_path, on_error="skip")
    assert data.class_names == ("cat", "dog", "emu")
    assert data.sizes["train"] + data.sizes["val" if kind is ImageFolderDataModule else "test"] == 14
    assert f"2 that cannot be read ({tmp_path}/cat/3.png, {tmp_path}/dog/2.png)" in described(data)
    assert "class folders without images: fox" in described(data)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["val"], "{0} holds {0}/val, but no folder of training images: wanted {0}/train/CLASS/IMAGE.jpg"),
        (["train", "val", "valid"], "{0} holds val and valid, both could be the split val: rename one"),
    ],
)
def test_folders_that_nobody_can_tell(tmp_path, folders, message):
    for folder in folders:
        classes(tmp_path / folder)
    with pytest.raises(NdkdError, match=f"^{re.escape(message.format(tmp_path))}$"):
        find_images(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(
        NdkdError, match="^there is no folder .*nowhere: wanted .*/train/CLASS/IMAGE.jpg or .*/CLASS/IMA"
    ):
        find_images(tmp_path / "nowhere")
