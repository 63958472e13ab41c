"""A file of weights or a run folder from someone else runs no code, whatever it names."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from matplotlib.figure import Figure

import ndkd.commands.export_card as card
from ndkd.analysis import load_run
from ndkd.errors import NdkdError
from ndkd.models.checkpoint import read_checkpoint
from ndkd.runs import Run
from ndkd.trust import Trust, is_builder
from tests.command import ndkd

TEACHER = "runs/digits/teacher"
# importing it, or calling anything in it, leaves a trace
MINE = """
from pathlib import Path
import lightning.pytorch as L, torch
from ndkd.data import DigitsDataModule
from ndkd.models import build_model
Path("trace").touch()

def build(num_classes, **kwargs):
    return build_model("cifar/resnet20", num_classes)

def load(*args, **kwargs):
    raise SystemExit("never to be called")

class Data(DigitsDataModule):
    pass

class Loss(torch.nn.CrossEntropyLoss):
    pass

class Watch(L.Callback):
    pass
"""
HUBCONF = "from pathlib import Path\nPath('trace').touch()\ndef net(**kwargs):\n    pass\n"


@pytest.fixture(autouse=True, scope="module")
def hurried():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "SECONDS", 1e-3)
        yield


@pytest.fixture
def place(workplace, tmp_path, monkeypatch):
    """A copy of a finished run in a working directory of its own, beside a package that leaves a trace."""
    (tmp_path / "configs").symlink_to(workplace / "configs")
    shutil.copytree(workplace / "runs", tmp_path / "runs")
    (tmp_path / "elsewhere").mkdir()
    Path(tmp_path, "elsewhere", "mine.py").write_text(MINE)
    Path(tmp_path, "hub").mkdir()
    Path(tmp_path, "hub", "hubconf.py").write_text(HUBCONF)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ndkd"])
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    monkeypatch.delenv("NDKD_TRUST", raising=False)
    yield tmp_path
    sys.modules.pop("mine", None)


def spoil_checkpoint(**student):
    """Name another student in the run's checkpoints."""
    for name in ("last", "best"):
        file = Run(TEACHER).checkpoint(name)
        content = read_checkpoint(file)
        content["hyper_parameters"]["student"] |= student
        torch.save(content, file)


def spoil_config(where, value):
    """Change an entry of the run's config.yaml, ``model.init_args.student`` for example."""
    run = Run(TEACHER)
    config = yaml.safe_load(run.config.read_text())
    *parents, last = where.split(".")
    entry = config
    for parent in parents:
        entry = entry[parent]
    entry[last] = value
    run.config.write_text(yaml.safe_dump(config))


LAST = f"{TEACHER}/checkpoints/last.ckpt"
FEW = ["--trainer.limit_test_batches=1", "--trainer.limit_val_batches=1", "--trainer.limit_predict_batches=1"]
EXPORT = ["export", LAST, "--out", "out/model.safetensors"]
MEASURE = {command: [command, "--ckpt_path", LAST, *FEW] for command in ("test", "validate", "predict")}
EVIL_STUDENTS = {
    "a local torch.hub": {
        "name": "torch.hub:load",
        "kwargs": {"repo_or_dir": "hub", "model": "net", "source": "local"},
    },
    "one's own": {"name": "mine:build"},
    "through an import of ours": {"name": "ndkd.models.factory:importlib"},
    "a function of ours": {"name": "ndkd.cli:main"},
    "our command": {"name": "ndkd.__main__:main"},
    "through an import of torch": {"name": "torch.nn.modules.module:torch"},
    "no model of timm": {"name": "timm.models:load_checkpoint", "kwargs": {"model": None, "checkpoint_path": "x"}},
    "any of timm": {"name": "timm.models:create_model", "kwargs": {"model_name": "hf_hub:a/b"}},
    "a hub of timm": {"name": "timm/hf_hub:a/b"},
    "another file for timm": {"name": "timm/resnet10t", "kwargs": {"checkpoint_path": "mine.pth"}},
    "weights by a configuration": {"name": "timm/resnet10t", "kwargs": {"pretrained_cfg": {"file": "mine.pth"}}},
    "weights of torchvision": {"name": "torchvision/resnet18", "kwargs": {"weights": "DEFAULT"}},
    "a class among the arguments": {"name": "cifar/resnet8", "kwargs": {"widths": {"class_path": "mine.Loss"}}},
    "a name among the arguments": {"name": "cifar/resnet8", "kwargs": {"widths": ["mine:load"]}},
    "an argument that is code": {"name": "cifar/resnet8", "kwargs": {"x=open('trace','w') or 1, y": 1}},
    "no name": {"name": 7},
    "no arguments": {"name": "cifar/resnet8", "kwargs": ["mine"]},
}
EVIL_ENTRIES = {
    "model.class_path": "mine.Loss",
    "model.init_args.student.name": "mine:build",
    "model.init_args.teacher": {"name": "torch.hub:load", "kwargs": {"repo_or_dir": "hub", "source": "local"}},
    "model.init_args.student.kwargs": {"a": {"class_path": "mine.Loss"}},
    "model.init_args.student": "elsewhere/mine.yaml",
    "model.init_args": "mine.yaml",
    "model": "mine.yaml",
    "model.init_args.losses": {"x": {"loss": {"class_path": "mine.Loss"}}},
    "model.init_args.losses.ce.loss": "mine.Loss",
    "model.init_args.losses.ce.loss.init_args.weight": {"class_path": "mine.Loss"},
    "model.init_args.optimizer.class_path": "mine.load",
    "model.init_args.lr_scheduler": {
        "class_path": "torch.optim.lr_scheduler.LambdaLR",
        "init_args": {"lr_lambda": "mine.load"},
    },
    "data": {"class_path": "mine.Data"},
    "data.class_path": "ndkd.data.cifar.datasets.CIFAR10",
    "data.init_args.batch_size": {"class_path": "mine.Data"},
    "trainer": "mine.yaml",
    "trainer.callbacks": [{"class_path": "mine.Watch"}],
    "trainer.strategy": "mine.Watch",
    "trainer.plugins": ["mine.Watch"],
    "trainer.profiler": {
        "class_path": "lightning.pytorch.profilers.AdvancedProfiler",
        "init_args": {"dirpath": "trace"},
    },
    "trainer.accelerator": {"class_path": "mine.Watch"},
    "class_means": "mine.yaml",
    "class_means.file": {"class_path": "mine.Loss"},
    "config": "mine.yaml",
}
EVIL_CALLBACKS = {
    "a function": {
        "class_path": "lightning.pytorch.callbacks.LambdaCallback",
        "init_args": {"on_test_start": "mine.load"},
    },
    "a file": {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": "trace"}},
    "ours": {"class_path": "ndkd.callbacks.run_recorder.RunRecorder"},
    "by its short name": {"class_path": "LambdaCallback"},
    "inside": {
        "class_path": "lightning.pytorch.callbacks.Timer",
        "init_args": {"duration": {"class_path": "mine.Watch"}},
    },
}


def assert_refused(*arguments, word="docs/security.md"):
    status, out, err = ndkd(*arguments)
    assert status == 2, out + err
    assert err.startswith("ndkd: ")
    assert err.count("\n") == 1
    assert word in err
    assert not Path("trace").exists()
    assert "mine" not in sys.modules


# ---- attacks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", EVIL_STUDENTS)
def test_export_builds_no_student_that_a_checkpoint_names(student, place):
    spoil_checkpoint(**EVIL_STUDENTS[student])
    assert_refused(*EXPORT, word="")
    assert not Path("out").exists()
    with pytest.raises(NdkdError):
        load_run(TEACHER)
    assert not Path("trace").exists()


@pytest.mark.parametrize("entry", EVIL_ENTRIES)
def test_a_run_folders_configuration_builds_nothing_else(entry, place):
    spoil_config(entry, EVIL_ENTRIES[entry])
    Path("mine.yaml").write_text("class_path: mine.Data\n")
    assert_refused(*MEASURE["test"], word="")


@pytest.mark.parametrize("callback", EVIL_CALLBACKS)
def test_callbacks_that_write_or_call(callback, place):
    spoil_config("trainer.callbacks", [EVIL_CALLBACKS[callback]])
    assert_refused(*MEASURE["test"], word="")


@pytest.mark.parametrize("command", ["validate", "predict", "export"])
def test_every_command_refuses_foreign_data(command, place):
    spoil_config("data.class_path", "mine.Data")
    assert_refused(*{**MEASURE, "export": EXPORT}[command])


def test_the_analysis_refuses_foreign_data_and_teachers(place):
    spoil_config("data.class_path", "mine.Data")
    with pytest.raises(
        NdkdError, match=r"^runs/digits/teacher/config.yaml: data is mine.Data, which could run any code"
    ):
        load_run(TEACHER)
    spoil_config("data.class_path", "DigitsDataModule")
    for entry, described in {"teacher": {"name": "mine:build"}, "teachers": {"a": {"name": "mine:build"}}}.items():
        spoil_config(f"model.init_args.{entry}", described)
        with pytest.raises(NdkdError, match="--trust mine"):
            load_run(TEACHER)
    assert not Path("trace").exists()


def test_a_logger_is_never_made(place):
    spoil_config("trainer.logger", {"class_path": "mine.Watch"})
    status, _, err = ndkd(*MEASURE["test"])
    assert status == 0, err
    assert not Path("trace").exists()


def test_report_and_compare_read_and_build_nothing(place, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: None)
    spoil_config("data.class_path", "mine.Data")
    spoil_config("model.init_args.student.name", "mine:build")
    spoil_checkpoint(name="mine:build")
    assert ndkd("report", TEACHER)[0] == 0
    configs = ["--teacher", "configs/digits/teacher.yaml", "configs/digits/kd.yaml"]
    assert ndkd("compare", "--out", "runs/digits", "--print-commands", *configs)[0] == 0
    resumed = ["fit", "--config", "configs/digits/teacher.yaml", "--ckpt_path", "last", "--trainer.max_epochs=1", *FEW]
    status, _, err = ndkd(*resumed, "--data.init_args.train_size=40")  # what its own configuration says
    assert status == 0, err
    assert not Path("trace").exists()


def test_weights_of_a_student_or_a_teacher_name_nothing(place):
    spoil_checkpoint(name="mine:build", kwargs={"a": {"class_path": "mine.Loss"}})
    shutil.copy(LAST, "given.ckpt")
    given = json.dumps({"name": "cifar/resnet20", "checkpoint": "given.ckpt"})
    options = [f"--model.init_args.{entry}={given}" for entry in ("student", "teacher")]
    options += ["--run_dir", "run", "--trainer.max_epochs=1", "--data.init_args.train_size=40", *FEW]
    status, _, err = ndkd("fit", "--config", "configs/digits/kd.yaml", *options)
    assert status == 0, err
    assert not Path("trace").exists()


class Touch:
    def __reduce__(self):
        return open, ("trace", "w")


@pytest.mark.parametrize("entry", ["student", "teacher"])
def test_a_pickle_that_runs_code(entry, place):
    torch.save({"state_dict": Touch()}, "given.pth")
    given = [f"--model.init_args.{entry}.checkpoint=given.pth", "--run_dir=run"]
    assert_refused("fit", "--config", "configs/digits/kd.yaml", *given, word="not a plain weights file")
    shutil.copy("given.pth", LAST)
    for command in (EXPORT, *MEASURE.values(), ["report", TEACHER]):
        assert_refused(*command, word="not a plain weights file")


# ---- what is trusted -------------------------------------------------------------------------------------------------


@pytest.fixture
def own(place):
    """The run's student and data are one's own."""
    spoil_config("data", {"class_path": "mine.Data", "init_args": {"train_size": 40}})
    spoil_config("model.init_args.student", {"name": "mine:build"})
    spoil_config("model.init_args.losses.ce.loss", {"class_path": "mine.Loss"})
    spoil_checkpoint(name="mine:build")
    shutil.copy(Run(TEACHER).config, "mine.yaml")
    return place


def assert_allowed(*arguments):
    status, _, err = ndkd(*arguments)
    assert status == 0, err
    assert Path("trace").exists()


@pytest.mark.parametrize(
    ("command", "way"),
    [
        *((command, way) for command in ("test", "export") for way in ("option", "environment", "configuration")),
        ("validate", "option"),
        ("predict", "option"),
    ],
)
def test_ones_own_package_is_trusted(way, command, own, monkeypatch):
    arguments = {**MEASURE, "export": EXPORT}[command]
    assert_refused(*arguments, word="add --trust mine or set NDKD_TRUST=mine")
    if way == "environment":
        monkeypatch.setenv("NDKD_TRUST", "yours, mine")
    given = {"option": ["--trust", "mine"], "environment": [], "configuration": ["--config", "mine.yaml"]}[way]
    assert_allowed(*arguments, *given)


def test_the_analysis_trusts_a_package_by_name(own):
    module, data = load_run(TEACHER, trust=["mine"])
    assert (type(data).__module__, module.hparams["num_classes"]) == ("mine", 10)


def test_another_package_is_not_meant(own):
    assert_refused(*MEASURE["test"], "--trust=min", "--trust", "miner,mine.models")
    assert_refused(*MEASURE["test"], "--trust", "../mine", word="trust: wanted the name of a package")


def test_a_configuration_given_trusts_its_very_names_only(place):
    spoil_checkpoint(name="mine:load")
    Path("mine.yaml").write_text("model: {init_args: {student: {name: 'mine:build'}}, class_path: torch.hub.load}")
    assert_refused(*EXPORT, "--config", "mine.yaml")
    spoil_checkpoint(name="torch.nn.functional:relu")
    assert_refused(*EXPORT, "--config", "mine.yaml")
    Path("mine.yaml").write_bytes(b"\xff\xfe: [")
    assert_refused(*EXPORT, "--config", "mine.yaml", word="config mine.yaml is not a YAML file")


@pytest.mark.parametrize(
    "name", ["digits/reviewkd++", "imagenet/regnety_deit/deit++", "cifar100/r56_r20/kd++", "coco/r50_mv2/kd++"]
)
def test_what_a_shipped_configuration_leaves_in_a_run_folder_is_trusted(name, workplace):
    """With the entries that the parser adds; loggers are left out."""
    status, out, err = ndkd("fit", "--config", f"configs/{name}.yaml", "--print_config")
    assert status == 0, err
    config = yaml.safe_load(out)
    Trust().check_config({entry: value for entry, value in config.items() if entry != "ckpt_path"}, name)


@pytest.mark.parametrize(
    ("name", "builds"),
    {
        "torch.nn.CrossEntropyLoss": True,
        "torch.optim.SGD": True,
        "torch.optim.lr_scheduler.MultiStepLR": True,
        "ndkd.losses.NDLoss": True,
        "ndkd.data.DigitsDataModule": True,
        "ndkd.distillation.module.DistillationModule": True,
        "lightning.pytorch.callbacks.EarlyStopping": True,
        "lightning.pytorch.callbacks.EMAWeightAveraging": True,
        "lightning.pytorch.callbacks.WeightAveraging": False,
        "ndkd.callbacks.Freezing": True,
        "ndkd.callbacks.TermGradients": True,
        "ndkd.callbacks.RunRecorder": False,
        "lightning.pytorch.strategies.DDPStrategy": True,
        "torchvision.models:resnet18": True,
        "timm.models:resnet10t": True,
        "timm.models.resnet:ResNet": True,
        "torch.hub.load": False,
        "torch.hub:load": False,
        "torch.nn.functional.relu": False,
        "torch.nn": False,
        "torch.optim.lr_scheduler": False,
        "torchvision.models.resnet18": False,
        "torchvision.models:get_model": False,
        "torchvision.datasets.CIFAR10": False,
        "timm.models:load_pretrained": False,
        "lightning.pytorch.demos.boring_classes.BoringModel": False,
        "lightning.pytorch.callbacks.OnExceptionCheckpoint": False,
        "lightning.pytorch.loggers.CSVLogger": False,
        "ndkd.runs.Run": False,
        "ndkd.commands.compare_jobs.Fit": False,
        "ndkd.distillation.accuracies.MetricCollection": False,
        "torchvision.transforms.v2.ColorJitter": True,
        "torchvision.transforms.v2.Lambda": False,
        "torchvision.transforms.v2.functional.resize": False,
        "ndkd.__main__.main": False,
        "ndkdx.Thing": False,
        "torch.nnx.Thing": False,
        "torch.nn.modules.module.torch.hub.load": False,
    }.items(),
)
def test_what_builds(name, builds):
    assert is_builder(name) == builds
