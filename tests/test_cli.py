"""The command line as a person uses it: help, a run from start to end, resuming after a kill, mistakes."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ndkd.cli import COMMANDS
from ndkd.configuration.entries import entry
from ndkd.runs import Run
from tests.command import REPOSITORY, SHORT, ndkd

KDPP = ["fit", "--config", "configs/digits/kd++.yaml"]
NO_WARMUP = "--model.init_args.lr_scheduler.init_args.warmup=0"
RESUMED = [*KDPP, *SHORT, "--trainer.max_epochs=5", "--data.init_args.val_size=20"]


@pytest.fixture(scope="module")
def finished(workplace):
    """A short KD++ run: its folder and what it printed."""
    status, out, err = ndkd(*KDPP, *SHORT, "--trainer.limit_test_batches=1.0")
    assert status == 0, err
    return Run("runs/digits/kd++"), out


# ---- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["compare", "-h"], ["--version"]])
def test_help_answers_at_once_in_a_fresh_process(arguments):
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "ndkd", *arguments], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 3
    assert "ndkd" in done.stdout


def test_help_names_every_command_and_only_options_that_exist(workplace):
    _, listed, _ = ndkd("--help")
    assert all(f"\n  {command} " in listed for command in COMMANDS)
    own = {"compare", "table", "report", "export", "cache", "configs", "diagnose"}
    assert COMMANDS.keys() == {"fit", "validate", "test", "predict", *own}
    _, page, _ = ndkd("fit", "--help")
    _, everything, _ = ndkd("fit", "--help-all")
    _, module, _ = ndkd("fit", "--model.help", "DistillationModule")
    own_options = {"images", "samples", "share", "out"}  # of predict and diagnose
    for option in set(re.findall(r"--([\w.]+)", page)) - {"help", "model.help", "OPTION", "trust", *own_options}:
        if option.startswith("model.init_args"):
            assert f"\n  {option.split('.')[2]} " in module, option
        elif not option.startswith("data.init_args"):
            assert f"--{option}" in everything, option


# ---- a run, from start to end ----------------------------------------------------------------------------------------


def test_fit_shows_progress_and_ends_with_accuracies_and_folder(finished):
    run, out = finished
    assert re.search(r"^epoch 1 \(2/2\): train loss ", out, re.MULTILINE)
    *_, accuracy, folder = out.strip().splitlines()
    assert re.fullmatch(
        r"test accuracy: \d+\.\d\d% \(last epoch, 1\), \d+\.\d\d% \(best on validation, epoch [01]\)", accuracy
    )
    assert folder == "run folder: runs/digits/kd++"


def test_run_folder_holds_everything(finished):
    run, _ = finished
    files = {str(file.relative_to(run.path)) for file in run.path.rglob("*") if file.is_file()}
    epochs = {f"{kind}/000{epoch}.npz" for kind in ("predictions", "features") for epoch in (0, 1)}
    assert (
        files
        >= {"config.yaml", "status.json", "metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt"} | epochs
    )
    assert not [file for file in files if Path(file).name.startswith(".")]
    status = run.status()
    assert status["state"] == "finished"
    assert {"torch", "lightning", "ndkd", "python"} <= set(status["versions"])
    assert set(status["results"]) == {"last", "best"}


def test_stored_config_repeats_the_run(finished, workplace):
    run, _ = finished
    assert ndkd("fit", "--config", run.config, "--run_dir", "again")[0] == 0
    assert Run("again").metrics()[-1]["train/loss"] == run.metrics()[-1]["train/loss"]


def test_test_needs_no_teacher_file_and_gives_the_accuracy_that_training_printed(finished, workplace):
    run, _ = finished
    teacher = Run("runs/digits/teacher").checkpoint("last")
    teacher.rename("elsewhere.ckpt")
    try:
        for name in ("last", "best"):
            status, out, err = ndkd("test", "--ckpt_path", run.checkpoint(name))
            assert status == 0, err
            shown = float(re.search(r"test/acc1\s+(\S+)", out)[1])
            assert shown == pytest.approx(run.status()["results"][name]["test/acc1"], abs=1e-7)
        assert ndkd("test", "--config", "configs/digits/kd++.yaml", "--ckpt_path", "last")[0] == 0
    finally:
        Path("elsewhere.ckpt").rename(teacher)


def test_test_needs_no_file_that_the_student_started_from(workplace):
    teacher = Run("runs/digits/teacher").checkpoint("last")
    start = Path("start.ckpt")
    start.write_bytes(teacher.read_bytes())
    options = ["--model.init_args.student.checkpoint", start, "--run_dir=continued", "--trainer.max_epochs=1"]
    assert ndkd("fit", "--config", "configs/digits/teacher.yaml", *SHORT, *options)[0] == 0
    start.unlink()
    last = Run("continued").checkpoint("last")
    status, out, err = ndkd("test", "--ckpt_path", last, "--trainer.limit_test_batches=2")
    assert status == 0, err
    expected = Run("continued").status()["results"]["last"]["test/acc1"]
    assert float(re.search(r"test/acc1\s+(\S+)", out)[1]) == pytest.approx(expected, abs=1e-7)


def test_validate_gives_the_last_epochs_accuracy(finished, workplace):
    run, _ = finished
    status, out, _ = ndkd("validate", "--ckpt_path", run.checkpoint("last"))
    assert status == 0
    assert float(re.search(r"val/acc1\s+(\S+)", out)[1]) == pytest.approx(
        float(run.metrics()[-1]["val/acc1"]), abs=1e-6
    )


def test_predict_writes_a_row_per_image(finished, workplace):
    run, _ = finished
    status, out, _ = ndkd("predict", "--ckpt_path", run.checkpoint("last"))
    assert status == 0
    assert "predictions: runs/digits/kd++/predictions.csv (1000 images)" in out
    with (run.path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = sum(row["prediction"] == row["target"] for row in rows) / len(rows)
    assert right == pytest.approx(run.status()["results"]["last"]["test/acc1"], abs=1e-6)


def test_seed_has_a_folder_of_its_own(workplace):
    assert ndkd(*KDPP, *SHORT, "--trainer.max_epochs=1", "--seed_everything=3")[0] == 0
    assert Run("runs/digits/kd++-seed3").is_used


def test_weights_given_by_the_config_are_tested_without_a_run(workplace):
    teacher = str(Run("runs/digits/teacher").checkpoint("last").resolve())
    options = [
        "--model.init_args.student.checkpoint",
        teacher,
        "--run_dir",
        "nothing",
        "--trainer.limit_test_batches=2",
    ]
    status, out, err = ndkd("test", "--config", "configs/digits/teacher.yaml", *options)
    assert status == 0, err
    expected = Run("runs/digits/teacher").status()["results"]["last"]["test/acc1"]
    assert float(re.search(r"test/acc1\s+(\S+)", out)[1]) == pytest.approx(expected, abs=1e-7)


# ---- a kill, Ctrl-C, and going on ------------------------------------------------------------------------------------


def started(folder, number):
    """A process that sends itself a signal in the third epoch."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "ndkd", *RESUMED, "--run_dir", folder]
    command += ["--trainer.callbacks=tests.command.BrokenOff", f"--trainer.callbacks.number={int(number)}"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_and_interrupted_runs_continue_to_the_same_weights(workplace):
    killed, stopped = started("killed", signal.SIGKILL), started("stopped", signal.SIGINT)
    status, _, err = ndkd(*RESUMED, "--run_dir", "unbroken")
    assert status == 0, err
    assert killed.wait() == -signal.SIGKILL
    _, message = stopped.communicate()
    assert stopped.returncode == 130
    assert message.strip().endswith("ndkd: stopped; --ckpt_path last continues from the last finished epoch")
    assert Run("stopped").status()["state"] == "interrupted"

    unbroken = torch.load("unbroken/checkpoints/last.ckpt", weights_only=True)
    for folder in ("killed", "stopped"):
        assert len(Run(folder).metrics()) < 5, "the run was over before it was broken off"
        status, _, err = ndkd(*RESUMED, "--run_dir", folder, "--ckpt_path", "last")
        assert status == 0, err
        resumed = torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)
        assert resumed["epoch"] == unbroken["epoch"] == 4
        for key, value in unbroken["state_dict"].items():
            assert torch.equal(resumed["state_dict"][key], value), key
        rows, expected = Run(folder).metrics(), Run("unbroken").metrics()
        without = [[{k: v for k, v in row.items() if k[:5] != "time/"} for row in kept] for kept in (rows, expected)]
        assert without[0] == without[1]
        seconds = [float(row["time/seconds"]) for row in rows]
        assert seconds == pytest.approx(np.cumsum([float(row["time/epoch"]) for row in rows]), abs=1e-3)
        assert Run(folder).status()["state"] == "finished"
        for epoch in range(5):
            pair = (Run(name).read_epoch("predictions", epoch) for name in (folder, "unbroken"))
            torch.testing.assert_close(*({k: torch.from_numpy(v) for k, v in arrays.items()} for arrays in pair))


def test_a_mistake_in_a_resume_does_not_spoil_a_finished_run(finished, workplace):
    run, _ = finished
    before = run.status()
    status, _, err = ndkd(*KDPP, *SHORT, "--ckpt_path=last", "--model.init_args.teacher.checkpoint=no.pth")
    assert status == 2
    assert "checkpoint no.pth does not exist" in err
    assert run.status() == before


def test_a_resume_says_what_changed(finished, workplace):
    optimizer = "model.init_args.optimizer.init_args.lr"
    changed = ["--seed_everything=5", f"--{optimizer}=0.01", "--run_dir=runs/digits/kd++", "--trainer.max_epochs=2"]
    status, out, _ = ndkd(*KDPP, *SHORT, "--ckpt_path=last", *changed)
    assert status == 0
    said = [line for line in out.splitlines() if line.startswith("ndkd: ")]
    assert said == [
        f"ndkd: {optimizer} is 0.01 in the configuration, 0.05 in the run so far; a resumed optimizer keeps its own",
        "ndkd: seed_everything is 5 in the configuration, 0 in the run so far",
        "ndkd: trainer.limit_test_batches is 2.0 in the configuration, 1.0 in the run so far",
    ]


def test_fit_goes_on_from_the_last_epoch_only(finished, workplace):
    status, _, err = ndkd(*KDPP, *SHORT, "--ckpt_path=best")
    assert status == 2
    assert "fit continues a run from its last checkpoint only, not from runs/digits/kd++/checkpoints/best.ckpt" in err


# ---- Weights & Biases ------------------------------------------------------------------------------------------------


def test_wandb_goes_on_offline_without_credentials_and_keeps_its_id(workplace, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    command = [
        *KDPP,
        "--config",
        "configs/loggers/wandb.yaml",
        *SHORT,
        "--run_dir",
        "watched",
    ]
    ids = []
    for more in (["--trainer.max_epochs=1"], ["--trainer.max_epochs=2", "--ckpt_path=last"]):
        time.sleep(len(ids))  # W&B names its folders by the second
        status, out, err = ndkd(*command, *more)
        assert status == 0, err
        assert "no W&B credentials were found" in out
        assert "wandb sync watched/wandb/offline-run-*" in out
        import wandb

        wandb.finish()
        ids.append({file.stem for file in Path("watched/wandb").glob("offline-run-*/run-*.wandb")})
    assert len(list(Path("watched/wandb").glob("offline-run-*"))) == 2
    assert ids[0] == ids[1]
    assert len(ids[0]) == 1
    assert [row["epoch"] for row in Run("watched").metrics()] == ["0", "1"]
    recorded = b"".join(file.read_bytes() for file in Path("watched/wandb").glob("offline-run-*/*.wandb"))
    assert b"val/acc1" in recorded
    assert b"train/nd" in recorded


# ---- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = {
    "unknown command": (["fot"], "unknown command 'fot'; did you mean fit?"),
    "no config": (["fit"], "no configuration: give --config FILE; see ndkd fit --help"),
    "misspelt config option": (
        ["fit", "--conifg", "digits/kd++.yaml"],
        "there is no option --conifg; did you mean --con",
    ),
    "misspelt checkpoint option": (["test", "--ckptpath=x"], r"no option --ckptpath; did you mean --ckpt_path\?"),
    "a config without its option": (["fit", "digits/kd++.yaml"], "give it as --config digits/kd"),
    "a config option without a value": (["fit", "-c"], "-c has no value; give it the name of a file"),
    "an option as config": (["fit", "--config", "--run_dir", "x"], "wanted the name of a file, got the option --run_"),
    "an option without a value": (
        [*KDPP, "--model.init_args.student.name"],
        "--model.init_args.student.name has no value; give it one",
    ),
    "an option without a value before another": (
        [*KDPP, "--data.init_args.batch_size", "--trainer.max_epochs", "1"],
        "--data.init_args.batch_size has no value; give it one",
    ),
    "a term's own option": (
        [*KDPP, "--model.init_args.losses.kd.warmup_epochs=-1"],
        "loss kd: warmup_epochs: wanted 0",
    ),
    "a loss's option": (
        [*KDPP, "--model.init_args.losses.kd.loss.init_args.temperature=-1"],
        "loss kd: temperature: wanted a number above 0, got -1.0",
    ),
    "a newer loss's option": (
        [*KDPP, "--config", "digits/overlays/newer/nkd++.yaml", "--model.init_args.losses.nkd.loss.init_args.gamma=-1"],
        "loss nkd: gamma: wanted a number from 0 on, got -1.0",
    ),
    "a grid of no cells": (
        [*KDPP, "--config", "digits/overlays/newer/wkdf++.yaml", "--model.init_args.losses.wkdf.loss.init_args.grid=0"],
        "loss wkdf: grid: wanted a number above 0, got 0",
    ),
    "a switch of a loss that is neither on nor off": (
        [*KDPP, "--model.init_args.losses.kd.loss.init_args.standardize=often"],
        "losses.kd.loss.init_args.standardize: wanted bool, got often",
    ),
    "an empty block alone": (["fit", "--config", "block.yaml"], r"there is no entry modle; did you mean model\?"),
    "an empty block": ([*KDPP, "--config", "means.yaml"], r"there is no entry class_mean; did you mean class_means\?"),
    "an empty argument": (
        [*KDPP, "--config", "studnet.yaml"],
        r"config studnet.yaml: there is no entry model.init_args.studnet; did you mean student\?",
    ),
    "no block at all": (["fit", "--config", "trainer.yaml"], "data and model: missing; give a configuration that says"),
    "missing config": (
        ["fit", "--config", "configs/digits/kdd.yaml"],
        r"config configs/digits/kdd.yaml does not exist; did you mean configs/digits/kd.yaml, configs/digits/kd\+\+",
    ),
    "a folder as config": (["fit", "--config", "configs"], "config configs is a folder; name a file in it"),
    "an empty config": (["fit", "--config", "empty.yaml"], "config empty.yaml is empty; see ndkd configs digits/kd"),
    "a config that is no text": (
        ["fit", "--config", "binary.yaml"],
        "config binary.yaml is not a text file in UTF-8; give a YAML file that is",
    ),
    "broken config": (["fit", "--config", "broken.yaml"], "config broken.yaml is not valid YAML: while parsing"),
    "unknown key": (
        ["fit", "--config", "unknown.yaml"],
        "there is no entry modle.a; did you mean model?",
    ),
    "missing teacher": (
        [*KDPP, "--model.init_args.teacher.checkpoint=no.pth"],
        "checkpoint no.pth does not exist; train it first or correct the path",
    ),
    "teacher without weights": (
        [*KDPP, "--config", "weightless.yaml"],
        "teacher cifar/resnet20 has no weights: set teacher.checkpoint to a file, or pretrained: true",
    ),
    "another architecture": (
        [*KDPP, "--model.init_args.teacher.name=cifar/wrn_16_1"],
        "does not fit the model; missing: .* unexpected: .* Is it another architecture or data set?",
    ),
    "unknown model": (
        [*KDPP, "--model.init_args.student.name=cifar/resnet9"],
        "unknown model 'cifar/resnet9'; did you mean cifar/resnet8",
    ),
    "unknown loss": (
        [*KDPP, "--model.init_args.losses.nd.loss=NDLos"],
        "model.losses.nd.loss: there is no class NDLos; did you mean NDLoss",
    ),
    "unknown optimizer": (
        [*KDPP, "--model.init_args.optimizer=torch.optim.SDG"],
        "model.optimizer: there is no class torch.optim.SDG; did you mean SGD",
    ),
    "unknown scheduler": (
        [*KDPP, "--model.init_args.lr_scheduler=StepLP"],
        "model.lr_scheduler: there is no class StepLP; did you mean StepLR",
    ),
    "two schedulers of one name": (
        [*KDPP, "--model.init_args.lr_scheduler=ReduceLROnPlateau"],
        "model.lr_scheduler: several classes are called ReduceLROnPlateau: .*; write lightning.pytorch.cli.ReduceLR",
    ),
    "weights that are no numbers": (
        [*KDPP, "--model.init_args.losses.ce.class_weights=[1, a]"],
        r"class_weights: wanted balanced or float, got \[1, 'a'\]",
    ),
    "a callback's wrong option": (
        [*KDPP, "--trainer.callbacks={class_path: ndkd.callbacks.Freezing, init_args: {freeze: conv1}}"],
        "trainer.callbacks.freeze: wanted a list, got conv1",
    ),
    "an option that a callback refuses": (
        [*KDPP, "--trainer.callbacks=[{class_path: EMAWeightAveraging, init_args: {decay: 2}}]"],
        "Invalid decay value 2.0 provided",
    ),
    "an entry one block too high": (
        [*KDPP, "--config", "optimizer.yaml"],
        r"there is no entry optimizer.class_path; did you mean model.init_args.optimizer\?",
    ),
    "data without its folder": (
        ["fit", "--config", "digits/student.yaml", "--data", "InMemoryImageFolderDataModule"],
        "data: root is missing; set data.init_args.root",
    ),
    "beginning of an option": (
        [*KDPP, "--trainer.max_epoch=3"],
        "there is no option --trainer.max_epoch; did you mean --tr",
    ),
    "misspelt option of a tool": (["report", "--ot", "x", "y"], "there is no option --ot; did you mean --out?"),
    "wrong choice": (
        [*KDPP, "--model.init_args.lr_interval=hour"],
        "model.lr_interval: wanted one of epoch, step, got hour",
    ),
    "missing argument": (
        [*KDPP, "--trainer.logger=CSVLogger"],
        "trainer.logger: save_dir is missing; set trainer.logger.save_dir",
    ),
    "seed out of range": ([*KDPP, "--seed_everything=-1"], "seed_everything: -1 is not in bounds"),
    "unknown accelerator": ([*KDPP, "--trainer.accelerator=abacus"], "trainer: .* invalid accelerator name"),
    "nothing to train on": ([*KDPP, "--trainer.limit_train_batches=0"], "no epoch was trained: there was no batch of"),
    "channels that differ": (
        [*KDPP, "--model.init_args.student.mean=[0.5,0.5]", "--model.init_args.student.std=[0.5,0.5]"],
        "mean and std are for 2 channels, the images have 3",
    ),
    "no checkpoint of a run": (
        ["test", "--config", "configs/digits/kd++.yaml", "--ckpt_path", "plain.pth"],
        "checkpoint plain.pth was not written by ndkd fit; give plain weights as model.init_args.student.checkpoint",
    ),
    "no checkpoint at all": (
        ["test", "--config", "configs/digits/kd++.yaml", "--ckpt_path", "unknown.yaml"],
        "checkpoint unknown.yaml is damaged, or not a checkpoint|checkpoint unknown.yaml is not a plain weights file",
    ),
    "no epoch": ([*KDPP, "--trainer.max_epochs=0"], "trainer.max_epochs: wanted at least 1, got 0"),
    "what the trainer refuses": ([*KDPP, "--trainer.max_epochs=-5"], "trainer.max_epochs: wanted at least 1, got -5"),
    "unknown entry of a term": (
        [*KDPP, "--model.init_args.losses.nd.wieght=3"],
        "model.losses.nd.wieght: there is no entry wieght",
    ),
    "unknown input": (
        [*KDPP, "--model.init_args.losses.nd.inputs=[student.foo,target]"],
        "loss nd: nothing provides 'student.foo'; on offer: student.logits, .*, class_means|"
        "loss nd: nothing provides 'student.foo'; on offer: student.logits",
    ),
    "inputs that do not fit": (
        [*KDPP, "--model.init_args.losses.nd.inputs=[student.logits,teacher.embedding,class_means,target]"],
        r"loss nd: wanted tensors of one shape \(N, D\), got student_embedding \(\d+, 10\) and teacher_embedding",
    ),
    "wrong type": ([*KDPP, "--trainer.max_epochs=abc"], "trainer.max_epochs: wanted int, got abc"),
    "too many images": ([*KDPP, "--data.init_args.train_size=700"], "train_size: wanted 10 to 587 images"),
    "not a number": (
        [*KDPP, "--model.init_args.optimizer.init_args.lr=1e30", "--data.init_args.train_size=40", NO_WARMUP],
        r"loss \w+ became (nan|inf) in epoch \d, .*; lower the learning rate or its weight",
    ),
    "not a number in the last step": (
        [*KDPP, *SHORT, "--model.init_args.optimizer.init_args.lr=1e30", "--data.init_args.batch_size=40"],
        "the student's outputs are not finite after epoch 0; lower the learning rate",
    ),
    "an optimizer's argument": (
        [*KDPP, "--model.init_args.optimizer.init_args.lr=-1"],
        "optimizer or lr_scheduler: Invalid learning rate: -1",
    ),
    "the current folder": ([*KDPP, "--run_dir="], "run_dir: wanted a folder of its own for the run, got the current"),
    "nothing to resume": (
        [*KDPP, "--ckpt_path=last"],
        "has no finished epoch to continue from: start afresh without --ckpt_path, or name the run's folder",
    ),
    "nothing to test": (
        ["test", "--config", "configs/digits/kd++.yaml"],
        "checkpoint .*last.ckpt does not exist; run ndkd fit first, or name another with --ckpt_path",
    ),
    "a checkpoint that is not there": (
        ["test", "--ckpt_path", "no.ckpt"],
        "checkpoint no.ckpt does not exist; correct --ckpt_path",
    ),
    "a slip within an option": (
        [*KDPP, "--model.init_args.optimiser.class_path=torch.optim.Adam"],
        r"model: there is no entry optimiser; did you mean optimizer\?",
    ),
    "a slip within an option of the data": (
        [*KDPP, "--data.init_args.transfroms.class_path=torchvision.transforms.v2.Identity"],
        r"data: there is no entry transfroms; did you mean transforms\?",
    ),
    "a slip within an option of a logger": (
        [*KDPP, "--trainer.logger.init_argz.x=1"],
        "trainer.logger.init_argz.x: wanted a Logger, as class_path and init_args, got init_argz.x: 1",
    ),
    "null in kwargs": (
        [*KDPP, "--model.init_args.student.kwargs.widths=null"],
        r"--model.init_args.student.kwargs.widths cannot be null by itself: give all of model.init_args.student.kw",
    ),
    "two kinds of teachers": (
        [*KDPP, "--model.init_args.teachers={a: {name: cifar/resnet8}}"],
        r"there are both teacher and teachers; leave one of them out \(teacher: null\)",
    ),
    "teachers without names": (
        [*KDPP, "--model.init_args.teacher=null", "--model.init_args.teachers=cifar/resnet8"],
        "model.teachers: wanted entries by name, got cifar/resnet8",
    ),
    "a diagnosis of several teachers": (
        [
            "diagnose",
            *KDPP[1:],
            "--model.init_args.teacher=null",
            "--model.init_args.teachers={a: {name: cifar/resnet8}, b: {name: cifar/resnet8}}",
        ],
        r"diagnose looks at one teacher, and there are several \(a, b\): set model.init_args.teacher to one of them",
    ),
    "a folder in a file": (
        [*KDPP, "--run_dir=broken.yaml/run"],
        "folder broken.yaml/run cannot be made: .*broken.yaml is not a folder to write in; choose another with",
    ),
}


@pytest.mark.parametrize("option", ["student.compile", "optimizer.init_args.foreach", "losses.nd.pseudo_labels"])
@pytest.mark.parametrize("joined", [False, True])
def test_null_on_the_command_line(option, joined, workplace):
    name = f"--model.init_args.{option}"
    given = {"student.compile": "default", "optimizer.init_args.foreach": "true", "losses.nd.pseudo_labels": "0.9"}
    null = [f"{name}=null"] if joined else [name, "null"]
    for last, value in ((null, None), ([], yaml.safe_load(given[option]))):
        status, out, err = ndkd(*KDPP, name, given[option], *last, "--print_config")
        assert status == 0, err
        assert entry(yaml.safe_load(out), f"model.init_args.{option}") == value


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_line_that_says_what_to_do(mistake, workplace, request):
    Path("broken.yaml").write_text("model: [unclosed")
    Path("unknown.yaml").write_text("modle: {a: 1}")
    Path("block.yaml").write_text("modle: {}")
    Path("means.yaml").write_text("class_mean:")
    Path("optimizer.yaml").write_text("optimizer: {class_path: torch.optim.SGD}")
    Path("studnet.yaml").write_text("model: {init_args: {studnet: {}}}")
    Path("trainer.yaml").write_text("trainer: {max_epochs: 1}")
    Path("empty.yaml").touch()
    torch.save({"weight": torch.zeros(1)}, "plain.pth")
    Path("binary.yaml").write_bytes(b"\x80\xff")
    Path("weightless.yaml").write_text("model: {init_args: {teacher: {checkpoint: null}}}")
    arguments, message = MISTAKES[mistake]
    folder = f"mistakes/{request.node.callspec.id.replace(' ', '-')}"
    if "--config" in arguments and not any(argument.startswith("--run_dir") for argument in arguments):
        arguments = [*arguments, "--run_dir", folder]
    status, _, err = ndkd(*arguments)
    assert status == 2
    *_, line = err.strip().splitlines()
    assert re.match(f"ndkd: .*({message})", line), line
    assert "Traceback" not in err
    if mistake.startswith("not a number"):
        assert Run(folder).status()["state"] == "failed"
        epochs = len(Run(folder).metrics())
        assert len(list(Path(folder, "predictions").glob("*.npz"))) == epochs
        assert len(list(Path(folder, "features").glob("*.npz"))) == epochs
        assert Run(folder).is_used == bool(epochs)
    else:
        assert not Path(folder).exists()
    assert not list(Path(".").rglob(".*.[0-9]*")), "a temporary file was left"


def test_compiling_without_a_compiler(workplace):
    from torch._inductor import config

    with config.patch({"cpp.cxx": ("nowhere",), "force_disable_caches": True}):
        status, _, err = ndkd(*KDPP, *SHORT, "--model.init_args.student.compile=default", "--run_dir=uncompiled")
    assert status == 2
    *_, line = err.strip().splitlines()
    assert re.match("ndkd: a model cannot be compiled: .*No working C.. compiler.*; leave out its compile$", line)
    assert not Path("uncompiled").exists()


def test_used_run_folder_is_refused_and_unharmed(finished, workplace):
    run, _ = finished
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    status, _, err = ndkd(*KDPP, *SHORT)
    assert status == 2
    assert err.strip() == (
        "ndkd: run folder runs/digits/kd++ holds a run: continue it with --ckpt_path last, or start afresh elsewhere "
        "with --run_dir DIR"
    )
    assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before


def test_a_finished_run_has_nothing_left_to_train(finished, workplace):
    run, printed = finished
    rows = run.metrics()
    status, out, err = ndkd(*KDPP, *SHORT, "--trainer.limit_test_batches=1.0", "--ckpt_path=last")
    assert status == 0, err
    assert out.strip().splitlines()[-2:] == printed.strip().splitlines()[-2:]
    assert run.metrics() == rows
    assert run.status()["state"] == "finished"


def test_without_test_images_there_is_no_accuracy(workplace):
    status, out, err = ndkd(*KDPP, *SHORT, "--trainer.limit_test_batches=0", "--run_dir=untested")
    assert status == 0, err
    assert "test accuracy" not in out
    assert out.strip().endswith("run folder: untested")


def test_without_validation_there_is_no_best(workplace):
    status, out, err = ndkd(*KDPP, *SHORT, "--trainer.limit_val_batches=0", "--run_dir=unvalidated")
    assert status == 0, err
    assert re.fullmatch(r"test accuracy: \d+\.\d\d% \(last epoch, 1\)", out.strip().splitlines()[-2])
    assert list(Run("unvalidated").status()["results"]) == ["last"]


def test_an_epoch_without_validation_has_no_values_of_the_one_before(workplace):
    options = ["--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2"]
    assert ndkd(*KDPP, *SHORT, *options, "--run_dir=every-other")[0] == 0
    run = Run("every-other")
    for name in ("val/acc1", "features/angle_mean"):
        assert [bool(row[name]) for row in run.metrics()] == [False, True, False]
    for kind in ("predictions", "features"):
        assert [file.name for file in (run.path / kind).iterdir()] == ["0001.npz"]


def test_a_failed_start_leaves_the_folder_free(workplace):
    run = Run("free")
    run.start("config: 1", 0)
    run.update_status(state="failed")
    assert ndkd(*KDPP, *SHORT, "--run_dir=free", "--trainer.max_epochs=1")[0] == 0
    assert json.loads((run.path / "status.json").read_text())["state"] == "finished"


def test_ones_own_package_in_the_working_folder_is_found(tmp_path):
    """By the command that pip installs, whose own folder Python would look in."""
    (tmp_path / "my_models.py").write_text(
        "from ndkd.models import build_model\n\n\ndef build(num_classes):\n    1 / 0\n"
    )
    (tmp_path / "torch.py").write_text("raise SystemExit('not this one')\n")
    options = ["--config", "digits/student.yaml", "--model.init_args.student.name", "my_models:build"]
    code = f"import sys; sys.path.remove(''); from ndkd.cli import main; sys.exit(main(['fit', *{options}]))"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("ndkd: model my_models:build: ZeroDivisionError: division by zero\n")
