"""A run whose images have become others says so."""

import doctest
from pathlib import Path

from ndkd.callbacks import image_counts
from tests.command import ndkd
from tests.odd_photos import write_class_folders
from tests.small_network import configuration


def test_in_words():
    assert doctest.testmod(image_counts).failed == 0


def test_images_are_added_after_the_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    write_class_folders(Path(), {"photos": 10}, ("a", "b", "c"), (16, 16))
    options = "{root: photos, image_size: 16, num_workers: 0, batch_size: 8}"
    data = f"{{class_path: ImageFolderDataModule, init_args: {options}}}"
    Path("own.yaml").write_text(configuration(1, data))
    trust = ["--trust", "tests"]
    status, out, err = ndkd("fit", "--config", "own.yaml", "--run_dir", "run")
    assert status == 0, err
    assert "instead of" not in out
    for number in range(5):
        Path("photos", "a", f"more{number}.png").write_bytes(Path("photos", "a", "0.png").read_bytes())
    status, out, err = ndkd("validate", "--ckpt_path", "run/checkpoints/last.ckpt", *trust)
    assert status == 0, err
    line = "ndkd: the images are not those of the run so far: train 28 instead of 24, val 7 instead of 6; "
    assert line in out
    status, out, err = ndkd(
        "fit", "--config", "own.yaml", "--run_dir", "run", "--ckpt_path", "last", "--trainer.max_epochs=2"
    )
    assert status == 0, err
    assert line in out
