"""``ndkd configs``: the list, and one configuration as a file that stands alone."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ndkd.commands.configs import standing_alone
from ndkd.configuration.checks import PARTS
from ndkd.configuration.shipped import shipped_folder, shipped_names
from tests.command import ndkd

FOLDER = shipped_folder()


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ndkd"])


def printed(*arguments):
    status, out, err = ndkd("configs", *arguments)
    assert (status, err) == (0, "")
    return out


def whole(value, folder):
    """Entries in which the content of the files that they name stands, read as a parser would."""
    if isinstance(value, dict):
        return {key: whole(inner, folder) for key, inner in value.items()}
    if isinstance(value, str) and value.endswith(".yaml"):
        return yaml.safe_load((folder / value).read_text())
    return value


# ---- the list -------------------------------------------------------------------------------------------------------


def test_every_configuration_has_a_line_with_the_first_sentence_of_its_comment():
    lines = [line[2:].split(maxsplit=1) for line in printed().splitlines() if ".yaml " in line]
    known = [name for name in shipped_names() if Path(name).parent.name not in PARTS]
    assert sorted(name for name, _ in lines) == known
    for name, comment in lines:
        said = " ".join((FOLDER / name).read_text().replace("\n# ", " ").split())
        assert said.startswith(f"# {comment}")
        assert said[len(comment) + 2] in ".:;" or not (FOLDER / name).read_text().splitlines()[1].startswith("#")


def test_overlays_are_marked_and_groups_are_those_of_the_datasets():
    groups = printed().split("\n\n")
    heads = [group.splitlines()[0] for group in groups[1:-1]]
    assert heads == sorted({name.split("/")[0] for name in shipped_names() if "/" in name} - {*PARTS})
    assert groups[0].startswith("  cifar_wrn.yaml ")
    for group in groups[1:-1]:
        head, *lines = group.splitlines()
        assert all(line[2:].startswith(f"{head}/") for line in lines)
        signs = [line[0] for line in lines]
        assert signs == sorted(signs)  # overlays last
        marked = {line[2:].split()[0] for line in lines if line[0] == "+"}
        given = {line[2:].split()[0] for line in lines}
        assert marked == {name for name in given if "/overlays/" in name or head in ("loggers", "trainer")}
    assert groups[-1].startswith("+ is an overlay: give it after a configuration. ")


@pytest.mark.parametrize("name", ["digits", "./digits/", "configs/digits"])
def test_a_folder_alone(name):
    lines = printed(name).splitlines()
    assert lines[0] == "digits"
    assert len(lines) == 3 + sum(known.startswith("digits/") for known in shipped_names())


# ---- one of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_names())
def test_what_is_printed_has_the_same_entries(name):
    text = printed(name)
    assert yaml.safe_load(text) == whole(yaml.safe_load((FOLDER / name).read_text()), (FOLDER / name).parent)
    assert text.startswith((FOLDER / name).read_text().splitlines()[0])


@pytest.mark.parametrize(
    "name",
    ["digits/kd++.yaml", "cifar_wrn.yaml", "cifar100/r32x4_sv1/kd++.yaml", "coco/r50_mv2/kd++.yaml",
     "imagenet/r34_r18/kd++.yaml", "imagenet/regnety_deit/deit++.yaml"],
)  # fmt: skip
def test_what_is_printed_resolves_to_the_same(name):
    Path("mine.yaml").write_text(printed(name))
    mine, shipped = (ndkd("fit", "--config", file, "--print_config") for file in ("mine.yaml", name))
    assert mine[0] == 0, mine[2]
    assert yaml.safe_load(mine[1]) == yaml.safe_load(shipped[1])


def test_comments_stay_and_fragments_stand_in_their_places():
    text = printed("configs/cifar100/r56_r20/kd++.yaml")
    assert "../fragments" not in text
    assert (
        "    lr_scheduler:\n      # A tenth of the learning rate after 150, 180 and 210 epochs.\n"
        "      class_path: torch.optim.lr_scheduler.MultiStepLR\n"
    ) in text
    assert text.startswith("# ResNet-56 → ResNet-20 on CIFAR-100 with KD++")


def test_a_file_of_the_same_name_here_is_not_the_shipped_one():
    """So that ``ndkd configs digits/kd++.yaml > digits/kd++.yaml`` works, where the shell has made it empty."""
    Path("digits").mkdir()
    Path("digits/kd++.yaml").touch()
    assert printed("digits/kd++.yaml") == (FOLDER / "digits/kd++.yaml").read_text()


def test_files_within_files_lists_and_braces(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "c.yaml").write_text("# c\nz: [1, 2]\n")
    (tmp_path / "inner" / "b.yaml").write_text("# b\nx: c.yaml  # there\ny: nowhere.yaml\n")
    (tmp_path / "a.yaml").write_text("k: inner/b.yaml\nl: {m: inner/c.yaml, n: 1}\no:\n- inner/c.yaml\n- p\n")
    text = standing_alone(tmp_path / "a.yaml")
    assert yaml.safe_load(text) == {
        "k": {"x": {"z": [1, 2]}, "y": "nowhere.yaml"},
        "l": {"m": {"z": [1, 2]}, "n": 1},
        "o": [{"z": [1, 2]}, "p"],
    }
    assert text.startswith("k:\n  # b\n  x:\n    # c\n    z: [1, 2]")


WRONG = {
    "digits/kdd.yaml": "did you mean digits/kd.yaml, digits/kd++.yaml, ",
    "configs/digits/kdd.yaml": "did you mean configs/digits/kd.yaml, ",
    "digits/kd++": "did you mean digits/kd++.yaml, ",
    "digit": "did you mean ",
    "../setup.cfg": "ndkd configs lists them",
    "../configs/digits/kd++.yaml": "did you mean digits/kd++.yaml, ",
    "mine.yaml": "ndkd configs lists them",
    "zzz": "ndkd configs lists them",
}


@pytest.mark.parametrize("name", WRONG)
def test_an_unknown_name(name):
    status, out, err = ndkd("configs", name)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"ndkd: no configuration {name} comes with ndkd; {WRONG[name]}")


def test_two_names():
    message = "ndkd: unrecognized arguments: digits/kd.yaml; see ndkd configs --help\n"
    assert ndkd("configs", "digits/kd++.yaml", "digits/kd.yaml") == (2, "", message)


# ---- in a process ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["digits/kd++.yaml"], ["--help"]])
def test_it_answers_at_once_without_torch(arguments):
    code = "import sys; from ndkd.cli import main; main(); sys.exit('torch' in sys.modules)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, "configs", *arguments], capture_output=True, check=True)
    assert time.perf_counter() - started < 2  # half a second where nothing else runs
    assert b"digits/kd++.yaml" in done.stdout or b"KD++" in done.stdout


def test_a_reader_that_has_had_enough():
    command = f"{sys.executable} -m ndkd configs | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_writes_utf8_as_configurations_are_read(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    command = [sys.executable, "-m", "ndkd", "configs", "cifar_wrn.yaml"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert "→".encode() in done.stdout
