"""Run folders that are cut, emptied, flipped or of another shape: a command works without the file, or says so."""

import json
import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure

import ndkd.commands.export_card as card
from ndkd.analysis import load_run
from ndkd.commands import compare, compare_plan
from ndkd.commands import compare_jobs as jobs
from ndkd.errors import Damaged, NdkdError
from ndkd.models.checkpoint import read_checkpoint
from ndkd.runs import Run
from tests.command import SHORT, ndkd

CONFIG, FOLDER = "configs/digits/student.yaml", "out/student-seed0"
LAST = f"{FOLDER}/checkpoints/last.ckpt"
OPTIONS = [*SHORT, "--trainer.limit_test_batches=1", "--data.init_args.val_size=40", "--data.init_args.train_size=32"]
RESUME = ["fit", "--config", CONFIG, *OPTIONS, "--run_dir", FOLDER, "--ckpt_path=last"]
COMMANDS = {
    "resume": [*RESUME, "--trainer.max_epochs=3"],
    "resume what is finished": RESUME,
    "compare": ["compare", "--out", "out", CONFIG, "--", *OPTIONS],
    "report": ["report", FOLDER],
    "export": ["export", LAST, "--out", "exported/model.safetensors"],
    "test": ["test", "--ckpt_path", LAST],
}
READ_BY = {
    "status.json": ("resume", "resume what is finished", "compare", "report", "export"),
    "config.yaml": ("resume", "compare", "report", "export", "test"),
    "metrics.csv": ("resume", "compare", "report"),
    "predictions/0001.npz": ("resume", "report"),
    "features/0000.npz": ("resume", "report"),
    "checkpoints/last.ckpt": ("resume", "report", "export", "test"),
}


@pytest.fixture(scope="module")
def finished(workplace):
    """A student alone after two epochs, tested."""
    status, _, err = ndkd("fit", "--config", CONFIG, *OPTIONS, "--seed_everything=0", "--run_dir", FOLDER)
    assert status == 0, err
    return workplace / FOLDER


@pytest.fixture(scope="module")
def resolved():
    kept, original = {}, compare_plan._resolved

    def once(name, options):
        if tuple(options) not in kept:
            kept[tuple(options)] = original(name, options)
        return kept[tuple(options)]

    return once


@pytest.fixture
def run(finished, tmp_path, monkeypatch, resolved):
    """A copy of it in a working directory of its own; nothing is drawn, and compare trains nothing."""
    (tmp_path / "configs").symlink_to(finished.parent.parent / "configs")
    shutil.copytree(finished, tmp_path / FOLDER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(card, "SECONDS", 1e-3)
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: None)
    monkeypatch.setattr(compare_plan, "_resolved", resolved)
    monkeypatch.setattr(compare, "run_fits", lambda fits, count, logs: [(fit.progress, fit.command) for fit in fits])
    monkeypatch.setattr(jobs, "NDKD", ["false"])
    return Run(FOLDER)


# ---- damages ---------------------------------------------------------------------------------------------------------


def cut(file):
    content = file.read_bytes()
    place = len(content) // 2
    if file.suffix == ".yaml":  # in the last outer name: what ends with a line would be whole again
        place = [match.end() - 2 for match in re.finditer(rb"^\w+:", content, re.MULTILINE)][-1]
    file.write_bytes(content[:place])


def flip(seed):
    def damage(file):
        content, draw = bytearray(file.read_bytes()), random.Random(seed)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)

    return damage


def with_folder(file):
    file.unlink()
    file.mkdir()


def holding(content):
    return lambda file: file.write_bytes(content if isinstance(content, bytes) else content.encode())


ANY = {
    "empty": holding(b""),
    "cut": cut,
    "not UTF-8": lambda file: file.write_bytes(file.read_bytes()[:40] + b"\xff\xfe\x80" + file.read_bytes()[40:]),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "a list": holding("[1, 2]"),
    "a number": holding("7"),
    "deep": holding("[" * 5000),
    "a folder": with_folder,
    **{f"flipped {seed}": flip(seed) for seed in range(4)},
}


def entry(**changes):
    def damage(file):
        content = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in content.items() if value != "gone"}))

    return damage


STATUS = {
    "null": holding("null"),
    "no state": entry(state="gone"),
    "a state that is a list": entry(state=[]),
    "results that are a list": entry(results=[1]),
    "a result that is a list": entry(results={"last": []}),
    "a result without epoch": entry(results={"last": {"test/acc1": 0.5}}),
    "a result of another metric": entry(results={"last": {"epoch": 1, "test/ap": 0.5}}),
    "a result that is a text": entry(results={"last": {"epoch": 1, "test/acc1": "high"}}),
    "no result of the last epoch": entry(results={"best": {"epoch": 1, "test/acc1": 0.5}}),
    "no headline": entry(headline="gone"),
    "a headline that is a number": entry(headline=5),
    "seconds that are a text": entry(seconds="long"),
    "no seconds": entry(seconds="gone"),
    "parameters that are a list": entry(parameters=[1]),
    "no parameters": entry(parameters="gone"),
    "versions that are a list": entry(versions=["torch"]),
    "an error that is a number": entry(error=5),
    "a teacher that is a number": entry(teacher=0.5),
    "a teacher's accuracy that is a text": entry(teacher={"val/acc1": "high"}),
    "a teacher of another metric": entry(teacher={"val/ap": 0.5}),
}
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]\n" for last, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def without(*path, value=None):
    def damage(file):
        config = yaml.safe_load(file.read_text())
        inner = config
        for key in path[:-1]:
            inner = inner[key]
        if value is None:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        file.write_text(yaml.safe_dump(config))

    return damage


CONFIGS = {
    "nothing": holding("# nothing\n"),
    "refers to itself": holding("&a {data: *a, model: *a}"),
    "fills the memory": holding(LAUGHS),
    "no date": holding("data: 2024-99-99"),
    "an object": holding("data: !!python/object/apply:os.getcwd []"),
    "no data": without("data"),
    "no model": without("model"),
    "data that is a list": without("data", value=[1]),
    "no class": without("data", "class_path"),
    "a model that is a number": without("model", value=7),
    "no student": without("model", "init_args", "student"),
    "a student that is a text": without("model", "init_args", "student", value="cifar"),
    "losses that are a list": without("model", "init_args", "losses", value=[1]),
    "a trainer that is a text": without("trainer", value="auto"),
    "a trainer entry of another type": without("trainer", "max_epochs", value={"a": 1}),
    "an option that is not there": without("data", "init_args", "colour", value=7),
}


def lines(change):
    def damage(file):
        rows = file.read_text().splitlines()
        file.write_text("\n".join(change(rows)) + "\n")

    return damage


METRICS = {
    "a last line cut": lambda file: file.write_bytes(file.read_bytes()[:-5]),
    "no epochs": lines(lambda rows: [row.partition(",")[2] for row in rows]),
    "no header": lines(lambda rows: rows[1:]),
    "a header alone": lines(lambda rows: rows[:1]),
    "a word": lines(lambda rows: [rows[0], rows[1].replace("0,", "zero,", 1), *rows[2:]]),
    "a word in the end": lines(lambda rows: [*rows[:-1], rows[-1].rpartition(",")[0] + ",x"]),
    "too many columns": lines(lambda rows: [*rows[:-1], rows[-1] + ",7"]),
    "an open quote": lines(lambda rows: [rows[0], '"' + rows[1], *rows[2:]]),
    "an epoch twice": lines(lambda rows: [*rows, rows[-1]]),
    "epochs below 0": lines(lambda rows: [rows[0], "-" + rows[1], *rows[2:]]),
    "a broken epoch": lines(lambda rows: [rows[0], rows[1].replace("0,", "0.5,", 1), *rows[2:]]),
    "two columns alone": lines(lambda rows: [",".join(row.split(",")[:2]) for row in rows]),
}


def arrays(**changes):
    def damage(file):
        with np.load(file) as kept:
            found = {**kept, **changes}
        with file.open("wb") as out:
            np.savez_compressed(out, **{key: value for key, value in found.items() if value is not None})

    return damage


PREDICTIONS = {
    "no targets": arrays(target=None),
    "no confidence": arrays(confidence=None),
    "lengths": arrays(prediction=np.arange(3)),
    "a table": arrays(target=np.zeros((2, 2), int)),
    "texts": arrays(prediction=np.array(["a"] * 40)),
    "objects": arrays(prediction=np.array([{}] * 40)),
    "a single number": arrays(target=np.array(7)),
}
FEATURES = {
    "no edges": arrays(norm_edges=None),
    "lengths": arrays(student_norm=np.arange(3)),
    "a table": arrays(student_norm=np.zeros((2, 2), int)),
    "no images": arrays(student_norm=np.zeros(240, int)),
}


def content(change):
    def damage(file):
        found = read_checkpoint(file)
        torch.save(change(found), file)

    return damage


def known(**changes):
    return content(lambda found: found | {"hyper_parameters": found["hyper_parameters"] | changes})


def student(**changes):
    def change(found):
        found["hyper_parameters"]["student"] = found["hyper_parameters"]["student"] | changes
        return found

    return content(change)


KEYS = ("state_dict", "hyper_parameters", "epoch", "global_step", "pytorch-lightning_version", "loops", "callbacks")
KEYS += ("optimizer_states", "lr_schedulers")
CHECKPOINTS = {
    **{
        f"no {key}": content(lambda found, key=key: {name: value for name, value in found.items() if name != key})
        for key in KEYS
    },
    **{f"{key} is a list": content(lambda found, key=key: found | {key: [1]}) for key in KEYS},
    **{f"{key} is a text": content(lambda found, key=key: found | {key: "text"}) for key in KEYS},
    "no dictionary": content(lambda found: [1]),
    "weights that are texts": content(lambda found: found | {"state_dict": dict.fromkeys(found["state_dict"], "x")}),
    "no weights": content(lambda found: found | {"state_dict": {}}),
    "weights under numbers": content(lambda found: found | {"state_dict": {1: torch.zeros(1)}}),
    "loops of nothing": content(lambda found: found | {"loops": {"fit_loop": {}}}),
    "classes that are a text": known(num_classes="ten"),
    "classes that are none": known(num_classes=None),
    "names that are a number": known(class_names=7),
    "names that are numbers": known(class_names=[1, 2]),
    "a student that is a list": known(student=[1]),
    "a student that is empty": known(student={}),
    "a student's unknown entry": student(colour="red"),
    "a student's kwargs": student(kwargs=[1]),
    "a student's mean": student(mean=["a", "b", "c"]),
    "a student's short mean": student(mean=[0.5], std=[0.5, 0.5]),
    "a student's mean of other images": student(mean=[0.5] * 5, std=[0.5] * 5),
    "a student's classifier": student(classifier=[7]),
    "a student's other classifier": student(classifier=["nowhere"]),
    "a student's classifier that is none": student(classifier=None),
    "a student's taps": student(taps="layer1"),
}
DAMAGES = {
    "status.json": ANY | STATUS,
    "config.yaml": ANY | CONFIGS,
    "metrics.csv": ANY | METRICS,
    "predictions/0001.npz": ANY | PREDICTIONS,
    "features/0000.npz": ANY | FEATURES,
    "checkpoints/last.ckpt": ANY | CHECKPOINTS,
}
CASES = [(file, damage, command) for file in DAMAGES for damage in DAMAGES[file] for command in READ_BY[file]]
# all of them take minutes: a draw, always the same, in which a resume, which trains, is rarer
FEW = random.Random(0).sample([case for case in CASES if case[2].startswith("resume")], 16)
FEW += random.Random(0).sample([case for case in CASES if not case[2].startswith("resume")], 110)
if "NDKD_ALL_DAMAGES" not in os.environ:
    CASES = [case for case in CASES if case in FEW]


@pytest.mark.parametrize(("file", "damage", "command"), CASES)
def test_it_works_without_or_says_in_a_line_what_is_wrong(file, damage, command, run):
    DAMAGES[file][damage](run.path / file)
    status, _, err = ndkd(*COMMANDS[command])
    assert status in (0, 2)
    assert "Traceback" not in err
    if status == 2:
        line = err.splitlines()[-1]
        assert re.search("ndkd: ", line), err
        assert len(line) < 700
        assert "unhashable" not in line
    if command.startswith("resume") and status == 0 and file in ("status.json", "config.yaml"):
        assert run.read_config()
        assert run.status()["state"] == "finished"


# ---- what is kept and what is said -----------------------------------------------------------------------------------


def test_a_resume_sets_damaged_metrics_aside_and_keeps_the_rows_that_can_be_read(run):
    before = (run.path / "metrics.csv").read_text()
    METRICS["a word in the end"](run.path / "metrics.csv")
    damaged = (run.path / "metrics.csv").read_text()
    (run.path / "metrics.csv.damaged").write_text("of an earlier time")
    status, _, err = ndkd(*COMMANDS["resume"])
    assert status == 0, err
    assert (
        f"ndkd: {FOLDER}/metrics.csv is damaged: line 3 is not a row of numbers; it is kept as metrics.csv.damaged2"
        in err
    )
    assert (run.path / "metrics.csv.damaged2").read_text() == damaged
    assert (run.path / "metrics.csv.damaged").read_text() == "of an earlier time"
    assert [row["epoch"] for row in run.metrics()] == ["0", "2"]
    assert (run.path / "metrics.csv").read_text().startswith("\n".join(before.splitlines()[:2]))


@pytest.mark.parametrize("command", ["resume", "resume what is finished"])
def test_a_resume_writes_status_and_configuration_anew(command, run):
    before, config = run.status(), run.read_config()
    (run.path / "status.json").write_text("[")
    run.config.write_text("")
    with pytest.raises(Damaged):
        run.status()
    status, _, err = ndkd(*COMMANDS[command])
    assert status == 0, err
    assert f"ndkd: {FOLDER}/status.json is damaged: " in err
    after = run.status()
    assert after["state"] == "finished"
    assert after["parameters"] == before["parameters"]
    assert after["headline"] == "acc1"
    assert after["results"].keys() == before["results"].keys()
    if command == "resume":
        assert run.read_config()["data"] == config["data"]


@pytest.mark.parametrize("file", ["status.json", "config.yaml", "metrics.csv", "features/0000.npz"])
def test_the_line_names_the_file_what_is_wrong_and_what_to_do(file, run):
    cut(run.path / file)
    status, _, err = ndkd("report", FOLDER)
    assert status == 2
    assert re.fullmatch(rf"ndkd: {FOLDER}/{file} is damaged: .+; .*(--ckpt_path last|remove it).*\n", err), err


def test_every_flipped_byte_of_the_weights_is_noticed(tmp_path):
    file, draw = tmp_path / "last.ckpt", random.Random(1)
    torch.save({"state_dict": {"weight": torch.arange(3000.0)}}, file)
    whole = file.read_bytes()
    start = whole.index(torch.arange(3000.0).numpy().tobytes())
    for place in [start, start + 11_999, *(start + draw.randrange(12_000) for _ in range(20))]:
        content = bytearray(whole)
        content[place] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        assert torch.load(file, weights_only=True)["state_dict"]["weight"].shape == (3000,)  # torch does not notice
        with pytest.raises(NdkdError, match=r"last\.ckpt is damaged: .*data/0 has other bytes than were written"):
            read_checkpoint(file)
    file.write_bytes(whole)
    assert read_checkpoint(file)


def test_a_checkpoint_needs_no_second_file(run):
    Path("moved").mkdir()
    shutil.copy(LAST, "moved/weights.ckpt")
    assert read_checkpoint("moved/weights.ckpt")["epoch"] == 1


def said_by_the_analysis():
    try:
        load_run(FOLDER)
    except NdkdError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("damage", [*CHECKPOINTS, "cut", "flipped 0"])
def test_the_analysis_says_it_in_a_line_too(damage, run):
    (ANY | CHECKPOINTS)[damage](run.checkpoint("last"))
    assert "\n" not in said_by_the_analysis()


@pytest.mark.parametrize("damage", [*CONFIGS, "a list", "cut"])
def test_the_analysis_and_a_configuration(damage, run):
    (ANY | CONFIGS)[damage](run.config)
    assert "\n" not in said_by_the_analysis()


def test_compare_goes_on_beside_a_run_that_is_damaged_meanwhile(run, monkeypatch):
    def spoil(fits, count, logs):
        for fit in fits:
            (fit.run.path / "status.json").write_text("[")

    (run.path / "status.json").unlink()
    monkeypatch.setattr(compare, "run_fits", spoil)
    status, out, err = ndkd(*COMMANDS["compare"])
    assert status == 0, err
    assert "| student, seed 0 | damaged: out/student-seed0/status.json is damaged: " in out
