"""A run's student on photos that it has not seen: from Python and by ``ndkd predict --images``."""

import csv
import os
import re
from pathlib import Path
from shutil import copytree, rmtree

import numpy as np
import pytest
import torch
from PIL import Image

import ndkd
from ndkd.classifier import Classifier
from ndkd.errors import NdkdError
from tests.command import SHORT, refusal
from tests.command import ndkd as run_ndkd
from tests.odd_photos import write_class_folders

CONFIG = """
trainer: {max_epochs: 1, accelerator: cpu}
model:
  class_path: DistillationModule
  init_args:
    student: {name: cifar/resnet8}
    losses: {ce: {loss: torch.nn.CrossEntropyLoss, inputs: [student.logits, target]}}
data:
"""
FOLDER = (
    "  class_path: ImageFolderDataModule\n  init_args: {root: images, batch_size: 4, image_size: 16, num_workers: 0}"
)
IN_MEMORY = (
    "  class_path: InMemoryImageFolderDataModule\n  init_args: {root: images, batch_size: 4, image_size: 16, pad: 0}"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Short runs on photos of three classes; their folders, by the kind of data. The images are gone afterwards."""
    folder = tmp_path_factory.mktemp("photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.setattr("sys.argv", ["ndkd"])
        write_class_folders(Path("images"), {"train": 4, "val": 2, "test": 2}, ("cat", "dog", "emu"), (20, 30))
        for name, data in {"folder": FOLDER, "in memory": IN_MEMORY}.items():
            Path("config.yaml").write_text(CONFIG + data)
            status, _, err = run_ndkd("fit", "--config", "config.yaml", "--run_dir", f"runs/{name}")
            assert status == 0, err
            assert run_ndkd("predict", "--ckpt_path", f"runs/{name}/checkpoints/best.ckpt")[0] == 0
        Path("images", "test").rename("new")
        rmtree("images")
        (Path("new") / "cat" / "._0.png").write_bytes(b"x")
        (Path("new") / "cat" / "a.gif").write_bytes(b"x")
        yield {name: Path(f"runs/{name}") for name in ("folder", "in memory")}


def rows(file):
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("kind", ["folder", "in memory"])
def test_new_photos_get_the_classes_of_the_runs_own_test(runs, kind):
    run = runs[kind]
    status, out, err = run_ndkd("predict", "--ckpt_path", run / "checkpoints" / "best.ckpt", "--images", "new")
    assert status == 0, err
    assert out == f"predictions: {run}/predictions_of_new.csv (6 images); not read: 1 .gif\n"
    found = {row["file"]: row for row in rows(run / "predictions_of_new.csv")}
    assert sorted(found) == [f"new/{name}/{number}.png" for name in ("cat", "dog", "emu") for number in range(2)]
    own = rows(run / "predictions.csv")
    for row, (_, mine) in zip(own, sorted(found.items()), strict=True):
        assert mine["prediction"] == row["prediction"]
        assert float(mine["confidence"]) == pytest.approx(float(row["confidence"]), abs=1e-5)
        shares = [float(mine[name]) for name in ("confidence", "confidence_2", "confidence_3")]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert {mine["prediction"], mine["class_2"], mine["class_3"]} == {"cat", "dog", "emu"}
        assert mine["class_4"] == ""


def test_three_lines_of_python(runs):
    """Those of the page on own images, where there is a run."""
    classifier = ndkd.load(runs["folder"])
    assert isinstance(classifier, Classifier)
    assert classifier.class_names == ("cat", "dog", "emu")
    files = ["new/cat/0.png", Path("new/emu/1.png")]
    with Image.open(files[0]) as image:
        kinds = [files[0], image.copy(), classifier.transform(image), classifier.transform(image).float() / 255]
    found = classifier.predict([*kinds, files[1]], batch_size=3)
    assert len(found) == 5
    for prediction in found[1:4]:
        assert prediction.name == found[0].name
        assert prediction.confidence == pytest.approx(found[0].confidence, abs=1e-6)
    assert [name for name, _ in found[0].top] == sorted(dict(found[0].top), key=dict(found[0].top).get, reverse=True)
    assert not classifier.student.training
    assert classifier.predict([]) == []


def test_one_photo_and_a_place_for_the_table(runs, tmp_path):
    out = tmp_path / "deep" / "table.csv"
    command = ["predict", "--ckpt_path", runs["folder"] / "checkpoints" / "last.ckpt", "--images", "new/dog/1.png"]
    status, _, err = run_ndkd(*command, "--out", out)
    assert status == 0, err
    assert [row["file"] for row in rows(out)] == ["new/dog/1.png"]


def test_a_table_of_other_photos_is_kept(runs, tmp_path):
    """Two folders of one name; the same folder again, by another name for it, is no other."""
    command = ["predict", "--ckpt_path", runs["folder"] / "checkpoints" / "last.ckpt", "--images"]
    for name in ("one", "two"):
        copytree("new", tmp_path / name / "daily")
    table = runs["folder"] / "predictions_of_daily.csv"
    for _ in range(2):
        assert run_ndkd(*command, tmp_path / "one" / "daily")[0] == 0
    before = table.read_bytes()
    status, _, err = run_ndkd(*command, tmp_path / "two" / "daily")
    assert status == 2
    first = tmp_path / "one" / "daily" / "cat" / "0.png"
    assert (
        err == f"ndkd: {table} has the predictions of other photos, {first} the first: name a table with --out FILE\n"
    )
    assert table.read_bytes() == before
    assert run_ndkd(*command, tmp_path / "two" / "daily", "--out", table)[0] == 0
    assert table.read_bytes() != before


def test_a_photo_that_cannot_be_read(runs, tmp_path):
    for name, content in {"a.jpg": b"no image", "b.png": Path("new/cat/0.png").read_bytes()}.items():
        (tmp_path / name).write_bytes(content)
    command = ["predict", "--ckpt_path", runs["folder"] / "checkpoints" / "best.ckpt", "--images", tmp_path]
    status, _, err = run_ndkd(*command, "--out", tmp_path / "table.csv")
    assert (status, err) == (
        2,
        f"ndkd: image {tmp_path}/a.jpg cannot be read (it is not an image): replace or remove it\n",
    )
    assert not (tmp_path / "table.csv").exists()
    status, out, _ = run_ndkd(*command, "--out", tmp_path / "table.csv", "--on_error", "skip")
    assert status == 0
    assert out.endswith(f"(1 image); not read: 1 that cannot be read ({tmp_path}/a.jpg)\n")


def test_a_photo_that_is_a_link_to_nowhere(runs, tmp_path):
    (tmp_path / "a.png").symlink_to("gone.png")
    command = ["predict", "--ckpt_path", runs["folder"] / "checkpoints" / "best.ckpt", "--images", tmp_path]
    skip = ["--out", tmp_path / "table.csv", "--on_error", "skip"]
    status, _, err = run_ndkd(*command, *skip)
    left_out = f"not read: 1 that cannot be read ({tmp_path}/a.png)"
    assert (status, err) == (2, f"ndkd: images {tmp_path}: there is no photo in it; {left_out}\n")
    (tmp_path / "b.png").write_bytes(Path("new/cat/0.png").read_bytes())
    link = f"{tmp_path}/a.png is a link to gone.png, which leads nowhere: mend or remove it"
    status, _, err = run_ndkd(*command)
    assert (status, err) == (2, f"ndkd: {link}\n")
    status, out, err = run_ndkd(*command, *skip)
    assert status == 0, err
    assert out.endswith(f"(1 image); {left_out}\n")


def test_photos_from_several_places_whose_names_are_no_text(runs, tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(odd)).write_bytes(Path("new/cat/0.png").read_bytes())
    command = ["predict", "--ckpt_path", runs["folder"] / "checkpoints" / "best.ckpt", "--images"]
    status, out, err = run_ndkd(*command, "new/dog/1.png", "new/emu", tmp_path, "--out", "several.csv")
    assert (status, out) == (0, "predictions: several.csv (4 images)\n"), err
    assert odd in Path("several.csv").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "new/cat/0.png"], "--out: wanted the name of a CSV file, got 'new/cat/0.png'; give it the ending "),
        (["--out", ""], "--out: wanted the name of a CSV file, got '.'; give it the ending .csv"),
        (["--images", "new"], "--images is given 2 times; give it once"),
        (["--image", "new"], "there is no option --image; did you mean --images? See ndkd predict --help"),
    ],
)
def test_options_of_predict(runs, options, message):
    before = Path("new/cat/0.png").read_bytes()
    command = ["predict", "--ckpt_path", runs["folder"] / "checkpoints" / "best.ckpt", "--images", "new"]
    status, _, err = run_ndkd(*command, *options)
    assert (status, err[: len(message) + 6]) == (2, f"ndkd: {message}")
    assert Path("new/cat/0.png").read_bytes() == before


def test_help_on_new_photos(runs):
    status, out, _ = run_ndkd("predict", "--images", "--help")
    assert status == 0
    assert "--on_error" in out


@pytest.mark.parametrize(
    ("photos", "message"),
    [
        ("new/cat/0.png", "wanted a list of photos, got one str: predict([photo])"),
        (
            [np.zeros((4, 4, 3), np.uint8)],
            "photo 0: wanted a file, a PIL image or a tensor, got ndarray; try Image.fro",
        ),
        ([torch.full((3, 16, 16), 9.0)], "photo 0: wanted floats in [0, 1], got 9 to 9; divide bytes by 255"),
        ([torch.full((3, 16, 16), float("nan"))], "photo 0: wanted floats in [0, 1], got nan to nan"),
        ([torch.zeros(16, 16)], "photo 0: wanted bytes or floats (c, h, w), got torch.float32 (16, 16)"),
    ],
)
def test_what_is_no_photo(runs, photos, message):
    assert refusal(ndkd.load(runs["folder"]).predict, photos).startswith(message)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_pipe_among_the_photos_is_not_waited_for(runs, tmp_path, on_error):
    os.mkfifo(tmp_path / "a.jpg")
    command = ["predict", "--ckpt_path", runs["folder"] / "checkpoints" / "best.ckpt", "--images", tmp_path]
    status, _, err = run_ndkd(*command, "--on_error", on_error)
    assert (status, err) == (2, f"ndkd: image {tmp_path}/a.jpg is not an ordinary file: replace or remove it\n")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("nowhere", "images nowhere does not exist; give a folder of photos or a photo"),
        ("runs", "images runs: there is no photo in it"),
    ],
)
def test_no_photos(runs, images, message):
    status, _, err = run_ndkd(
        "predict", "--ckpt_path", runs["folder"] / "checkpoints" / "best.ckpt", "--images", images
    )
    assert (status, err) == (2, f"ndkd: {message}\n")


def test_what_is_no_classifier_of_photos(runs, workplace, tmp_path):
    torch.save({"model": {}}, tmp_path / "plain.pth")
    with pytest.raises(NdkdError, match="is not a run folder: it has no config.yaml"):
        ndkd.load(tmp_path)
    with pytest.raises(NdkdError, match=r"^run folder .*plain\.pth is a file; "):
        ndkd.load(tmp_path / "plain.pth")
    status, _, err = run_ndkd("predict", "--ckpt_path", tmp_path / "plain.pth", "--images", tmp_path / "plain.pth")
    assert status == 2
    assert re.search(r"plain\.pth was not written by ndkd fit: it does not say how its student is built", err)
    assert run_ndkd("fit", "--config", "configs/digits/student.yaml", *SHORT)[0] == 0
    with pytest.raises(NdkdError, match="^DigitsDataModule does not say how a photo becomes one of its images"):
        ndkd.load("runs/digits/student")
