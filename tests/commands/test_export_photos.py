"""An exported file gives a photo the class that ``ndkd predict`` gives it, in a process that knows no ndkd."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import ndkd.commands.export_card as export_card
from ndkd.runs import Run
from tests.command import REPOSITORY, ndkd
from tests.odd_photos import write_class_folders, write_odd_photos
from tests.small_network import configuration

IMAGES = "{root: images, batch_size: 4, image_size: 32, resize: 39, interpolation: bicubic, num_workers: 0}"
CONFIG = configuration(4, f"{{class_path: ImageFolderDataModule, init_args: {IMAGES}}}")
ENDINGS = {"safetensors": ".safetensors", "torch": ".pt", "onnx": ".onnx", "torch_export": ".pt2"}
EXPORTS = [*((format, []) for format in ENDINGS), ("onnx", ["--normalise"]), ("torch_export", ["--normalise"])]
FOR_EACH = """
import sys
files, found = {files}, {{}}
source, _, rest = {code!r}.partition("pixels = pixels_of(")
exec(source)
for photo in files:
    exec("pixels = pixels_of(photo" + rest[rest.index(")"):])
    shares = np.exp(logits[0] - logits[0].max())
    found[photo] = class_names[int(shares.argmax())], float(shares.max() / shares.sum())
print(json.dumps(found))
sys.exit("ndkd" in sys.modules)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on photos of three colours, and new photos of every kind in ``new``."""
    folder = tmp_path_factory.mktemp("photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.setattr("sys.argv", ["ndkd"])
        patch.setenv("NDKD_TRUST", "tests.small_network")
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setattr(export_card, "SECONDS", 1e-3)
        write_class_folders(Path("images"), {"train": 8, "val": 2}, ("cat", "dog", "emu ü"), (40, 60))
        write_odd_photos(Path("new"))
        Path("config.yaml").write_text(CONFIG)
        status, _, err = ndkd("fit", "--config", "config.yaml", "--run_dir", "run")
        assert status == 0, err
        yield Run("run")


@pytest.fixture(scope="module")
def predicted(run):
    """What ``ndkd predict`` says: class and confidence by photo."""
    options = ["--images", "new", "--out", "predicted.csv"]
    status, _, err = ndkd("predict", "--ckpt_path", run.checkpoint("last"), *options)
    assert status == 0, err
    with open("predicted.csv", encoding="utf-8", newline="") as file:
        return {row["file"]: (row["prediction"], float(row["confidence"])) for row in csv.DictReader(file)}


def exported(run, format, options=()):
    """The folder of a new export."""
    out = Path("exported", "-".join([format, *map(str, options)]).replace("--", ""), f"model{ENDINGS[format]}")
    if not out.exists():
        status, _, err = ndkd("export", run.checkpoint("last"), "--format", format, "--out", out, *options)
        assert (status, err) == (0, "")
    return out.parent


def code_of(folder):
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]


@pytest.mark.parametrize(("format", "options"), EXPORTS)
def test_every_photo_has_the_class_that_ndkd_gives_it(format, options, run, predicted):
    folder = exported(run, format, options)
    files = [str(Path(file).absolute()) for file in predicted]
    script = FOR_EACH.format(files=files, code=code_of(folder))
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(predicted) == 17
    for file, (name, confidence) in predicted.items():
        mine = found[str(Path(file).absolute())]
        assert mine == [name, pytest.approx(confidence, abs=2e-5)], file


def test_the_photos_tell_another_way_of_resizing_apart(run, predicted):
    """Else the test above would show nothing."""
    config = yaml.safe_load(run.config.read_text())
    assert len({round(confidence, 3) for _, confidence in predicted.values()}) > 10
    straight = {"class_path": "InMemoryImageFolderDataModule", "init_args": {"root": "images", "image_size": 32}}
    changed = Run("straight")
    changed.checkpoints.mkdir(parents=True)
    changed.config.write_text(yaml.safe_dump(config | {"data": straight}))
    changed.checkpoint("last").write_bytes(run.checkpoint("last").read_bytes())
    options = ["--images", "new", "--out", "straight.csv"]
    status, _, err = ndkd("predict", "--ckpt_path", changed.checkpoint("last"), *options)
    assert status == 0, err
    with open("straight.csv", encoding="utf-8", newline="") as file:
        others = {row["file"]: float(row["confidence"]) for row in csv.DictReader(file)}
    assert max(abs(others[file] - confidence) for file, (_, confidence) in predicted.items()) > 0.01


def test_the_cards_lines_run_as_they_are(run, predicted):
    folder = exported(run, "onnx")
    (folder / "photo.jpg").write_bytes(Path("new", "turned.jpg").read_bytes())
    done = subprocess.run([sys.executable, "-c", code_of(folder)], cwd=folder, capture_output=True, text=True)
    assert done.stdout == f"['{predicted['new/turned.jpg'][0]}']\n", done.stderr


def test_preprocess_json_and_the_card_say_the_same(run):
    folder = exported(run, "safetensors")
    assert json.loads((folder / "preprocess.json").read_text(encoding="utf-8")) == {
        "input": {"shape": ["batch", 3, 32, 32], "type": "float32", "colours": "RGB"},
        "photo": {"upright": True, "resize": 39, "interpolation": "bicubic", "crop": [32, 32]},
        "divide_by": 255,
        "normalised_by_the_network": False,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "class_names": ["cat", "dog", "emu ü"],
    }
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| resized | shorter side to 39, bicubic with antialiasing |" in card
    assert "| cropped | the middle 32×32 |" in card


def test_onnx_carries_the_names_of_the_classes(run):
    import onnxruntime

    for options, inside in (((), False), (("--normalise",), True)):
        session = onnxruntime.InferenceSession(exported(run, "onnx", options) / "model.onnx")
        stored = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
        assert stored["class_names"] == ["cat", "dog", "emu ü"]
        assert stored["preprocess"]["normalised_by_the_network"] is inside
        assert stored["preprocess"]["photo"]["resize"] == 39


def test_a_network_that_normalises_says_so(run):
    card = (exported(run, "onnx", ["--normalise"]) / "README.md").read_text(encoding="utf-8")
    assert "float32, in [0, 1] |" in card
    assert "| normalised | by the network itself |" in card
    assert "images = pixels\n" in card


@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_weights_cannot_normalise(format, run):
    out = f"new/model{ENDINGS[format]}"
    status, _, err = ndkd("export", run.checkpoint("last"), "--format", format, "--normalise", "--out", out)
    wanted = f"--normalise is for a whole network, a {format} file holds weights alone: add --format onnx"
    assert (status, err) == (2, f"ndkd: {wanted}\n")


def test_where_the_images_are_gone_it_is_compared_on_noise(run):
    there, away = Path("images"), Path("away")
    there.rename(away)
    try:
        command = ["export", run.checkpoint("last"), "--format"]
        status, out, err = ndkd(*command, "safetensors", "--out", "noise/model.safetensors")
        assert status == 0, err
        said = (
            "ndkd: the file is compared with its checkpoint on noise, for the run's images are not there: there is no "
        )
        assert said in out
        assert re.search(r"difference +0.0e\+00 of the largest logit, on 8 photos of noise\n", out)
        status, _, err = ndkd(*command, "onnx", "--out", "eight/model.onnx", "--quantize", "int8")
        assert status == 2
        assert "there is no folder images" in err
        assert not Path("eight").exists()
    finally:
        away.rename(there)
    with_images = exported(run, "safetensors")
    same = [Path(folder, "preprocess.json").read_bytes() for folder in ("noise", with_images)]
    assert same[0] == same[1]
