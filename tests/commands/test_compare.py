"""Many runs and their table. Most tests let a script stand in for ``ndkd fit``; one trains."""

import copy
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from ndkd.callbacks.class_means_file import read_class_means
from ndkd.commands import compare_jobs as jobs
from ndkd.commands import compare_plan
from ndkd.commands.compare_differences import differences_by_seed, half_interval
from ndkd.commands.compare_tables import as_table, write_tables
from ndkd.runs import Run
from tests.command import REPOSITORY, SHORT, gone, in_terminal, ndkd

STUDENT, KD, KDPP = (f"configs/digits/{name}.yaml" for name in ("student", "kd", "kd++"))
TEACHER = ["--teacher", "configs/digits/teacher.yaml"]

# takes its time where a file says so, fails where a file says so, and writes down how it was called
FAKE_FIT = """
import json, os, sys, time
from pathlib import Path
from ndkd.runs import Run
from ndkd.stopping import end_with_parent
end_with_parent()
options = sys.argv[1:]
value = lambda name: options[options.index(name) + 1]
run = Run(value("--run_dir") if "--run_dir" in options else "runs/digits/teacher")
with open("calls.txt", "a") as calls:
    print(json.dumps({"run": run.path.name, "options": options, "threads": os.environ.get("OMP_NUM_THREADS"),
                      "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "start": time.time(),
                      "process": os.getpid()}), file=calls)
resumed = "--ckpt_path" in options
if Path("fails").exists() and run.path.name in Path("fails").read_text().split():
    sys.exit("some progress\\nndkd: the student's outputs are not finite")
seed = int(value("--seed_everything")) if "--seed_everything" in options else 0
run.start(f"seed_everything: {seed}", 0)
run.update_status(state="running")
run.add_metrics({"epoch": 0, "step": 5, "val/acc1": "0.5"})
run.checkpoints.mkdir(exist_ok=True)
run.checkpoint("last").touch()
time.sleep(float(Path("slow").read_text()) if Path("slow").exists() else 0)
accuracy = 0.8 + 0.01 * seed + (0.05 if "kd++" in run.path.name else 0) - (0.02 * resumed)
results = {name: {"epoch": epoch, "test/acc1": accuracy} for name, epoch in (("last", 59), ("best", 40))}
run.update_status(state="finished", seconds=90.0, headline="acc1", parameters=77754, results=results)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the shipped configs, a teacher's checkpoint, and a stand-in for ``ndkd fit``."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "fake.py").write_text(FAKE_FIT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ndkd"])
    monkeypatch.setattr(jobs, "NDKD", [sys.executable, "fake.py"])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return tmp_path


@pytest.fixture
def teacher(folder):
    """The teacher's run, finished."""
    run = Run("runs/digits/teacher")
    run.checkpoints.mkdir(parents=True)
    run.checkpoint("last").touch()
    run.update_status(state="finished", results={})
    return run


@pytest.fixture(scope="module")
def resolved():
    """What the parser makes of a configuration, once for all tests: it takes a second."""
    kept, original = {}, compare_plan._resolved

    def once(name, options):
        key = tuple(options)
        if key not in kept:
            kept[key] = original(name, options)
        return kept[key]

    return once


@pytest.fixture(autouse=True)
def parsed_once(monkeypatch, resolved):
    monkeypatch.setattr(compare_plan, "_resolved", resolved)


def calls():
    return pd.read_json("calls.txt", lines=True) if Path("calls.txt").exists() else pd.DataFrame({"run": []})


def results():
    return pd.read_csv("out/results.csv")


# ---- which runs ------------------------------------------------------------------------------------------------------


def test_every_config_with_every_seed_after_the_teacher(folder):
    status, out, err = ndkd("compare", *TEACHER, "--seeds", 3, 1, "--out", "out", STUDENT, KDPP)
    assert status == 0, err
    assert list(calls()["run"]) == ["teacher", "student-seed3", "kd++-seed3", "student-seed1", "kd++-seed1"]
    assert calls()["options"][0] == ["fit", "--config", "configs/digits/teacher.yaml"]
    wanted = f"fit --config {KDPP} --seed_everything 3 --run_dir out/kd++-seed3"
    assert calls()["options"][2] == wanted.split()
    assert "kd++-seed1: test/acc1 86.00, 90 s" in out
    assert out.splitlines()[-1] == "results: out/results.md, .csv, .png"


def test_a_finished_run_is_not_repeated_and_one_cut_short_goes_on(teacher):
    assert ndkd("compare", *TEACHER, "--out", "out", STUDENT, KDPP)[0] == 0
    Run("out/kd++-seed0").update_status(state="interrupted", results=None)
    Path("calls.txt").unlink()
    assert ndkd("compare", *TEACHER, "--out", "out", STUDENT, KDPP)[0] == 0
    assert list(calls()["run"]) == ["kd++-seed0"]
    assert calls()["options"][0][-2:] == ["--ckpt_path", "last"]
    assert list(results()["last"]) == pytest.approx([80, 83])


def test_a_teacher_of_another_configuration_is_used_and_that_is_said(teacher):
    teacher.config.write_text("trainer: {max_epochs: 2}")
    status, _, err = ndkd("compare", *TEACHER, "--out", "out", "--print-commands", STUDENT)
    assert status == 0
    assert "the teacher's run runs/digits/teacher has trainer.max_epochs 2, not 20: it is used as it is\n" in err
    teacher.config.write_text("trainer: {max_epochs: 20}")
    assert ndkd("compare", *TEACHER, "--out", "out", "--print-commands", STUDENT)[2] == ""


def test_a_run_that_was_not_tested_any_more_is_not_finished(teacher):
    assert ndkd("compare", "--out", "out", STUDENT)[0] == 0
    Run("out/student-seed0").update_status(results=None)
    assert ndkd("compare", "--out", "out", STUDENT)[0] == 0
    assert list(calls()["run"]) == ["student-seed0"] * 2


def test_control_trains_without_the_term(teacher):
    assert ndkd("compare", "--control", "nd", "--out", "out", STUDENT, KDPP)[0] == 0
    assert list(calls()["run"]) == ["student-seed0", "kd++-nd0-seed0", "kd++-seed0"]
    assert "--model.init_args.losses.nd.weight 0 --seed_everything 0" in " ".join(calls()["options"][1])
    assert list(results()["control"].fillna("")) == ["", "", "kd++-nd0"]


@pytest.mark.parametrize(
    ("given", "shared"),
    [
        ([KD, KDPP], {"kd-seed0", "kd++-seed0"}),
        ([STUDENT, KDPP, "--control", "nd"], {"kd++-nd0-seed0", "kd++-seed0"}),
        ([STUDENT, KDPP, "--seeds", 0, 1], set()),  # a single run of a seed has nobody to share with
        ([KD, KDPP, "--no-teacher-cache"], set()),
        ([KD, KDPP, "--", "--teacher_cache", "mine"], set()),
    ],
)
def test_runs_of_a_seed_share_what_their_teacher_says(teacher, given, shared):
    assert ndkd("compare", "--out", "out", *given)[0] == 0
    options = {call.run: " ".join(call.options) for call in calls().itertuples()}
    assert {run for run, words in options.items() if "--teacher_cache out/teacher_cache" in words} == shared


def test_several_teachers(teacher):
    both = f"{KDPP},configs/digits/overlays/two_teachers.yaml"
    status, _, err = ndkd("compare", "--out", "out", STUDENT, KDPP, both)
    assert status == 2
    said = "ndkd: configuration two_teachers: its teacher runs/digits/resnet8x4/checkpoints/last.ckpt does not exist; "
    assert said in err
    Path("runs/digits/resnet8x4/checkpoints").mkdir(parents=True)
    Path("runs/digits/resnet8x4/checkpoints/last.ckpt").touch()
    assert ndkd("compare", "--out", "out", STUDENT, KDPP, both)[0] == 0
    options = {call.run: " ".join(call.options) for call in calls().itertuples()}
    shared = {run for run, words in options.items() if "--teacher_cache out/teacher_cache" in words}
    assert shared == {"kd++-seed0", "two_teachers-seed0"}
    assert "class_means" not in options["student-seed0"]  # of two teachers none is the one
    assert ndkd("compare", "--out", "out", STUDENT, KDPP, both)[0] == 0
    assert len(calls()) == 3


def test_a_sweep_trains_with_each_weight(teacher):
    command = ["compare", "--sweep", "nd", 0, 0.5, 1e-05, "--seeds", 0, 1, "--out", "out", STUDENT, KDPP]
    assert ndkd(*command)[0] == 0
    names = ["student", "kd++-nd0", "kd++-nd0.5", "kd++-nd1e-05"]
    assert list(calls()["run"]) == [f"{name}-seed{seed}" for seed in (0, 1) for name in names]
    assert "--model.init_args.losses.nd.weight 0.5 --seed_everything 0" in " ".join(calls()["options"][2])
    found = results()
    assert list(found["term"].fillna("")[:4]) == ["", "nd", "nd", "nd"]
    assert list(found["weight"][1:4]) == [0, 0.5, 1e-05]
    assert list(found["control"].fillna("")[:4]) == ["", "", "kd++-nd0", "kd++-nd0"]
    assert Path("out/sweep.png").is_file()
    kept = yaml.safe_load(Path("out/configs/kd++-nd1e-05.yaml").read_text())
    assert kept["model"]["init_args"]["losses"]["nd"]["weight"] == 1e-05
    assert ndkd(*command)[0] == 0
    assert len(calls()) == 8  # nothing is trained twice
    assert ndkd(*command, "--print-commands")[1] == ""


def test_a_sweep_without_zero_is_drawn_from_its_first_weight(teacher):
    _, out, _ = ndkd("compare", "--sweep", "nd", 2, 4, "--out", "out", KDPP)
    assert "minus kd++-nd2 | minus control" in out
    assert results()["control"].isna().all()


def test_sweep_and_control(teacher):
    both = ["--control", "nd", "--sweep", "nd", "0.5", "1", "--out", "out", "--print-commands"]
    names = [line.rpartition("out/")[2] for line in ndkd("compare", *both, KDPP)[1].splitlines()]
    assert names == ["kd++-nd0-seed0", "kd++-nd0.5-seed0", "kd++-nd1-seed0"]
    other = ["--control", "kd", "--sweep", "nd", "0", "1", "--out", "out", "--print-commands"]
    names = [line.rpartition("out/")[2] for line in ndkd("compare", *other, KDPP)[1].splitlines()]
    assert names == ["kd++-kd0-nd0-seed0", "kd++-nd0-seed0", "kd++-kd0-nd1-seed0", "kd++-nd1-seed0"]


def test_a_row_is_named_after_the_file_that_spells_its_losses(teacher):
    Path("short.yaml").write_text("trainer: {max_epochs: 120}\n")
    Path("mine.yaml").write_text("model: {init_args: {losses: {ce: {loss: torch.nn.CrossEntropyLoss, "
                                 "inputs: [student.logits, target]}}}}\n")  # fmt: skip
    given = {
        KD: "kd",
        f"{KD},mine.yaml": "mine",
        f"{KD},short.yaml": "kd,short",
        f"{KD},mine.yaml,short.yaml": "mine,short",
        f"{STUDENT},configs/loggers/tensorboard.yaml": "student",
    }
    _, out, _ = ndkd("compare", "--out", "out", "--print-commands", *given)
    assert [line.rpartition("out/")[2] for line in out.splitlines()] == [f"{name}-seed0" for name in given.values()]


def test_overlays_and_options_of_every_run(teacher):
    overlay = Path("short.yaml")
    overlay.write_text("trainer: {max_epochs: 3}\n")
    options = ["--data.init_args.batch_size", "16"]
    assert ndkd("compare", "--out", "out", f"{STUDENT},short.yaml", "--", *options)[0] == 0
    wanted = ["fit", "--config", STUDENT, "--config", "short.yaml", *options]
    assert calls()["options"][0][:7] == wanted
    assert calls()["run"][0] == "student,short-seed0"


def test_commands_are_printed_and_nothing_is_done(folder):
    status, out, _ = ndkd("compare", *TEACHER, "--seeds", 0, 1, "--out", "out", "--print-commands", KDPP)
    assert status == 0
    lines = [shlex.split(line) for line in out.splitlines()]
    assert [line[:2] for line in lines] == [["ndkd", "fit"]] * 3
    assert lines[2][2:] == f"--config {KDPP} --seed_everything 1 --run_dir out/kd++-seed1".split()
    assert sorted(path.name for path in folder.iterdir()) == ["configs", "fake.py"]


def test_printed_commands_are_those_left_to_do(teacher):
    assert ndkd("compare", "--out", "out", STUDENT)[0] == 0
    Run("out/student-seed0").update_status(state="interrupted")
    _, out, _ = ndkd("compare", "--out", "out", "--print-commands", STUDENT)
    assert out.rstrip().endswith("--run_dir out/student-seed0 --ckpt_path last")
    Run("out/student-seed0").update_status(state="finished")
    assert ndkd("compare", "--out", "out", "--print-commands", STUDENT)[1] == ""


def test_a_teacher_put_there_by_hand_or_cut_short(teacher):
    (teacher.path / "status.json").unlink()
    command = ["compare", *TEACHER, "--out", "out", "--print-commands", STUDENT]
    assert "teacher" not in ndkd(*command)[1]
    teacher.update_status(state="interrupted")
    assert ndkd(*command)[1].splitlines()[0].endswith("teacher.yaml --ckpt_path last")


# ---- at once ---------------------------------------------------------------------------------------------------------


def test_jobs_run_at_once_on_their_share_of_the_cores(teacher, monkeypatch):
    Path("slow").write_text("0.5")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert ndkd("compare", "--seeds", 0, 1, 2, "--jobs", 3, "--out", "out", STUDENT)[0] == 0
    assert calls()["start"].max() - calls()["start"].min() < 0.5
    assert set(calls()["threads"]) == {2}
    Path("calls.txt").unlink()
    assert ndkd("compare", "--seeds", 3, 4, "--out", "out", STUDENT)[0] == 0
    assert calls()["start"].max() - calls()["start"].min() > 0.5
    assert calls()["threads"].isna().all()


@pytest.mark.parametrize(("visible", "wanted"), [(None, ["0", "1", "0"]), ("4,7", ["4", "7", "4"])])
def test_each_job_has_a_gpu(monkeypatch, visible, wanted):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in jobs._environments(3)] == wanted
    assert jobs._environments(1) == [{}]


def test_the_bar_of_a_terminal_shows_all_runs(teacher):
    Path("slow").write_text("0.6")
    status, sent = in_terminal("compare", "--seeds", 0, 1, "--out", "out", STUDENT)
    assert status == 0
    assert re.search(r"1\.0 of 2 runs \[.*student-seed1 1%\]", sent)  # an epoch of 120
    assert "2.0 of 2 runs" in sent
    assert "begins" not in sent


@pytest.mark.parametrize(
    ("trainer", "wanted"),
    [({"max_epochs": 4, "max_steps": -1}, 0.5), ({"max_epochs": None, "max_steps": 40}, 0.25), ({"max_epochs": -1}, 0)],
)
def test_progress_is_the_share_of_epochs_or_steps(tmp_path, trainer, wanted):
    run = Run(tmp_path)
    fit = jobs.Fit(run, [], {"trainer": {"max_steps": -1} | trainer})
    assert fit.progress == 0
    run.add_metrics({"epoch": 1, "step": 10})
    assert fit.progress == wanted


def test_a_file_is_told_when_a_run_begins_and_ends(teacher):
    status, out, err = ndkd("compare", "--seeds", 0, 1, "--out", "out", STUDENT)
    assert (status, err) == (0, "")
    assert out.splitlines()[:4] == [
        "student-seed0: run 1 of 2 begins",
        "student-seed0: test/acc1 80.00, 90 s",
        "student-seed1: run 2 of 2 begins",
        "student-seed1: test/acc1 81.00, 90 s",
    ]


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_failed_run_is_a_row(teacher):
    Path("fails").write_text("kd++-seed1")
    status, out, err = ndkd("compare", "--seeds", 0, 1, "--out", "out", STUDENT, KDPP)
    assert status == 1
    failed = results().query("config == 'kd++' and seed == 1").iloc[0]
    assert (failed["state"], failed["error"]) == ("failed", "the student's outputs are not finite")
    assert "| kd++, seed 1 | failed: the student's outputs are not finite |" in Path("out/results.md").read_text()
    assert "| kd++ | 0 | 85.00 | 85.00 | +5.00 |" in out
    assert err.splitlines()[-1] == "ndkd: 1 of 4 runs failed: kd++-seed1; see out/NAME.log"
    assert "some progress" in Path("out/kd++-seed1.log").read_text()
    Path("fails").unlink()
    assert ndkd("compare", "--seeds", 0, 1, "--out", "out", STUDENT, KDPP)[0] == 0


def test_a_teacher_that_fails_ends_it(folder):
    Path("fails").write_text("teacher")
    status, _, err = ndkd("compare", *TEACHER, "--out", "out", KDPP)
    assert status == 2
    wanted = "ndkd: the teacher failed: the student's outputs are not finite; its log: out/teacher.log"
    assert err.splitlines()[-1] == wanted
    assert list(calls()["run"]) == ["teacher"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGHUP, 129), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_kill_ends_the_runs_and_leaves_the_table(teacher, monkeypatch, number, status):
    Path("slow").write_text("20")
    code = "import sys; from ndkd import cli; from ndkd.commands import compare_jobs as jobs; "
    code += f"jobs.NDKD = {jobs.NDKD}; sys.exit(cli.main())"
    arguments = ["compare", "--jobs", "2", "--seeds", "0", "1", "--out", "out", STUDENT]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True)
    while not (Run("out/student-seed0").is_used and Run("out/student-seed1").is_used):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    monkeypatch.setattr("ndkd.lock.PATIENCE", 0)
    beside = ndkd("compare", "--out", "out", STUDENT)
    assert beside[0] == 2
    assert f"ndkd: out out is in use by process {process.pid} on " in beside[2]
    process.send_signal(number)
    assert process.wait() == status
    said = process.stderr.read()
    assert all(gone(fit, within=10) for fit in calls()["process"]), "a run goes on by itself"
    if number != signal.SIGKILL:
        assert said.splitlines()[-1] == "ndkd: stopped; the same command resumes"
        assert "Traceback" not in said
        assert list(results()["state"]) == ["running", "running"]
    Path("slow").unlink()
    assert ndkd("compare", "--seeds", 0, 1, "--out", "out", STUDENT)[0] == 0
    assert list(results()["state"]) == ["finished", "finished"]


BAD = {
    "an unknown config": (["nowhere.yaml"], "config nowhere.yaml does not exist"),
    "two of one name": ([KD, "other/kd.yaml"], "configs/digits/kd.yaml, other/kd.yaml have one name, kd: give each"),
    "the same twice": ([STUDENT, STUDENT], "have one name, student"),
    "seeds twice": ([STUDENT, "--seeds", "1", "1"], "wanted different numbers from 0 on, got 1 1"),
    "a negative seed": ([STUDENT, "--seeds", "-1"], "wanted different numbers from 0 on, got -1"),
    "no jobs": ([STUDENT, "--jobs", "0"], "jobs: wanted at least 1, got 0"),
    "text for a number": ([STUDENT, "--jobs", "two"], "argument --jobs: invalid int value: 'two'; see ndkd compare"),
    "no config": ([], "the following arguments are required: CONFIG; see ndkd compare --help"),
    "an unknown option": (
        [STUDENT, "--sedes", "1"],
        "there is no option --sedes; did you mean --seeds, --sweep, --max-seeds\\? See ndkd compare --help",
    ),
    "an unknown control": ([KDPP, "--control", "dn"], "no configuration has a loss term dn; known: ce, kd, nd"),
    "an unknown term": ([KDPP, "--sweep", "ndd", "1"], "no configuration has a loss term ndd; did you mean nd?"),
    "a weight twice": (
        [KDPP, "--sweep", "nd", "1", "1.0"],
        "sweep: wanted different weights of nd from 0 on, got 1 1.0",
    ),
    "a negative weight": ([KDPP, "--sweep", "nd", "1", "-2"], "different weights of nd from 0 on, got 1 -2"),
    "a weight that is not finite": ([KDPP, "--sweep", "nd", "inf"], "different weights of nd from 0 on, got inf"),
    "a weight that is no number": ([KDPP, "--sweep", "nd", "nan", "1"], "weights of nd from 0 on, got nan 1"),
    "no weight": ([KDPP, "--sweep", "nd"], "different weights of nd from 0 on, got none"),
    "a config for a weight": (["--sweep", "nd", "1", KDPP, "--", KD], "arguments are required: CONFIG"),
    "words for weights": ([KDPP, "--sweep", "nd", "1", KD], "wanted weights of nd, got configs/digits/kd.yaml; put"),
    "two lengths": (
        [STUDENT, f"{KD},longer.yaml"],
        "kd,longer is DigitsDataModule, val_size 200, 90 epochs, student DigitsDataModule, val_size 200, "
        "120 epochs: results of two protocols do not belong in one table; compare them apart",
    ),
    "no YAML": (["broken.yaml"], "config broken.yaml is not valid YAML"),
    "an unknown entry": (
        ["wrong.yaml"],
        "configuration wrong: there is no entry trainer.max_epoch; did you mean max_epochs\\?",
    ),
    "output that is a file": ([STUDENT, "--out", "wrong.yaml"], "folder wrong.yaml cannot be made: .*with --out DIR"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(teacher, case):
    arguments, message = BAD[case]
    Path("other").mkdir()
    Path("other/kd.yaml").write_text(Path(KD).read_text())
    Path("longer.yaml").write_text("trainer: {max_epochs: 90}")
    Path("broken.yaml").write_text("trainer: {max_epochs: [")
    Path("wrong.yaml").write_text("trainer: {max_epoch: 3}\n" + Path(STUDENT).read_text().split("max_epochs: 120")[1])
    before = sorted(Path().rglob("*"))
    status, _, err = ndkd("compare", *([] if "--out" in arguments else ["--out", "out"]), *arguments)
    assert status == 2
    assert err.count("\n") == 1
    assert re.search(message, err), err
    assert sorted(Path().rglob("*")) == before


def test_a_teacher_that_nobody_trains(folder):
    status, _, err = ndkd("compare", "--out", "out", KDPP)
    assert status == 2
    assert "configuration kd++: its teacher runs/digits/teacher/checkpoints/last.ckpt does not exist; give the" in err
    status, _, err = ndkd("compare", "--teacher", STUDENT, "--out", "out", KDPP)
    assert status == 2
    assert "does not exist; --teacher trains runs/digits/student/checkpoints/last.ckpt" in err
    assert not Path("out").exists()


def test_a_run_of_another_configuration(teacher):
    assert ndkd("compare", "--out", "out", STUDENT)[0] == 0
    Path("out/student-seed0/config.yaml").write_text("trainer: {max_epochs: 30, default_root_dir: elsewhere}")
    status, _, err = ndkd("compare", "--out", "out", STUDENT)
    assert status == 2
    assert "out/student-seed0 has trainer.max_epochs 30, not 120: remove it or choose another --out DIR" in err


def test_a_run_with_other_terms_or_another_width(teacher):
    """Entries that only one of the two has."""
    assert ndkd("compare", "--out", "out", KDPP)[0] == 0
    config, file = compare_plan._resolved("kd++", ["--config", KDPP, "--run_dir", "out"]), Run("out/kd++-seed0").config
    for change, message in (
        (lambda model: model["losses"].pop("nd"), "has model.init_args.losses ce kd, not ce kd nd: remove it"),
        (
            lambda model: model["student"].update(kwargs={"widths": [8] * 4}),
            "student.kwargs widths, not none: remove it",
        ),
    ):
        other = copy.deepcopy(config)
        change(other["model"]["init_args"])
        file.write_text(yaml.safe_dump(other))
        status, _, err = ndkd("compare", "--out", "out", KDPP)
        assert status == 2
        assert message in err


def test_a_table_of_another_protocol_is_not_lost(teacher):
    assert ndkd("compare", "--out", "out", STUDENT)[0] == 0
    before = Path("out/results.csv").read_text()
    status, _, err = ndkd("compare", "--out", "out", KDPP, "--", "--trainer.max_epochs", "6")
    assert status == 2
    assert err == (
        "ndkd: out/results.csv has results of DigitsDataModule, val_size 200, 120 epochs, this command's are of "
        "DigitsDataModule, val_size 200, 6 epochs: choose another --out DIR\n"
    )
    assert Path("out/results.csv").read_text() == before
    assert ndkd("compare", "--out", "out", KDPP)[0] == 0


# ---- whose class means ----------------------------------------------------------------------------------------------


@pytest.fixture
def means_written(monkeypatch):
    """The teacher's class means are not computed; what was asked for."""
    asked = []

    def write(file, teacher, data):
        asked.append((str(file), teacher["checkpoint"], data["init_args"]["train_size"]))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    monkeypatch.setattr("ndkd.commands.compare.write_teacher_means", write)
    return asked


def given_means():
    """Of each run that was started, the file of class means."""
    options = calls().set_index("run")["options"]
    return {
        run: given[given.index("--class_means.file") + 1]
        for run, given in options.items()
        if "--class_means.file" in given
    }


def test_runs_without_a_teacher_are_given_the_others_class_means(teacher, means_written):
    file = "out/class_means/student.safetensors"
    command = ["compare", "--seeds", 0, 1, "--out", "out", STUDENT, KDPP]
    assert ndkd(*command)[0] == 0
    assert given_means() == {"student-seed0": file, "student-seed1": file}
    assert means_written == [(file, "runs/digits/teacher/checkpoints/last.ckpt", 100)]
    config = copy.deepcopy(compare_plan._resolved("student", ["--config", STUDENT, "--run_dir", "out"]))
    config["class_means"]["file"] = file  # as ndkd fit keeps it
    Run("out/student-seed0").config.write_text(yaml.safe_dump(config))
    assert ndkd(*command)[0] == 0  # the same run
    assert len(calls()) == 4


def test_a_teacher_of_no_configuration(teacher, means_written):
    assert ndkd("compare", *TEACHER, "--out", "out", STUDENT)[0] == 0
    assert means_written[0][1] == "runs/digits/teacher/checkpoints/last.ckpt"


def test_a_run_whose_losses_ask_for_no_teacher_is_given_them(teacher, means_written):
    """It builds none, whatever its configuration names."""
    sifn, l2 = (f"{KD},configs/digits/overlays/ablation/{name}.yaml" for name in ("sifn", "l2"))
    assert ndkd("compare", "--control", "kd", "--out", "out", KD, sifn, l2)[0] == 0
    assert set(given_means()) == {"kd-kd0-seed0", "sifn-seed0"}


def test_without_a_teacher_or_with_two_nobody_is_measured(teacher, means_written):
    assert ndkd("compare", "--out", "out", STUDENT)[0] == 0
    Path("other.yaml").write_text("model: {init_args: {teacher: {checkpoint: other.ckpt}}}")
    Path("other.ckpt").touch()
    assert ndkd("compare", "--seeds", 1, "--out", "out", STUDENT, KD, f"{KDPP},other.yaml")[0] == 0
    assert not means_written
    assert not given_means()


def test_means_that_the_user_gives_are_kept(teacher, means_written):
    options = ["--class_means.file", "mine.safetensors"]
    assert ndkd("compare", "--out", "out", STUDENT, "--", *options)[0] == 0
    assert not means_written
    assert given_means() == {"student-seed0": "mine.safetensors"}


def test_printed_commands_name_means_that_are_there(teacher, means_written):
    command = ["compare", "--out", "out", "--print-commands", STUDENT, KD]
    assert "class_means" not in ndkd(*command)[1]
    assert not means_written
    Path("out/class_means").mkdir(parents=True)
    Path("out/class_means/student.safetensors").touch()
    assert ndkd(*command)[1].splitlines()[0].endswith("--class_means.file out/class_means/student.safetensors")


def test_a_teacher_that_cannot_be_read_is_said(teacher):
    status, out, _ = ndkd("compare", "--out", "out", STUDENT, KD)
    assert status == 0
    assert "no angles of student: checkpoint runs/digits/teacher/checkpoints/last.ckpt is damaged" in out
    assert not given_means()


# ---- the table -------------------------------------------------------------------------------------------------------

ACCURACY = {"a": [70.0, 72.0, 71.0], "b-nd0": [71.0, 74.0, 75.0], "b": [72.0, 74.5, 76.0]}


def rows(accuracy=ACCURACY):
    return [
        {"config": name, "control": "b-nd0" if name == "b" else None, "seed": seed, "state": "finished",
         "metric": "test/acc1", "last": value, "best": value + 1, "seconds": 60 + seed, "parameters": 1234}
        for name, values in accuracy.items() for seed, value in enumerate(values)
    ]  # fmt: skip


def test_differences_are_paired_by_seed():
    runs = as_table(rows())
    runs.loc[(runs["config"] == "a") & (runs["seed"] == 2), "last"] = np.nan  # not there
    found = differences_by_seed(runs)
    assert found["first"].keys() == {"b", "b-nd0"}
    assert list(found["first"]["b"].dropna()) == [2.0, 2.5]
    assert list(found["control"]["b"]) == [1.0, 0.5, 1.0]


def test_interval_is_students():
    values = pd.Series([70.0, 72.0, np.nan, 71.0])
    assert half_interval(values) == pytest.approx(4.302653 * 1.0 / np.sqrt(3))  # t of 2 degrees of freedom
    assert np.isnan(half_interval(pd.Series([70.0])))


def test_markdown(tmp_path):
    table = write_tables(rows(), tmp_path, "ndkd compare")
    head, _, first, control, last = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    columns = ["seeds", "test/acc1, last epoch", "best epoch", "minus a", "minus control", "minutes", "parameters"]
    assert head == ["", *columns]
    values = ["71.00 ± 1.00 [68.52, 73.48]", "72.00 ± 1.00 [69.52, 74.48]"]
    assert first == ["a", "0 1 2", *values, "", "", "1.0", "1,234"]
    assert control[4:6] == ["+2.33 ± 1.53 [-1.46, +6.13]", ""]
    assert last[4:6] == ["+3.17 ± 1.61 [-0.83, +7.16]", "+0.83 ± 0.29 [+0.12, +1.55]"]
    text = (tmp_path / "results.md").read_text()
    assert table in text
    assert "`ndkd compare`, 20" in text


def with_teacher(values):
    return [row | ({"teacher": values[row["config"]]} if row["config"] in values else {}) for row in rows()]


def test_the_teachers_accuracy_stands_below_the_table(tmp_path):
    """The first configuration has none; the others have the same."""
    plain = write_tables(rows(), tmp_path, "ndkd compare")
    table = write_tables(with_teacher({"b": 76.2, "b-nd0": 76.2000001}), tmp_path, "ndkd compare")
    assert table == f"{plain}\n\nteacher: 76.20 on validation"
    assert f"{table}\n\nIn percent;" in (tmp_path / "results.md").read_text()
    assert list(pd.read_csv(tmp_path / "results.csv")["teacher"].dropna()) == [76.2000001] * 3 + [76.2] * 3
    status, out, err = ndkd("table", tmp_path / "results.csv")
    assert (status, out) == (0, f"{table}\n"), err


def test_two_teachers_are_a_column(tmp_path):
    table = write_tables(with_teacher({"a": 76.2, "b": 80.0}), tmp_path, "ndkd compare")
    head, _, first, control, last = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    column = head.index("teacher, on validation")
    assert first[column] == "76.20 ± 0.00 [76.20, 76.20]"
    assert control[column] == ""
    assert last[column] == "80.00 ± 0.00 [80.00, 80.00]"
    assert {len(line) for line in (head, first, control, last)} == {len(head)}


def test_files_where_nothing_has_finished(tmp_path):
    nothing = [{"config": "a", "seed": 0, "control": None, "state": "failed", "error": "no memory"}]
    write_tables(nothing, tmp_path, "ndkd compare")
    assert {file.name for file in tmp_path.iterdir()} == {"results.csv", "results.md"}
    assert "| a, seed 0 | failed: no memory |" in (tmp_path / "results.md").read_text()


# ---- in earnest ------------------------------------------------------------------------------------------------------


def test_real_runs(workplace):
    options = [option for option in SHORT if "max_epochs" not in option] + ["--trainer.max_epochs=1"]
    given = ["--out", "real", "--jobs", 2, "--control", "nd", STUDENT, KDPP]
    status, out, err = ndkd("compare", *TEACHER, *given, "--", *options)
    assert status == 0, err
    assert len(list(Path("real/teacher_cache").glob("*/epoch-0000-rank-0.rows"))) == 1
    found = pd.read_csv("real/results.csv").set_index("config")
    for name in ("student", "kd++"):
        wanted = Run(f"real/{name}-seed0").status()["results"]
        assert found["last"][name] == pytest.approx(100 * wanted["last"]["test/acc1"])
        assert found["best_epoch"][name] == wanted["best"]["epoch"]
    for name in ("student", "kd++"):
        last = Run(f"real/{name}-seed0").metrics()[-1]
        assert found["angle"][name] == pytest.approx(float(last["features/angle_mean"]))
        assert found["relative_norm"][name] == pytest.approx(float(last["features/relative_norm"]))
        status_of_run = Run(f"real/{name}-seed0").status()
        assert found["date"][name] == status_of_run["date"] == date.today().isoformat()
        assert found["machine"][name] == status_of_run["machine"]
        assert found["torch"][name] == status_of_run["versions"]["torch"]
        kept = yaml.safe_load(Path(f"real/configs/{name}.yaml").read_text())
        assert kept["trainer"]["max_epochs"] == 1
        assert "run_dir" not in kept
    assert set(found["protocol"]) == {"DigitsDataModule, val_size 200, 1 epochs, limit_test_batches 2"}
    means = read_class_means("real/class_means/student.safetensors").class_means
    trained = torch.load("real/kd++-seed0/checkpoints/last.ckpt", weights_only=True)["state_dict"]["class_means"]
    torch.testing.assert_close(means, trained, rtol=0, atol=1e-5)  # the same teacher on the same images
    assert all(Path("real", name).is_file() for name in ("results.png", "features.png", "results.md"))
    assert "Not in features.png" not in out
    measured = Run("real/kd++-seed0").status()["teacher"]
    assert found["teacher"].dropna().to_dict() == pytest.approx(
        dict.fromkeys(("kd++-nd0", "kd++"), 100 * measured["val/acc1"])
    )
    assert f"\n\nteacher: {100 * measured['val/acc1']:.2f} on validation" in out
    assert found["parameters"]["student"] == found["parameters"]["kd++"] == 78042
    status, again, _ = ndkd("compare", *TEACHER, *given, "--", *options)
    assert status == 0
    assert out.split("|", 1)[1] == again.split("|", 1)[1]


def test_markdown_of_names_that_are_markdown(tmp_path):
    """A file's name may hold what a table is made of, and so may an error."""
    strange = [row | {"config": "a|b<i>"} for row in rows()[:2]]
    strange.append(strange[0] | {"seed": 9, "state": "failed", "error": "x | y\n<script>"})
    table = write_tables(strange, tmp_path, "ndkd `compare`")
    lines = table.splitlines()
    assert all(line.replace("\\|", "").count("|") in (3, lines[0].replace("\\|", "").count("|")) for line in lines)
    assert "| a\\|b&lt;i&gt;, seed 9 | failed: x \\| y\\\\n&lt;script&gt; |" in table
    assert "`` ndkd `compare` ``" in (tmp_path / "results.md").read_text()
