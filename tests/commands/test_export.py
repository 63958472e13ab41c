"""``ndkd export``: what it writes works elsewhere, and what it says of it is true."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import ndkd.commands.export as exporting
import ndkd.commands.export_card as export_card
from ndkd.data import DigitsDataModule
from ndkd.models import ModelConfig, build_model
from ndkd.models.checkpoint import read_checkpoint
from ndkd.runs import Run
from tests.command import SHORT, ndkd

HALF = {"mean": [0.5] * 3, "std": [0.25] * 3}
WIDTHS = {"widths": [8, 8, 8, 16]}  # narrower than the teacher: there is a projector
ENDINGS = {"safetensors": ".safetensors", "torch": ".pt", "onnx": ".onnx", "torch_export": ".pt2"}


class Branching(nn.Module):
    """A student of one's own that decides by its input, which cannot be traced; two of its layers share weights."""

    def __init__(self, num_classes, scale):
        super().__init__()
        self.first = self.second = nn.Conv2d(3, 3, 3)
        self.scale, self.fc = scale, nn.Linear(3, num_classes)

    def forward(self, images):
        if images.sum() > 0:
            images = images * self.scale
        return self.fc(self.second(self.first(images)).mean((2, 3)))


class Fickle(nn.Module):
    """What it computes is not in its weights."""

    def __init__(self, num_classes):
        super().__init__()
        self.fc, self.factor = nn.Linear(3, num_classes), torch.rand(())

    def forward(self, images):
        return self.fc(images.mean((2, 3))) * self.factor


@pytest.fixture(autouse=True, scope="module")
def hurried():
    """Latencies need not be precise; the models and data in this file are trusted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_card, "SECONDS", 1e-3)
        patch.setenv("NDKD_TRUST", __name__)
        yield


@pytest.fixture(scope="module")
def run(workplace):
    """A short KD++ run with a projector and taps."""
    student = json.dumps({"name": "cifar/resnet8", "kwargs": WIDTHS, "taps": ["layer1"]})
    options = ["--data.init_args.val_size=40", "--model.init_args.student", student]
    status, _, err = ndkd("fit", "--config", "configs/digits/kd++.yaml", *SHORT, *options)
    assert status == 0, err
    return Run("runs/digits/kd++")


@pytest.fixture(scope="module")
def exported(run):
    """The folder with one format's export, what was printed, and the model card."""
    made = {}

    def export(format):
        if format not in made:
            out = Path("exported", format, f"model{ENDINGS[format]}")
            status, printed, err = ndkd("export", run.checkpoint("best"), "--format", format, "--out", out)
            assert (status, err) == (0, "")
            made[format] = out, printed, (out.parent / "README.md").read_text()
        return made[format]

    return export


@pytest.fixture
def run_of(run, tmp_path):
    """A run folder whose last checkpoint is of another student, or with other entries in the configuration."""

    def make(student=None, config=None, **changes):
        content = read_checkpoint(run.checkpoint("last"))
        if student is not None:
            model = build_model(student["name"], 10, **student.get("kwargs", {}))
            content["state_dict"] = {f"student.model.{key}": value for key, value in model.state_dict().items()}
            content["hyper_parameters"]["student"] = {"kwargs": {}, **HALF, **student}
        copy = Run(tmp_path / "run")
        copy.checkpoints.mkdir(parents=True)
        copy.config.write_text(yaml.safe_dump(yaml.safe_load(run.config.read_text()) | (config or {})))
        torch.save(content | changes, copy.checkpoint("last"))
        return copy

    return make


def example(card):
    """The card's lines, run in its folder."""
    names = {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], names)
    return names


def logits_of(checkpoint, pixels):
    stored = read_checkpoint(checkpoint)["hyper_parameters"]
    config = ModelConfig(**{**stored["student"], "checkpoint": checkpoint})
    with torch.no_grad():
        return config.build(stored["num_classes"], None, None).eval()(torch.as_tensor(pixels)).logits


# ---- what it writes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ENDINGS)
def test_the_cards_lines_give_the_checkpoints_logits(format, exported, run, monkeypatch):
    out, printed, card = exported(format)
    assert sorted(file.name for file in out.parent.iterdir()) == ["README.md", out.name, "preprocess.json"]
    assert out.stat().st_mode == (out.parent / "README.md").stat().st_mode  # whoever may read one may read the other
    monkeypatch.chdir(out.parent)
    names = example(card)
    monkeypatch.undo()
    torch.testing.assert_close(torch.as_tensor(names["logits"]), logits_of(run.checkpoint("best"), names["pixels"]))


@pytest.mark.parametrize("format", ENDINGS)
def test_it_prints_a_short_table_that_the_card_repeats(format, exported):
    out, printed, card = exported(format)
    rows = dict(line.split(maxsplit=1) for line in printed.splitlines())
    assert list(rows) == ["student", "difference", "parameters", "compute", "file", "latency", "written"]
    difference, unit = rows["difference"].split(maxsplit=1)
    assert float(difference) < 1e-5
    assert unit == "of the largest logit, on 32 images of DigitsDataModule"
    model = build_model("cifar/resnet8", 10, **WIDTHS)
    assert rows["parameters"] == f"{sum(parameter.numel() for parameter in model.parameters()):,}"
    assert rows["file"] == f"{out.stat().st_size / 1e6:,.2f} MB"
    assert re.fullmatch(r"[\d.]+ ms at batch 1, [\d.]+ ms at batch 64; median, threads: 1", rows["latency"])
    for name in list(rows)[1:-1]:
        assert f"| {name} | {rows[name]} |" in card


def test_weights_are_those_of_the_plain_model(exported):
    plain = build_model("cifar/resnet8", 10, **WIDTHS).state_dict()
    for format in ("safetensors", "torch"):
        weights = read_checkpoint(exported(format)[0])
        assert weights.keys() == plain.keys()
        assert all(weight.is_contiguous() for weight in weights.values())


def test_a_safetensors_file_is_a_checkpoint_for_ndkd(exported, run):
    out, _, card = exported("safetensors")
    config = yaml.safe_load(re.search(r"`({name: .*})`", card)[1])
    assert config["checkpoint"] == out.name
    extractor = ModelConfig(**{**config, "checkpoint": out}).build(10, None, None).eval()
    pixels = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(extractor(pixels).logits, logits_of(run.checkpoint("best"), pixels))


def test_onnx_is_one_file_for_batches_of_any_size(exported):
    import onnx

    model = onnx.load(exported("onnx")[0], load_external_data=False)
    (images,), (logits,) = model.graph.input, model.graph.output
    shape = [dimension.dim_param or dimension.dim_value for dimension in images.type.tensor_type.shape.dim]
    assert (images.name, shape, logits.name) == ("images", ["batch", 3, 32, 32], "logits")


def test_operations_are_counted_with_those_of_attention(run_of):
    """A convolution of 4 patches of 16×16 and a block on 1 + 4 tokens, by hand."""
    vit = {"name": "timm/vit_tiny_patch16_224", "classifier": ["head"], "kwargs": {"img_size": 32, "depth": 1}}
    run = run_of(vit)
    status, printed, err = ndkd("export", run.checkpoint("last"), "--out", run.path / "x" / "model.safetensors")
    assert status == 0, err
    tokens, width = 5, 192
    products = 4 * 3 * 16**2 * width + tokens * 12 * width**2 + 2 * tokens**2 * width + width * 10
    assert f"{2 * products / 1e6:,.1f} MFLOPs an image; a multiply-add counts as two" in printed


# ---- the card --------------------------------------------------------------------------------------------------------


def test_the_card_tells_where_the_student_is_from(exported, run):
    _, _, card = exported("safetensors")
    best = run.status()["results"]["best"]
    for part in (
        "distilled from cifar/resnet20",
        f"| checkpoint | {run.checkpoint('best')}, epoch {best['epoch']} (counted from 0) |",
        f"| acc1 | {best['test/acc1']:.4f} |",
        "| teacher | cifar/resnet20, runs/digits/teacher/checkpoints/last.ckpt |",
        "| data | ndkd.data.DigitsDataModule, train_size 40, val_size 40, batch_size 32, pad 3 |",
        "| kd | KDLoss: temperature 4.0, standardize False | 1.0 | 10 |",
        "| mean | [0.305, 0.305, 0.305] |",
        "| std | [0.324, 0.324, 0.324] |",
        f"| git commit | {run.status().get('git_commit') or 'unknown'} |",
        f"torch {run.status()['versions']['torch']}, ",
        "\n".join(["```", *(f"{digit} {digit}" for digit in range(10)), "```"]),
        run.config.read_text().strip(),
    ):
        assert part in card
    assert "The epoch was chosen on these same images" not in card


def test_the_card_says_what_is_not_known(run_of):
    """The results in the folder are not this epoch's, and there was no teacher."""
    run = run_of(epoch=7)
    config = yaml.safe_load(run.config.read_text())
    config["model"]["init_args"] |= {"teacher": None}
    run.config.write_text(yaml.safe_dump(config))
    run.update_status(results={"last": {"epoch": 8, "test/acc1": 0.5}})
    run.checkpoint("last").rename(run.checkpoint("best"))
    assert ndkd("export", run.checkpoint("best"), "--out", run.path / "x" / "m.safetensors")[0] == 0
    card = (run.path / "x" / "README.md").read_text()
    assert "trained without a teacher" in card
    assert "There is no result on test images for this checkpoint." in card
    assert "acc1" not in card
    assert "| git commit | unknown |" in card


def test_the_card_names_several_teachers(run_of):
    run = run_of()
    config = yaml.safe_load(run.config.read_text())
    teachers = {"a": {"name": "cifar/resnet20", "checkpoint": "a.pth"}, "b": {"name": "timm/vit", "checkpoint": None}}
    config["model"]["init_args"] |= {"teacher": None, "teachers": teachers}
    run.config.write_text(yaml.safe_dump(config))
    assert ndkd("export", run.checkpoint("last"), "--out", run.path / "x" / "m.safetensors")[0] == 0
    card = (run.path / "x" / "README.md").read_text()
    assert "distilled from cifar/resnet20 and timm/vit with [ndkd]" in card
    assert "| teacher | cifar/resnet20, a.pth; timm/vit, pretrained weights |" in card


def test_the_card_says_that_best_was_chosen_on_the_test_images(run_of):
    run = run_of(config={"data": {"class_path": "DigitsDataModule", "init_args": {"val_size": 0}}}, epoch=7)
    run.update_status(results=dict.fromkeys(("last", "best"), {"epoch": 7, "test/acc1": 0.5}))
    run.checkpoint("last").rename(run.checkpoint("best"))
    status, _, err = ndkd("export", run.checkpoint("best"), "--out", run.path / "x" / "m.safetensors")
    assert status == 0, err
    assert "The epoch was chosen on these same images" in (run.path / "x" / "README.md").read_text()


# ---- other students --------------------------------------------------------------------------------------------------

STUDENTS = {
    "several classifiers": {
        "name": "timm/deit_tiny_distilled_patch16_224",
        "classifier": ["head", "head_dist"],
        "kwargs": {"img_size": 32, "depth": 1},
    },
    "torchvision": {"name": "torchvision/mobilenet_v3_small", "classifier": ["classifier.3"]},
    "one's own": {"name": "tests.commands.test_export:Branching", "classifier": ["fc"], "kwargs": {"scale": 3.0}},
    "not normalised": {"name": "cifar/resnet8", "classifier": ["fc"], "kwargs": WIDTHS, "mean": None, "std": None},
}


@pytest.mark.parametrize("kind", STUDENTS)
def test_other_students(kind, run_of, monkeypatch):
    run = run_of(STUDENTS[kind])
    out = run.path / "x" / "model.safetensors"
    status, _, err = ndkd("export", run.checkpoint("last"), "--out", out)
    assert status == 0, err
    monkeypatch.chdir(out.parent)
    names = example((out.parent / "README.md").read_text())
    torch.testing.assert_close(torch.from_numpy(names["logits"]), logits_of(run.checkpoint("last"), names["pixels"]))
    assert ("mean" in names) == (kind != "not normalised")


def test_validation_images_where_there_are_no_test_images(run_of):
    data = {"class_path": "tests.commands.test_export.NoTestImages", "init_args": {}}
    run = run_of(config={"data": data})
    status, printed, err = ndkd(
        "export", run.checkpoint("last"), "--out", run.path / "x" / "model.pt", "--format=torch"
    )
    assert status == 0, err
    assert "on 7 images of NoTestImages" in printed


class NoTestImages(exporting.L.LightningDataModule):
    """Bytes to validate on, as loaders of files give them."""

    images = torch.full((7, 3, 32, 32), 255, dtype=torch.uint8)

    def val_dataloader(self):
        return [(self.images, torch.zeros(7))] if len(self.images) else []


def test_bytes_become_numbers_up_to_one():
    _, pixels, _ = exporting.first_images({"class_path": "tests.commands.test_export.NoTestImages"}, True)
    assert torch.equal(pixels, torch.ones(7, 3, 32, 32))
    _, pixels, _ = exporting.first_images({"class_path": "DigitsDataModule"}, True)
    data = DigitsDataModule()
    data.setup()
    assert torch.equal(pixels, next(iter(data.test_dataloader()))[0])
    assert pixels.is_contiguous()


# ---- mistakes, and what they leave -----------------------------------------------------------------------------------


def refused(*arguments):
    """The message, one line, of an export that must fail."""
    status, printed, err = ndkd("export", *arguments)
    assert (status, printed) == (2, "")
    (line,) = err.splitlines()
    return line.removeprefix("ndkd: ")


def files():
    return sorted(str(file) for file in Path().rglob("*"))


MISTAKES = {
    "no checkpoint": (["no.ckpt"], "checkpoint no.ckpt does not exist; train it first"),
    "plain weights": (
        ["plain.pth"],
        "checkpoint plain.pth was not written by ndkd fit: it does not say how its student is",
    ),
    "garbage": (["garbage.ckpt"], "checkpoint garbage.ckpt is (damaged|not a plain weights)"),
    "outside a run": (["alone.ckpt"], "checkpoint alone.ckpt is not in a run folder, whose config.yaml would say"),
    "a detector": (["detector.ckpt"], "checkpoint detector.ckpt is of a detector, detector/resnet18; only classifiers"),
    "out exists": (["--out=there/model.pt"], "out there/model.pt: there/model.pt exists; choose a new folder"),
    "out is a folder": (["--out=there"], "out there is a folder: name a file in it, for example there/model.pt"),
    "someone's README": (["--out=taken/model.pt"], "out taken/model.pt: taken/README.md exists; choose a new folder"),
    "another format": (["--out=new/model.onnx"], "a file of --format torch is named like new/model.pt"),
    "no folder": (
        ["--out=plain.pth/model.pt"],
        "cannot be made: .*plain.pth is not a folder",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_line_and_leaves_nothing(mistake, run):
    for folder in ("there", "taken"):
        Path(folder).mkdir(exist_ok=True)
    Path("there/model.pt").touch()
    Path("taken/README.md").touch()
    Path("garbage.ckpt").write_bytes(b"\x80\xff")
    torch.save({"weight": torch.zeros(1)}, "plain.pth")
    content = read_checkpoint(run.checkpoint("last"))
    torch.save(content, "alone.ckpt")
    content["hyper_parameters"]["student"] = {"name": "detector/resnet18", "classifier": ["roi_heads.box_predictor.x"]}
    torch.save(content, "detector.ckpt")
    arguments, message = MISTAKES[mistake]
    if arguments[0].startswith("--out"):
        arguments = [run.checkpoint("last"), *arguments]
    else:
        arguments = [*arguments, "--out=new/model.pt"]
    before = files()
    assert re.search(message, refused(*arguments, "--format=torch"))
    assert files() == before


def test_a_folder_that_is_not_ones_own(run, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    line = refused(run.checkpoint("last"), "--out=new/deeper/model.safetensors")
    assert line.endswith(f"cannot be made: {Path.cwd()} is not a folder to write in; choose another with --out FILE")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_onnx_needs_its_extra(package, run, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    line = refused("no.ckpt", "--format=onnx", "--out=new/model.onnx")
    assert line == f"--format onnx needs {package}: python -m pip install -e '.[export]'"


@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_a_student_that_cannot_be_traced(format, run_of):
    run = run_of(STUDENTS["one's own"])
    line = refused(run.checkpoint("last"), "--format", format, "--out", run.path / f"x{ENDINGS[format]}")
    start = rf"tests.commands.test_export:Branching cannot be written as {format} \(\w+: .*data-dependent expression"
    assert re.match(start, line)
    assert line.endswith("; choose another --format")
    assert sorted(file.name for file in run.path.iterdir()) == ["checkpoints", "config.yaml"]


def test_other_logits_than_the_checkpoints_are_not_written(run_of):
    run = run_of({"name": "tests.commands.test_export:Fickle", "classifier": ["fc"]})
    line = refused(run.checkpoint("last"), "--out", run.path / "x.safetensors")
    assert re.search(r"x.safetensors is not written: read back, its logits differ from the checkpoint's by \d", line)
    assert sorted(file.name for file in run.path.iterdir()) == ["checkpoints", "config.yaml"]


@pytest.mark.parametrize(("module", "step"), [(exporting, "write_and_read"), (export_card, "median_ms")])
def test_an_interrupt_leaves_nothing(module, step, run, monkeypatch):
    before = files()
    original = getattr(module, step)

    def interrupted(*arguments):
        original(*arguments)
        assert files() != before
        raise KeyboardInterrupt

    monkeypatch.setattr(module, step, interrupted)
    got = ndkd("export", run.checkpoint("last"), "--out=new/model.safetensors")
    assert got[0] == 130, got
    assert files() == before


def test_what_a_killed_export_left_is_cleared_away(run, tmp_path):
    out = tmp_path / "deep" / "new" / "model.pt"
    killed = [tmp_path / ".model.pt.export", out.parent / ".model.pt.export"]  # before and after the folder was made
    for folder in killed:
        (folder / "new").mkdir(parents=True)
        (folder / "new" / "model.pt").write_bytes(b"half")
        (folder / "lock").write_text("1 on elsewhere")
    assert ndkd("export", run.checkpoint("last"), "--format=torch", "--out", out)[0] == 0
    assert sorted(file.name for file in out.parent.iterdir()) == ["README.md", "model.pt", "preprocess.json"]
    assert [file.name for file in tmp_path.iterdir()] == ["deep"]


def test_two_exports_to_one_place(run, tmp_path, monkeypatch):
    monkeypatch.setattr("ndkd.lock.PATIENCE", 0)
    hidden = tmp_path / ".model.pt.export"
    hidden.mkdir()
    take = "import sys; from pathlib import Path; from ndkd.lock import Lock; Lock(Path(sys.argv[1])).take(); input()"
    other = subprocess.Popen([sys.executable, "-c", take, hidden], stdin=subprocess.PIPE)
    while not (hidden / "lock").exists() or not (hidden / "lock").read_text():
        time.sleep(0.05)
    line = refused(run.checkpoint("last"), "--format=torch", "--out", tmp_path / "model.pt")
    assert f"in use by process {other.pid} on " in line
    other.communicate(b"\n")
    assert ndkd("export", run.checkpoint("last"), "--format=torch", "--out", tmp_path / "model.pt")[0] == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "model.pt", "preprocess.json"]


def test_data_that_is_not_there(run_of):
    """Nobody knows of which size its images were."""
    data = {"class_path": "InMemoryImageFolderDataModule", "init_args": {"root": "nowhere"}}
    run = run_of(config={"data": data})
    line = refused(run.checkpoint("last"), "--out", run.path / "x.safetensors")
    assert line.startswith("there is no folder nowhere: wanted nowhere/train/CLASS/IMAGE.jpg")


def test_data_of_an_unknown_class(run_of):
    run = run_of(config={"data": {"class_path": "DigitDataModule"}})
    line = refused(run.checkpoint("last"), "--out", run.path / "x.safetensors")
    assert line.startswith(f"{run.config}: data: there is no class DigitDataModule; did you mean DigitsDataModule")


def test_data_without_images(run_of, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__].NoTestImages, "images", NoTestImages.images[:0])
    run = run_of(config={"data": {"class_path": "tests.commands.test_export.NoTestImages"}})
    line = refused(run.checkpoint("last"), "--out", run.path / "x.safetensors")
    assert line == "NoTestImages gives no image to test or validate on: the file could not be checked"


def test_the_card_escapes_the_names_of_other_people(run_of, run):
    """Of classes, of paths and of whatever stands in the configuration: they are text, whatever they look like."""
    names = ["a\n```\n# b", "<script>", "{{ 7 * 7 }}", *"3456789"]
    stored = read_checkpoint(run.checkpoint("last"))["hyper_parameters"] | {"class_names": names}
    config = yaml.safe_load(run.config.read_text())
    config["model"]["init_args"]["teacher"]["checkpoint"] = "x|y\n<b>"
    config["run_dir"] = "a ```\n```\n b" * 20
    strange = run_of(hyper_parameters=stored, config=config)
    out = strange.path / "x" / "m`y'\n.safetensors"
    status, _, err = ndkd("export", strange.checkpoint("last"), "--out", out)
    assert status == 0, err
    card = (out.parent / "README.md").read_text()
    assert "\n0 a\\n```\\n# b\n1 <script>\n2 {{ 7 * 7 }}\n" in card
    assert "resnet20, x\\|y\\\\n&lt;b&gt; |" in card
    assert "``m`y'\\n.safetensors`` holds its weights" in card
    assert 'load_file("m`y\'\\n.safetensors")' in card
    fences = [line for line in card.splitlines() if line.startswith("```")]
    assert fences == ["```python", "```", "```", "```", "````yaml", "````"]
