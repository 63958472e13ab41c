"""What is recorded of teachers: listed, and deleted by age or teacher."""

import os
import time

import pytest

from ndkd.callbacks import TeacherCache
from tests.command import ndkd


@pytest.fixture
def recorded(fit, make_module, terms, tmp_path):
    """A folder with the recordings of two seeds, the first of them ten days old."""
    folder = tmp_path / "recorded"
    for seed in (0, 1):
        fit(make_module(terms("kd")), TeacherCache(folder), seed=seed, epochs=seed + 1)
        if seed == 0:
            (old,) = folder.iterdir()
            for file in old.iterdir():
                os.utime(file, (time.time() - 10 * 24 * 3600,) * 2)
    (folder / "of somebody else").mkdir()
    return folder, old, next(f for f in folder.iterdir() if f.is_dir() and f != old and " " not in f.name)


def test_listed(recorded, teacher_checkpoint):
    folder, old, new = recorded
    status, out, _ = ndkd("cache", str(folder))
    lines = {line.split(":")[0]: line for line in out.splitlines()[:-1]}
    assert status == 0
    assert lines.keys() == {old.name, new.name}
    size = sum(file.stat().st_size for file in new.iterdir())
    about = f"{new.name}: cifar/resnet8 {teacher_checkpoint}, seed 1, batch size 8, 32-true, 2 epochs, "
    assert lines[new.name] == f"{about}{size / 1e6:.2f} MB, last written {time.strftime('%Y-%m-%d')}"
    assert ", 1 epoch, " in lines[old.name]
    assert out.endswith("MB; --delete removes what is listed\n")


def test_one_whose_description_is_damaged_can_be_deleted(recorded):
    folder, old, new = recorded
    (new / "about.json").write_text("{")
    status, out, _ = ndkd("cache", str(folder))
    size = sum(file.stat().st_size for file in new.iterdir())
    assert f"{new.name}: its about.json cannot be read, {size / 1e6:.2f} MB\n" in out
    assert ndkd("cache", str(folder), "--delete")[0] == status == 0
    assert [file.name for file in folder.iterdir()] == ["of somebody else"]


@pytest.mark.parametrize(
    ("options", "goes"),
    [(["--older-than", "5"], "old"), (["--teacher", "resnet8"], "both"), (["--teacher", "resnet56"], "none")],
)
def test_deleted_by_age_or_teacher(recorded, options, goes):
    folder, old, new = recorded
    status, out, _ = ndkd("cache", str(folder), *options, "--delete")
    assert status == 0
    assert out.startswith("deleted: ") or out.splitlines()[-1].startswith("deleted: ") or goes == "none"
    assert (old.exists(), new.exists()) == {"old": (False, True), "both": (False, False), "none": (True, True)}[goes]
    assert (folder / "of somebody else").exists()
    if goes == "none":
        assert out == f"{folder} has no recording like that\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no folder; give the one that --teacher_cache was given"),
        ([".", "--older-than", "-1"], "older-than: wanted a number of days from 0 on, got -1.0"),
    ],
)
def test_mistakes(folder, arguments, message):
    assert ndkd("cache", *arguments)[::2] == (2, f"ndkd: {message}\n")


def test_an_empty_folder(folder):
    assert ndkd("cache", ".")[:2] == (0, ". has no recording\n")
