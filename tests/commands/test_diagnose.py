"""``ndkd diagnose``: the command, its page, its overlay and its mistakes."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from ndkd.commands.diagnose import Look, Options
from ndkd.runs import Run
from tests.command import SHORT, ndkd
from tests.commands.test_report import Page, files_under
from tests.odd_photos import write_class_folders
from tests.small_network import configuration

KD = ("--config", "configs/digits/kd++.yaml")
NAMES = "red", "green", "blue"
PHOTOS = "{class_path: ImageFolderDataModule, init_args: {root: photos, batch_size: 8, image_size: 32, num_workers: 0}}"
TAUGHT = """
model:
  init_args:
    teacher: {name: 'tests.small_network:small_network', checkpoint: runs/colours/checkpoints/last.ckpt}
    losses:
      ce: {loss: torch.nn.CrossEntropyLoss, inputs: [student.logits, target]}
      kd: {loss: KDLoss}
      nd: {loss: NDLoss}
"""


@pytest.fixture(scope="module")
def diagnosed(workplace):
    """What was printed by one look, what was there before, and the page's folder."""
    before = files_under(Path("runs"))
    status, out, err = ndkd("diagnose", *KD, "--samples", "60", "--share", "nd=0.2", "--teacher_cache", "cache")
    assert (status, err) == (0, "")
    return out.splitlines(), before, Path("runs/digits/kd++-diagnosis")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of three colours, a teacher that knows them, and a configuration for its student."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("photos"))
        patch.setattr("sys.argv", ["ndkd"])
        patch.setenv("PL_GLOBAL_SEED", "0")
        write_class_folders(Path("photos"), {"train": 16, "val": 4}, NAMES, (40, 40))
        Path("colours.yaml").write_text(configuration(12, PHOTOS))
        assert ndkd("fit", "--config", "colours.yaml", "--trainer.limit_test_batches=0")[0] == 0
        Path("taught.yaml").write_text(TAUGHT)
        yield "--config", "colours.yaml", "--config", "taught.yaml"


def test_it_says_what_it_found_in_about_ten_lines(diagnosed):
    lines, _, folder = diagnosed
    beginnings = ["objective", "data", "teacher", "calibration (training / validation)", "labels", "embeddings"]
    beginnings += ["class means", "gradients, start → 30 steps later"]
    assert [line.split(":")[0] for line in lines[:8]] == beginnings
    assert all(line.startswith("look at this: ") for line in lines[8:-2])
    assert len(lines) <= 15
    assert lines[-2].startswith("weights: nd ")
    assert lines[-1] == f"page: {folder / 'index.html'}"


def test_the_page_needs_no_other_file(diagnosed):
    page = Page(diagnosed[2] / "index.html")
    assert len(page.addresses) == 3
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not page.tags & {"script", "link", "iframe"}
    for heading in ("Before the training: kd++", "Teacher", "Labels", "Embeddings", "Class means", "Loss terms"):
        assert heading in page.text
    assert "60 training images and 60 validation images, drawn at random" in page.text
    for line in diagnosed[0]:
        assert line.removeprefix("look at this: ") in page.text or not line.startswith("look at this: ")


def test_nothing_else_is_touched(diagnosed):
    _, before, folder = diagnosed
    after = files_under(Path("runs"))
    assert {file for file in after if file not in before} == {
        folder.relative_to("runs") / name for name in ("index.html", "weights.yaml")
    }
    assert {file: after[file] for file in before} == before
    assert not Path("cache").exists()
    assert not Path("runs/digits/kd++").exists()


def test_fit_takes_the_overlay(diagnosed):
    overlay = diagnosed[2] / "weights.yaml"
    weight = yaml.safe_load(overlay.read_text())["model"]["init_args"]["losses"]["nd"]["weight"]
    given = *KD, "--config", overlay, *SHORT, "--trainer.max_epochs=1", "--run_dir", "runs/weighed"
    status, out, err = ndkd("fit", *given)
    assert status == 0, err
    assert f"{weight:g}·nd" in out.splitlines()[0]
    assert Run("runs/weighed").status()["weights"]["nd"] == weight


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--share", "nd"], "share: wanted TERM=FRACTION such as nd=0.2, got nd"),
        (["--share", "nd=half"], "share: wanted TERM=FRACTION such as nd=0.2, got nd=half"),
        (["--share", "nd=nan"], "share: nd: wanted a share above 0 and below 1, got nan"),
        (["--share", "nd=0"], "share: nd: wanted a share above 0 and below 1, got 0.0"),
        (["--share", "nd=-0.5"], "share: nd: wanted a share above 0 and below 1, got -0.5"),
        (["--share", "nd=1"], "share: nd: wanted a share above 0 and below 1, got 1.0"),
        (["--share", "nd=0.5", "kd=0.5"], "share: wanted less than 1 in all, got 1 (nd 0.5, kd 0.5)"),
        (["--share", "nd=0.2", "--share", "nd=0.3"], "share: nd is given twice; keep one"),
        (["--share", "nx=0.2"], "share: there is no loss term nx; known: ce, kd, nd"),
        (["--share", "ce=0.2", "kd=0.2", "nd=0.2"], "share: ce 0.2, kd 0.2, nd 0.2 are all terms; leave out one"),
        (["--share"], "argument --share: expected at least one argument; see ndkd diagnose --help"),
        (["--share", "nd=0.2", "--model.init_args.losses.nd.weight=0"], "share: nd has weight 0 and is left out"),
        (["--samples", "9"], "samples: wanted a number of images, at least 10, got 9"),
        (["--samples", "-3"], "samples: wanted a number of images, at least 10, got -3"),
        (["--samples", "many"], "samples: wanted a number of images, at least 10, got many"),
        (["--ckpt_path", "last"], "diagnose looks at what a training starts from: leave --ckpt_path out"),
        (["--out", "runs"], "runs holds what is no diagnosis: digits"),
        (["--model.init_args.student.taps", "[layer9]"], "taps: ResNet has no layer 'layer9'"),
        (["--model.init_args.teacher.checkpoint", "no.ckpt"], "checkpoint no.ckpt does not exist"),
        (["--sample", "30"], "there is no option --sample"),
    ],
)
def test_mistakes_are_one_line(workplace, options, message):
    status, out, err = ndkd("diagnose", *KD, *options)
    assert status == 2
    assert message in err
    assert err.startswith("ndkd: ")
    assert err.count("\n") == 1
    assert out == ""


def test_what_does_not_fit_is_said_as_fit_says_it(workplace):
    options = (
        *KD,
        "--model.init_args.losses.review",
        "{loss: ReviewKDLoss}",
        "--model.init_args.student.taps",
        "[layer1]",
    )
    options = *options, "--model.init_args.teacher.taps", "[layer1, layer2]"
    said = [ndkd(command, *options)[2] for command in ("diagnose", "fit")]
    assert said[0] == said[1] != ""


def test_it_wants_a_teacher(workplace):
    status, _, err = ndkd("diagnose", "--config", "configs/digits/student.yaml")
    assert status == 2
    assert err.startswith(
        "ndkd: diagnose looks at a teacher and what its student learns from it, and there is none: set"
    )
    terms = "{ce: {loss: torch.nn.CrossEntropyLoss, inputs: [student.logits, target]}}"
    status, _, err = ndkd("diagnose", *KD, "--model.init_args.losses", terms)
    assert status == 2
    assert err == "ndkd: diagnose looks at what a student learns from its teacher, and no loss term reads it\n"


def test_a_detector_is_one_line(workplace):
    status, _, err = ndkd("diagnose", "--config", "configs/shapes/kd++.yaml")
    assert (status, err) == (2, "ndkd: diagnose looks at classifiers: of a detector it can say nothing yet\n")


def test_a_second_look_by_one_process_whatever_is_configured(diagnosed, monkeypatch):
    folder = Path(shutil.copytree(diagnosed[2], "again"))
    several = "--trainer.devices=2", "--trainer.strategy=ddp", "--samples", "20", "--out", folder
    status, out, err = ndkd("diagnose", *KD, *several)
    assert status == 0, err
    assert out.splitlines()[0] == (
        "ndkd: diagnose runs in one process, whatever the configuration says (trainer.devices 2, trainer.strategy ddp)"
    )
    assert [file.name for file in folder.iterdir()] == ["index.html"]  # no shares, no weights
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, err = ndkd("diagnose", *KD)
    assert (status, err) == (2, "ndkd: diagnose runs in one process: start it without torchrun or srun\n")


def test_help_names_its_options(workplace):
    status, out, _ = ndkd("diagnose", "--help")
    assert status == 0
    assert out.startswith("ndkd diagnose: look at teacher, labels and loss terms before a training")
    assert all(option in out for option in ("--samples N", "--share TERM=FRACTION", "--out DIR"))
    assert "diagnose  look at teacher" in ndkd("--help")[1]


def test_auto_is_the_same_weight(photos):
    """Where the sample is all there is."""
    status, out, err = ndkd("diagnose", *photos, "--share", "nd=0.2", "--out", "all")
    assert status == 0, err
    line = next(line for line in out.splitlines() if line.startswith("weights: "))
    given = *photos, "--model.init_args.losses.nd.weight.auto", "0.2", "--trainer.fast_dev_run", "true"
    status, out, err = ndkd("fit", *given)
    assert status == 0, err
    assert f"+ {line.split()[2]}·nd (share 0.2)" in out


# ---- what is found -------------------------------------------------------------------------------------------------


def test_files_of_doubtful_labels_are_named(photos):
    wrong = Path("photos/train/blue/wrong.png")
    shutil.copy("photos/train/red/3.png", wrong)
    shutil.copy("photos/train/green/5.png", "photos/val/green/copy.png")
    status, out, err = ndkd("diagnose", *photos, "--out", "doubts")
    wrong.unlink()
    Path("photos/val/green/copy.png").unlink()
    assert status == 0, err
    assert "1 of 49 training images (2.0%) are contradicted by a teacher that is 90% sure; blue → red (1)" in out
    text = Path("doubts/index.html").read_text()
    assert f"<td>{wrong.as_posix()}</td><td>blue</td><td>red</td>" in text
    assert "1 image has different labels in several copies, such as " in out
    assert "1 training image is among the validation images: photos/train/green/5.png" in out


def test_a_teacher_of_another_order_is_found(photos):
    content = torch.load("runs/colours/checkpoints/last.ckpt", weights_only=True)
    weights = {name.removeprefix("student.model."): value for name, value in content["state_dict"].items()}
    weights = {name: value.roll(1, dims=0) if name.startswith("fc.") else value for name, value in weights.items()}
    kept = {name: value for name, value in weights.items() if not name.startswith(("student.", "metrics", "cross"))}
    torch.save(kept, "rolled.pth")
    status, out, err = ndkd(
        "diagnose", *photos, "--model.init_args.teacher.checkpoint", "rolled.pth", "--out", "rolled"
    )
    assert status == 0, err
    assert "look at this: the teacher is no better than chance: 0.0% of 12 validation images are right" in out
    assert "the teacher's classes seem to be in another order than the data's" in out


def test_without_validation_images_it_looks_at_the_others(photos):
    status, out, err = ndkd("diagnose", *photos, "--trainer.limit_val_batches=0", "--out", "no_val")
    assert status == 0, err
    assert "teacher: right on 100.0% of 48 training images; chance 33.3%" in out
    assert "drawn at random" in Page(Path("no_val/index.html")).text


def test_a_look_leaves_the_module_as_it_was(fit, make_module, terms):
    """Weights, statistics of BatchNorm and random numbers are those of a fit that was not looked at."""
    kept = []
    for callbacks in ([], [Look(Options(20, {"nd": 0.2}, None), "x")]):
        module = make_module(terms("ce", "kd", "nd"), narrow=True)
        fit(module, *callbacks, epochs=len(callbacks))
        kept.append(({name: tensor.clone() for name, tensor in module.student.state_dict().items()}, torch.rand(3)))
    assert all(torch.equal(kept[0][0][name], kept[1][0][name]) for name in kept[0][0])
    assert torch.equal(kept[0][1], kept[1][1])
