"""Names of configurations: in the working folder, else among those that come with ndkd."""

import os
import re
import sys
from pathlib import Path

import pytest
import yaml

import ndkd.configuration.shipped as shipped
from ndkd.commands.compare_plan import _files, _name
from ndkd.configuration.arguments import default_run_dir, with_found_configs
from ndkd.configuration.checks import check_configs
from ndkd.configuration.shipped import find_config, find_shipped, shipped_folder, shipped_name, shipped_names
from ndkd.errors import NdkdError
from tests.command import REPOSITORY, ndkd

SHIPPED = REPOSITORY / "configs"
KDPP, TEACHER = "digits/kd++.yaml", "digits/teacher.yaml"


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ndkd"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    return tmp_path


@pytest.fixture
def installed(empty, monkeypatch):
    """The same, where ndkd lies in a folder of packages with its configurations inside; that folder."""
    inside = empty.parent / f"{empty.name}-configs" / "site-packages" / "ndkd" / "configs"
    inside.parent.mkdir(parents=True)
    inside.symlink_to(SHIPPED)
    monkeypatch.setattr(shipped, "__file__", str(inside.parent / "configuration" / "shipped.py"))
    return inside


# ---- where a name leads ---------------------------------------------------------------------------------------------


def test_a_checkouts_are_those_at_its_top(empty):
    assert shipped_folder() == SHIPPED
    assert {*shipped_names()} >= {KDPP, "cifar_wrn.yaml", "cifar100/fragments/sgd.yaml"}


@pytest.mark.parametrize("name", [KDPP, f"configs/{KDPP}", f"./{KDPP}", Path(KDPP)])
def test_a_shipped_one_is_found_from_anywhere(name, empty, installed):
    assert find_config(name) == installed / KDPP


@pytest.mark.parametrize("name", [KDPP, f"configs/{KDPP}"])
def test_the_working_folder_comes_first(name, empty):
    own = Path(name)
    own.parent.mkdir(parents=True)
    own.touch()
    assert find_config(name) == own


def test_a_path_is_taken_as_it_is(empty):
    Path("mine.yaml").touch()
    for name in ("mine.yaml", empty / "mine.yaml", f"../{empty.name}/mine.yaml"):
        assert find_config(name) == Path(name)


def test_what_it_is_called_there(empty, installed):
    assert shipped_name(installed / KDPP) == Path(KDPP)
    assert shipped_name(Path(KDPP)) is None
    assert shipped_name(installed / ".." / "errors.py") is None


@pytest.mark.parametrize("form", [["--config", KDPP], ["-c", KDPP], [f"--config={KDPP}"]])
def test_every_way_to_give_it(form, empty):
    Path("mine.yaml").touch()
    found = with_found_configs(["fit", *form, "--config", "mine.yaml", "--run_dir", KDPP])
    assert found == ["fit", *(part.replace(KDPP, str(SHIPPED / KDPP)) for part in form), *found[-4:]]
    assert found[-4:] == ["--config", "mine.yaml", "--run_dir", KDPP]


# ---- names that lead nowhere ----------------------------------------------------------------------------------------

WRONG = {
    "a letter too many": ("digits/kdd.yaml", "does not exist; did you mean digits/kd.yaml, digits/kd++.yaml, "),
    "with its folder": ("configs/digits/kdd.yaml", "does not exist; did you mean configs/digits/kd.yaml, configs/"),
    "no ending": ("digits/kd++", "does not exist; did you mean digits/kd++.yaml, "),
    "another ending": ("digits/kd++.yml", "does not exist; did you mean digits/kd++.yaml, "),
    "no folder": ("kd++.yaml", "does not exist; did you mean digits/kd++.yaml, "),
    "a file of one's own": ("mien.yaml", "does not exist; did you mean mine.yaml?"),
    "nothing like it": ("zzz", "does not exist; correct the path, or choose of those that ndkd configs lists"),
    "above": (f"../{KDPP}", f"does not exist; did you mean {KDPP}, "),
    "above the shipped ones": ("../setup.cfg", "does not exist; correct the path, or choose of "),
    "through a shipped folder": ("digits/../../setup.cfg", "does not exist; did you mean digits/student.yaml?"),
    "a folder": ("digits", "is a folder; name a file in it"),
    "a folder of one's own": ("own", "is a folder; name a file in it"),
    "the folder of all": ("configs/", "is a folder; name a file in it"),
    "too long": ("x" * 300 + ".yaml", "cannot be read: File name too long; correct the path"),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_line_says_what_to_do(case, empty):
    Path("own").mkdir()
    Path("mine.yaml").touch()
    name, wanted = WRONG[case]
    status, out, err = ndkd("fit", "--config", name)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"ndkd: config {name} {wanted}")


@pytest.mark.parametrize("name", ["", " "])
def test_no_name(name, empty):
    message = "ndkd: config: wanted the name of a file, got none; see ndkd configs\n"
    assert ndkd("fit", "--config", name) == (2, "", message)
    assert ndkd("compare", f"{KDPP},{name}", "--out", "out") == (2, "", message)


def test_own_files_are_offered_with_shipped_ones(empty):
    own = Path("configs/digits/kd+++.yaml")
    own.parent.mkdir(parents=True)
    own.touch()
    with pytest.raises(NdkdError, match=r"mean configs/digits/kd\+\+\+\.yaml, digits/kd\+\+\.yaml, "):
        find_config("digits/kd++++.yaml")


def test_a_file_is_offered_once(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    for name in ("digits/kdd.yaml", "configs/digits/kdd.yaml"):
        with pytest.raises(NdkdError) as error:
            find_config(name)
        offered = [word.removeprefix("configs/") for word in re.findall(r"\S+\.yaml", str(error.value))[1:]]
        assert len(offered) == len(set(offered)) == 5


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(empty):
    Path("mine.yaml").touch(mode=0)
    _, _, err = ndkd("fit", "--config", "mine.yaml")
    assert err == "ndkd: config mine.yaml cannot be read: Permission denied; see its permissions\n"


def test_a_file_that_the_disk_does_not_give(empty, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", "mine.yaml")

    Path("mine.yaml").touch()
    monkeypatch.setattr(Path, "read_text", refuse)
    _, _, err = ndkd("fit", "--config", "mine.yaml")
    assert err == "ndkd: config mine.yaml cannot be read: Permission denied; see its permissions\n"


def test_no_shipped_one_of_the_name(empty):
    Path("mine.yaml").touch()
    with pytest.raises(NdkdError, match=r"^no configuration mine.yaml comes with ndkd; ndkd configs lists them$"):
        find_shipped("mine.yaml")
    with pytest.raises(NdkdError, match=r"^no configuration digits/kd\+\+ comes with ndkd; did you mean digits/kd\+\+"):
        find_shipped("digits/kd++")


# ---- parts of configurations ----------------------------------------------------------------------------------------

ALONE = {
    "cifar100/overlays/kd.yaml": "is an overlay: give the configuration that it changes before it, for example ",
    "loggers/wandb.yaml": "is an overlay: give the configuration that it changes before it, for example digits/kd++",
    "trainer/ddp.yaml": "is an overlay: give the configuration that it changes before it, for example digits/kd++.yaml",
    "cifar100/fragments/sgd.yaml": "is one of the fragments, which are no configurations; see ndkd configs",
    "sweeps/nd_weight.yaml": "is one of the sweeps, which are no configurations; see ndkd configs",
}


@pytest.mark.parametrize("name", ALONE)
def test_a_part_alone_is_refused(name, empty):
    for command in (["fit", "--config", name], ["compare", name, "--out", "out"]):
        status, _, err = ndkd(*command)
        assert (status, err.count("\n")) == (2, 1)
        assert err.startswith(f"ndkd: config {name} {ALONE[name]}")


def test_two_overlays_are_no_configuration(empty):
    with pytest.raises(NdkdError, match=r"^config loggers/wandb.yaml is an overlay: "):
        check_configs(["loggers/wandb.yaml", "trainer/ddp.yaml"])


def test_what_may_come_with_an_overlay(empty):
    check_configs(["loggers/wandb.yaml", KDPP])  # in any order
    check_configs(["loggers/wandb.yaml"], is_class_given=True)
    own = Path("trainer/mine.yaml")
    own.parent.mkdir()
    own.write_text((SHIPPED / KDPP).read_text())
    check_configs([str(own)])  # whole, whatever its folder is called


def test_a_class_on_the_command_line(empty):
    options = ["--model", "DistillationModule", "--model.init_args.student.name", "cifar/resnet8"]
    options += ["--model.init_args.losses", "{ce: {loss: torch.nn.CrossEntropyLoss, inputs: [student.logits, target]}}"]
    options += ["--data", "DigitsDataModule", "--print_config"]
    status, _, err = ndkd("fit", "--config", "trainer/ddp.yaml", *options)
    assert status == 0, err


# ---- run folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configs", "folder"),
    [
        ([KDPP], "runs/digits/kd++"),
        ([f"configs/{KDPP}"], "runs/digits/kd++"),
        (["digits/kd.yaml", "digits/overlays/ablation/kd+nd.yaml"], "runs/digits/kd+nd"),
        ([KDPP, "loggers/wandb.yaml"], "runs/digits/kd++"),
        (["cifar100/r56_r20/kd++.yaml", "cifar100/overlays/mdistiller.yaml"], "runs/cifar100/r56_r20/kd++,mdistiller"),
        (["cifar_wrn.yaml"], "runs/cifar_wrn"),
    ],
)
def test_the_same_run_folder_wherever_it_is_found(configs, folder, empty, installed, monkeypatch):
    arguments = ["fit", *(part for config in configs for part in ("--config", config))]
    assert default_run_dir(arguments, seed=0) == Path(folder)
    monkeypatch.chdir(REPOSITORY)
    assert default_run_dir(arguments, seed=0) == Path(folder)
    found = [str(installed / config.removeprefix("configs/")) for config in configs]
    arguments = ["fit", *(part for config in found for part in ("--config", config))]
    assert default_run_dir(arguments, seed=0) == Path(folder)


def test_the_same_run_folder_from_inside_the_configurations(monkeypatch):
    monkeypatch.chdir(SHIPPED)
    assert default_run_dir(["fit", "--config", KDPP], seed=1) == Path("runs/digits/kd++-seed1")
    monkeypatch.chdir(SHIPPED / "digits")
    assert default_run_dir(["fit", "--config", "kd++.yaml"], seed=0) == Path("runs/digits/kd++")


def test_own_files_keep_their_run_folders(empty):
    for name, folder in {"mine.yaml": "runs/mine", "configs/a/b.yaml": "runs/a/b", "a/b.yaml": "runs/b"}.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
        assert default_run_dir(["fit", "--config", name], seed=0) == Path(folder)


# ---- through the commands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [KDPP, f"configs/{KDPP}"])
def test_print_config_from_an_empty_folder(name, empty, installed):
    status, out, err = ndkd("fit", "--config", name, "--print_config")
    assert status == 0, err
    assert yaml.safe_load(out)["trainer"]["max_epochs"] == 120


def test_fragments_and_overlays_are_found_beside_it(empty, installed):
    base, overlays = "cifar100/r56_r20/kd++.yaml", "cifar100/overlays"
    found = []
    for prefix in ("", f"{SHIPPED}/"):
        names = [f"{prefix}{base}", f"{prefix}{overlays}/kd.yaml", f"{prefix}{overlays}/mdistiller.yaml"]
        status, out, err = ndkd("fit", *(part for name in names for part in ("--config", name)), "--print_config")
        assert status == 0, err
        found.append(yaml.safe_load(out))
    assert found[0] == found[1]
    assert found[0]["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.05
    assert found[0]["model"]["init_args"]["losses"]["kd"]["weight"] == 0.9


def test_compare_takes_names(empty, installed):
    half = Path("half.yaml")
    half.write_text("model: {init_args: {losses: {nd: {weight: 0.5}}}}")
    assert _files(f"{KDPP},half.yaml") == ["--config", KDPP, "--config", "half.yaml"]
    assert _name(f"{KDPP},half.yaml") == _name(f"configs/{KDPP},half.yaml") == "kd++,half"
    command = ["compare", "--teacher", TEACHER, "digits/student.yaml", f"{KDPP},half.yaml", "--out", "out"]
    status, out, err = ndkd(*command, "--print-commands")
    assert status == 0, err
    teacher, student, kdpp = out.splitlines()
    assert teacher == f"ndkd fit --config {TEACHER}"
    assert student.startswith("ndkd fit --config digits/student.yaml --seed_everything 0 --run_dir out/student-seed0")
    assert kdpp.startswith(f"ndkd fit --config {KDPP} --config half.yaml --seed_everything 0 --run_dir ")


def test_export_takes_names(empty):
    status, _, err = ndkd("export", "no.ckpt", "--config", "digits/kdd.yaml", "--out", "out/model.safetensors")
    assert status == 2
    assert err.startswith("ndkd: config digits/kdd.yaml does not exist; did you mean digits/kd.yaml")
