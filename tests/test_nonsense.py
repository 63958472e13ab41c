"""What could be taken for a configuration but makes no sense: refused in one line, before anything is built of it."""

import json
import os
import sys
import tarfile
from functools import partial
from io import BytesIO
from pathlib import Path
from shutil import rmtree

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, OneCycleLR, SequentialLR, StepLR

from ndkd import losses
from ndkd.callbacks.class_means import ClassMeans, read_class_means
from ndkd.commands.build_errors import in_one_line
from ndkd.commands.markdown import code, fence, inline, python_text
from ndkd.commands.trainer_options import check_length, check_trainer
from ndkd.configuration.checks import check_config, check_option
from ndkd.data.archives import check_archive
from ndkd.data.coco import read_split
from ndkd.data.layouts import find_images
from ndkd.distillation.objective import LossTerm, check_names
from ndkd.distillation.rehearsal import rehearsed
from ndkd.errors import NdkdError
from ndkd.models import ModelConfig, build_model
from ndkd.schedules import WarmupCosineLR, WarmupMultiStepLR
from tests.command import ndkd

LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))])

# ---- YAML ------------------------------------------------------------------------------------------------------------

YAML = {
    "trainer: 7": "config c.yaml, line 1: trainer: wanted entries, got 7; fill it or leave it out",
    "x: 1\nmodel: 7": "config c.yaml, line 2: model: wanted entries, got 7; fill it or leave it out",
    "data: []": "config c.yaml, line 1: data: wanted entries, got a list; fill it or leave it out",
    "trainer: [max_epochs]": "config c.yaml, line 1: trainer: wanted entries, got a list; fill it or leave it out",
    "trainer:": "config c.yaml, line 1: trainer: wanted entries, got nothing; fill it or leave it out",
    "class_means: null": "config c.yaml, line 1: class_means: wanted entries, got null; fill it or leave it out",
    "- a": "config c.yaml: wanted entries such as trainer and model, got a list",
    "7": "config c.yaml: wanted entries such as trainer and model, got 7",
    "# nothing": "config c.yaml has no entry; see configs/digits/kd++.yaml for one that has",
    "a: 1\nb: 2\na: 3": "config c.yaml: a is given twice, in lines 1 and 3; keep one",
    "m: {x: {y: 1,\n y: 2}}": "config c.yaml: y is given twice, in lines 1 and 2; keep one",
    "m:\n- k: 1\n  k: 2": "config c.yaml: k is given twice, in lines 2 and 3; keep one",
    "&a [*a]": "config c.yaml, line 1: an alias leads back to what it stands in; write the values out",
    "m: &a\n  n: [*a]": "config c.yaml, line 1: an alias leads back to what it stands in; write the values out",
    LAUGHS: "config c.yaml, line 6: wanted at most 100,000 values, aliases written out; leave some out",
    "a: " + "[" * 60 + "]" * 60: "config c.yaml, line 1: wanted values at most 50 deep",
    "a: " + "[" * 9000 + "]" * 9000: "config c.yaml, line 1: wanted values at most 50 deep",
    "a: [": "config c.yaml is no YAML: *",
    "a: 1\n---\na: 2": "config c.yaml is no YAML: *",
    "? [a]\n: b": "config c.yaml, line 1: wanted a name before the colon, got 'a list'",
    "'': 1": "config c.yaml, line 1: wanted a name before the colon, got 'nothing'",
    "a b: 1": "config c.yaml, line 1: wanted a name before the colon, got 'a b'",
    "optimizer: {}": "config c.yaml, line 1: optimizer: wanted a class_path, got no entry; fill it or leave it out",
    "loss: {init_args: 7}": "config c.yaml, line 1: init_args: wanted entries, got 7; fill it or leave it out",
    "loss: {class_path: [x]}": "config c.yaml, line 1: class_path: wanted the name of a class, got a list",
    "losses: {1: {}}": "config c.yaml, line 1: losses: wanted a word as the name of a term, got 1",
    "losses: {true: {}}": "config c.yaml, line 1: losses: wanted a word as the name of a term, got true",
    "losses: {kd: KDLoss}": "config c.yaml, line 1: losses.kd: wanted entries such as loss and weight, got KDLoss",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(function, *arguments, **options):
    with pytest.raises(NdkdError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("text", YAML, ids=lambda text: text[:20])
def test_a_file_that_is_not_what_it_looks_like(folder, text):
    Path("c.yaml").write_text(text)
    message, wanted = refusal(check_config, Path("c.yaml")), YAML[text]
    assert message.startswith(wanted[:-1]) if wanted.endswith("*") else message == wanted


def test_a_file_that_another_names_is_looked_at_too(folder):
    Path("parts").mkdir()
    Path("c.yaml").write_text("model: {init_args: {optimizer: parts/sgd.yaml}}")
    Path("parts/sgd.yaml").write_text("lr: 1\nlr: 2")
    message = "config parts/sgd.yaml: lr is given twice, in lines 1 and 2; keep one"
    assert refusal(check_config, Path("c.yaml")) == message
    Path("parts/sgd.yaml").write_text("lr: ../c.yaml")
    assert "c.yaml, which names it in turn" in refusal(check_config, Path("c.yaml"))


def test_an_option_that_is_not_what_it_looks_like(folder):
    assert "is given twice" in refusal(check_option, "--model={a: 1, a: 2}")
    assert "an alias leads back" in refusal(check_option, "--model=&a [*a]")
    assert "an alias leads back" in refusal(check_option, "{x: &a [*a]}")
    Path("o.yaml").write_text("lr: 1\nlr: 2")
    assert "is given twice" in refusal(check_option, "--model.init_args.optimizer=o.yaml")
    for plain in ("--model={a: 1}", "--data.init_args.root=a[", "--x", "resnet", "--taps=[a, b]", "--y=*a"):
        check_option(plain)


def test_aliases_that_make_sense_and_merged_entries_stay(folder):
    Path("c.yaml").write_text("a: &a {x: 1, y: [1, 2]}\nb: *a\nc: {<<: *a, x: 2}")
    check_config(Path("c.yaml"))


@pytest.mark.parametrize("command", [("fit", "--config", "c.yaml"), ("compare", "c.yaml", "--out", "out")])
def test_the_command_line_says_so(folder, command):
    Path("c.yaml").write_text("a: &a [*a]")
    status, _, err = ndkd(*command)
    assert status == 2
    assert err == "ndkd: config c.yaml, line 1: an alias leads back to what it stands in; write the values out\n"


# ---- numbers ---------------------------------------------------------------------------------------------------------

BAD = [None, 0, -1, float("nan"), float("inf")]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    ("loss", "option"),
    [
        ("KDLoss", "temperature"),
        ("DKDLoss", "temperature"),
        ("DISTLoss", "temperature"),
        ("InfoNCELoss", "temperature"),
        ("NDLoss", "eps"),
        ("SIFNLoss", "step"),
        ("ReviewKDLoss", "max_mid_channels"),
    ],
)
def test_an_option_of_a_loss(loss, option, value):
    with pytest.raises(ValueError, match=f"^{option}: wanted a number above 0, got "):
        getattr(losses, loss)(**{option: value})


@pytest.mark.parametrize(("loss", "one", "other"), [("DKDLoss", "alpha", "beta"), ("DISTLoss", "beta", "gamma")])
def test_weights_inside_a_loss(loss, one, other):
    make = getattr(losses, loss)
    make(**{one: 0})
    for value in (-1, float("nan"), float("inf"), None):
        with pytest.raises(ValueError, match=f"^{one}: wanted a number from 0 on, got "):
            make(**{one: value})
    with pytest.raises(ValueError, match=f"^{one} and {other}: wanted a number above 0, all are 0"):
        make(**{one: 0, other: 0})


@pytest.mark.parametrize("weight", [None, -1, float("nan"), float("inf")])
def test_the_weight_of_a_term(weight):
    assert "weight: wanted a number from 0 on, got " in refusal(LossTerm, nn.L1Loss(), weight)


def test_other_options_of_a_term():
    assert "warmup_epochs: wanted 0 or more, got None" in refusal(LossTerm, nn.L1Loss(), warmup_epochs=None)
    assert "warmup_from: wanted 0 or more, got -1" in refusal(LossTerm, nn.L1Loss(), warmup_from=-1)
    assert "inputs: wanted the names" in refusal(LossTerm, nn.L1Loss(), inputs=[])
    assert "loss: wanted a loss" in refusal(LossTerm, None)


@pytest.mark.parametrize(
    "name", ["a.b", "../x", "", "1", 1, True, "a b", "train", "forward", "build", "terms", "loss", "lr"]
)
def test_the_name_of_a_term(name):
    assert "name the term otherwise" in refusal(check_names, [name])


def test_names_that_terms_may_have():
    check_names(["kd", "kd++", "kd-2", "ND", "größe", "_x"])


@pytest.mark.parametrize(
    "options",
    [
        {"mean": [], "std": []},
        {"classifier": []},
        {"taps": []},
        {"kwargs": None},
        {"mean": [0.5], "std": [0]},
        {"mean": [0.5], "std": [-1]},
        {"mean": [float("nan")], "std": [1]},
        {"mean": [0.5], "std": [float("inf")]},
        {"mean": [0.5, 0.5], "std": [0.5]},
    ],
)
def test_an_option_of_a_model(options):
    assert refusal(ModelConfig, "cifar/resnet8", **options).startswith("model cifar/resnet8: ")


@pytest.mark.parametrize("made", ["None", "(1, 2)", "dict()", "1 / 0"])
def test_a_function_that_makes_no_model(folder, monkeypatch, made):
    Path("handmade.py").write_text(f"def build(num_classes): return {made}")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "handmade", raising=False)
    assert refusal(build_model, "handmade:build", 3).startswith("model handmade:build: ")


TRAINER = {
    "accumulate_grad_batches": [0, -1],
    "check_val_every_n_epoch": [0],
    "val_check_interval": [0, 0.0, -1, float("nan")],
    "gradient_clip_val": [-1, float("nan"), float("inf")],
    "limit_train_batches": [-1],
    "log_every_n_steps": [-1],
    "num_nodes": [0],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in TRAINER.items() for value in values])
def test_an_option_of_the_trainer(name, value):
    assert refusal(check_trainer, {name: value}).startswith(f"trainer.{name}: wanted ")


@pytest.mark.parametrize("options", [{}, {"max_epochs": 0}, {"max_epochs": -1}, {"max_epochs": -2}, {"max_steps": 0}])
def test_how_long_to_train(options):
    assert refusal(check_length, options).startswith("trainer.max_")


def test_other_ways_to_say_how_long_to_train():
    for options in ({"max_epochs": 1}, {"max_steps": 5, "max_epochs": -1}, {"max_time": "00:00:01:00"}):
        check_length(options)


# ---- optimizers and schedules ----------------------------------------------------------------------------------------

SGD = partial(torch.optim.SGD, lr=0.1)


def rehearse(optimizer=SGD, scheduler=None, steps=20):
    weights = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    return rehearsed(optimizer, list(weights.parameters()), scheduler, steps)


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(SGD, lr=0.0),
        partial(SGD, lr=float("nan")),
        partial(SGD, lr=-1),
        partial(SGD, lr=None),
        partial(SGD, momentum=1.0),
        partial(SGD, momentum=-0.1),
        partial(SGD, weight_decay=float("inf")),
        partial(torch.optim.Adam, betas=(0.9, 1.0)),
        torch.optim.SparseAdam,
        torch.optim.LBFGS,
        torch.optim.Muon if hasattr(torch.optim, "Muon") else torch.optim.SparseAdam,
        lambda parameters: None,
    ],
)
def test_an_optimizer(optimizer):
    refusal(rehearse, optimizer)


@pytest.mark.parametrize(
    "scheduler",
    [
        partial(StepLR, step_size=0),
        partial(StepLR, step_size=-1),
        partial(StepLR, step_size=5, gamma=float("nan")),
        partial(StepLR, step_size=5, gamma=-0.1),
        partial(CosineAnnealingLR, T_max=0),
        partial(CosineAnnealingLR, T_max=-3),
        partial(CosineAnnealingLR, T_max=5, eta_min=-1),
        partial(MultiStepLR, milestones=[-1, 3]),
        partial(MultiStepLR, milestones=[5, 3]),
        partial(WarmupMultiStepLR, milestones=[5, 3]),
        partial(WarmupMultiStepLR, milestones=[3], warmup_steps=-1),
        partial(WarmupMultiStepLR, milestones=[3], warmup_factor=float("nan")),
        partial(WarmupCosineLR, total_steps=20, min_lr=float("nan")),
        partial(OneCycleLR, max_lr=0.1, total_steps=5),
        partial(LinearLR, total_iters=0),
        lambda o: SequentialLR(o, [StepLR(o, 1), StepLR(o, 0)], [3]),
        lambda o: SequentialLR(o, [StepLR(o, 1), StepLR(o, 2), StepLR(o, 2)], [5, 3]),
    ],
)
def test_a_schedule(scheduler):
    refusal(rehearse, scheduler=scheduler)


def test_a_rehearsal_leaves_no_trace():
    optimizer, scheduler = rehearse(scheduler=partial(MultiStepLR, milestones=[3, 5]))
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert not optimizer.state
    assert scheduler.last_epoch == 0
    assert rehearse()[1] is None


# ---- whatever else ---------------------------------------------------------------------------------------------------


def test_an_exception_while_a_run_is_built_is_one_line():
    def fails():
        with in_one_line():
            raise KeyError("x\ny")

    message = refusal(fails)
    assert message.startswith("this configuration cannot be built: KeyError: 'x\\ny' (in ")


def test_an_exception_in_a_step_is_shown_whole(workplace):
    """It is a fault of the code."""
    options = ["--trainer.fast_dev_run=1", "--trainer.accelerator=cpu", "--run_dir=run"]
    broken = ["--trainer.callbacks=[tests.test_nonsense.Broken]"]
    with pytest.raises(ZeroDivisionError):
        ndkd("fit", "--config", "configs/digits/student.yaml", *options, *broken)


class Broken(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        raise ZeroDivisionError


REFUSED = {
    "--data.init_args.batch_size=null": "data.init_args.batch_size: wanted a value, got null",
    "--model.init_args.optimizer.init_args.lr=null": "model.optimizer.init_args.lr: wanted float, got None",
    "--trainer.devices=x": "trainer: ",
    "--trainer.devices=-1": "trainer: ",
    "--trainer.accelerator=tpu": "trainer: ",
    "--model.init_args.losses.ce.loss.init_args.reduction=none": "loss ce: wanted one number for a batch",
    "--model.init_args.losses.ce.inputs=[target, target]": "no loss reads anything of the student",
}


@pytest.mark.parametrize("option", REFUSED)
def test_an_option_of_a_run(workplace, option):
    options = ["--trainer.fast_dev_run=1", "--trainer.accelerator=cpu", "--run_dir=run"]
    status, _, err = ndkd("fit", "--config", "configs/digits/student.yaml", *options, option)
    assert status == 2
    assert err.startswith(f"ndkd: {REFUSED[option]}")
    assert err.count("\n") == 1


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(folder):
    """A folder of two classes, each with one file by the name of an image."""
    for name in "ab":
        Path("train", name).mkdir(parents=True)
        Path("train", name, "1.png").touch()
    return Path()


def found(images):
    return [os.fsdecode(path) for path in find_images(images).splits["train"].paths]


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
    message = "image train/a/2.png is no ordinary file: replace or remove it"
    assert refusal(find_images, images) == message
    Path("train/a/2.png").unlink()
    Path("train/a/2.png").symlink_to("nowhere.png")
    assert refusal(find_images, images) == message


def archive(*members, inner=False):
    """A tar file of (name, size or kind) in the working directory."""
    content = BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, size in members:
            member = tarfile.TarInfo(name)
            member.size, member.type = (size, tarfile.REGTYPE) if isinstance(size, int) else (0, size)
            member.linkname = "/etc/passwd" if not isinstance(size, int) else ""
            tar.addfile(member, BytesIO(bytes(member.size)))
    if inner:
        member, outer = tarfile.TarInfo("n0.tar"), BytesIO()
        member.size = len(content.getvalue())
        with tarfile.open(fileobj=outer, mode="w") as tar:
            tar.addfile(member, BytesIO(content.getvalue()))
        content = outer
    Path("a.tar").write_bytes(content.getvalue())
    return Path("a.tar")


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize(
    ("member", "why"),
    [
        (("../x", 1), "leads out of its folder"),
        (("a/../../x", 1), "leads out of its folder"),
        (("/x", 1), "leads out of its folder"),
        (("x", tarfile.SYMTYPE), "is no ordinary file"),
        (("x", tarfile.LNKTYPE), "is no ordinary file"),
        (("x", tarfile.FIFOTYPE), "is no ordinary file"),
        (("x", 20_000), "has 0.0 GB"),
    ],
)
def test_an_archive_that_would_do_harm(folder, inner, member, why):
    file = archive(("good.JPEG", 10), member, inner=inner)
    largest = 10_000 if not inner else 40_000
    if inner and isinstance(member[1], int) and member[1] > 1:
        largest = 19_999
        file = archive(("good.JPEG", 10), (member[0], 20_000))  # the inner file itself would be too large
    assert why in refusal(check_archive, file, folder, largest)


def test_an_archive_for_which_there_is_no_room(folder, monkeypatch):
    file = archive(("good.JPEG", 10), ("other.JPEG", 20))
    check_archive(file, folder)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 25}))
    assert "make room" in refusal(check_archive, file, folder)


def test_an_archive_that_is_none(folder):
    Path("a.tar").write_bytes(b"no archive")
    assert "is damaged" in refusal(check_archive, Path("a.tar"), folder)


def test_an_image_of_coco_that_lies_elsewhere(folder):
    Path("outside.png").touch()
    entry = {"id": 1, "width": 8, "height": 8}
    tables = {"categories": [{"id": 1, "name": "a"}], "annotations": []}
    for name in ("../outside.png", str(folder / "outside.png"), "a/../../outside.png"):
        Path("c.json").write_text(json.dumps(tables | {"images": [entry | {"file_name": name}]}))
        message = refusal(read_split, Path("c.json"), Path("images"), "train")
        assert message == f"c.json: image 1 lies outside images: file_name {name!r}; correct it"


def test_a_pipe_instead_of_a_file_to_read(folder):
    for name in ("p.json", "p.npz"):
        os.mkfifo(name)
        assert refusal(read_class_means, name) == f"class means {name}: wanted a file"
    assert "no ordinary file" in refusal(read_split, Path("p.json"), None, "train")


# ---- teachers and classes --------------------------------------------------------------------------------------------


def test_class_means_that_point_nowhere(folder, fit, make_module, terms):
    np.savez("zero.npz", class_means=np.zeros((10, 64)))
    message = refusal(fit, make_module(terms("nd")), ClassMeans(file=Path("zero.npz")))
    assert message == "class means zero.npz: all numbers are 0, they point nowhere; give another file"


def test_a_teacher_whose_embeddings_are_zero(fit, make_module, terms, teacher_checkpoint, folder):
    torch.save({name: torch.zeros_like(w) for name, w in torch.load(teacher_checkpoint).items()}, "zero.pth")
    module = make_module(terms("nd"), teacher=ModelConfig("cifar/resnet8", checkpoint=Path("zero.pth")))
    assert refusal(fit, module).startswith("the teacher's embeddings are all 0, no class has a direction")


def test_class_means_of_no_images():
    assert refusal(ClassMeans, max_images=0) == "class_means.max_images: wanted at least 1, got 0"


def test_data_of_one_class(images):
    for split in ("train", "test"):
        Path(split, "a").mkdir(parents=True, exist_ok=True)
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(Path(split, "a", f"{number}.png"))
    rmtree("train/b")
    Path("train/a/1.png").unlink()
    ce = "{loss: torch.nn.CrossEntropyLoss, inputs: [student.logits, target]}"
    Path("c.yaml").write_text(
        f"trainer: {{max_epochs: 1, accelerator: cpu}}\nmodel: {{class_path: DistillationModule, init_args: {{student: "
        f"{{name: cifar/resnet8}}, losses: {{ce: {ce}}}}}}}\n"
        "data: {class_path: InMemoryImageFolderDataModule, init_args: {root: ., batch_size: 2}}"
    )
    status, _, err = ndkd("fit", "--config", "c.yaml", "--run_dir", "run")
    assert (status, err) == (2, "ndkd: the data has 1 class, wanted at least 2: with one alone any answer is right\n")


# ---- names of other people -------------------------------------------------------------------------------------------


def test_text_in_markdown():
    assert inline("a\nb|c") == "a\\\\nb\\|c"
    assert inline("<img src=x>&") == "&lt;img src=x&gt;&amp;"
    assert inline("[a](http://x)") == "\\[a](http://x)"
    assert inline("[0.1, 0.2]") == "[0.1, 0.2]"
    assert inline("{{ x }}") == "{{ x }}"
    assert inline("a\udce9") == "a\\\\udce9"
    assert code("x`y") == "``x`y``"
    assert code("`x`") == "`` `x` ``"
    assert fence("a\n```\nb") == "````"
    assert python_text('a"b\n') == '"a\\"b\\n"'
