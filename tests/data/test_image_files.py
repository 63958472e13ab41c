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


@pytest.mark.parametrize("target", ["nowhere", "../nowhere", "/nowhere/at all"])
@pytest.mark.parametrize("link", ["train/a/2.png", "train/a/more", "train/c", "val", "Valid", "test", "unused"])
def test_a_link_that_leads_nowhere(images, link, target):
    Path(link).symlink_to(target)
    if link == "unused":  # no split
        assert len(found(images)) == 2
    else:
        assert refusal(find_images, images) == f"{link} is a link to {target}, which leads nowhere: mend or remove it"


@pytest.mark.parametrize("link", ["train/a/2.png", "train/c", "val"])
def test_a_link_to_itself(images, link):
    Path(link).symlink_to(Path(link).name)
    message = f"{link} is a link to {Path(link).name}, which leads nowhere: mend or remove it"
    assert refusal(find_images, images) == message


def test_class_folders_alone_one_of_which_is_a_link_to_nowhere(images):
    Path("train/c").symlink_to("gone")
    assert refusal(find_images, Path("train")) == "train/c is a link to gone, which leads nowhere: mend or remove it"


def test_a_root_that_is_a_link_to_nowhere(folder):
    Path("photos").symlink_to("gone")
    assert refusal(find_images, Path("photos")) == "photos is a link to gone, which leads nowhere: mend or remove it"


def test_hidden_links_do_not_count(images):
    for link in ("train/.c", "train/a/.2.png", ".val"):
        Path(link).symlink_to("gone")
    assert len(found(images)) == 2


def test_where_damaged_images_are_skipped_links_to_nowhere_are_too_but_not_folders(images):
    Path("train/a/2.png").symlink_to("gone.png")
    files = find_images(images, skip_empty=True)
    assert len(files.splits["train"].paths) == 2
    assert str(files.skipped) == "not read: 1 that cannot be read (train/a/2.png)"
    Path("train/c").symlink_to("gone")
    assert "train/c is a link to gone" in refusal(find_images, images, skip_empty=True)
