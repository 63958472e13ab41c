"""Which files of a folder are images of which class: links that lead in circles, pipes."""

import os
from pathlib import Path

import pytest

from ndkd.data.layouts import find_images
from tests.command import refusal


def found(images):
    files = find_images(images).splits
    return [os.fsdecode(path) for path in files["train"].paths]


@pytest.mark.parametrize("target", ["..", "../..", ".", "../a"])
def test_a_link_to_a_folder_above_is_not_followed(images, target):
    Path("train/a/loop").symlink_to(target, target_is_directory=True)
    assert found(images) == ["train/a/1.png", "train/b/1.png"]


def test_a_link_to_another_place_is_followed_once(images):
    Path("elsewhere/deep").mkdir(parents=True)
    Path("elsewhere/deep/2.png").touch()
    Path("elsewhere/deep/back").symlink_to("..")
    for name in ("x", "y"):
        Path("train/a", name).symlink_to("../../elsewhere")
    assert len(found(images)) == 3


def test_a_folder_of_two_classes(images):
    Path("train/c").symlink_to("a")
    assert refusal(find_images, images).startswith("train/c and train/a are one folder")


def test_a_class_folder_that_is_a_link(images):
    Path("elsewhere").mkdir()
    Path("elsewhere/1.png").touch()
    Path("train/c").symlink_to("../elsewhere")
    assert found(images)[-1] == "train/c/1.png"


def test_a_pipe_is_no_image(images):
    os.mkfifo("train/a/2.png")
    message = "image train/a/2.png is not an ordinary file: replace or remove it"
    assert refusal(find_images, images) == message
    Path("train/a/2.png").unlink()
    Path("train/a/2.png").symlink_to("nowhere.png")
    assert refusal(find_images, images) == message
