"""What is built and installed: the source distribution holds all, the wheel of it works in an empty folder."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.command import REPOSITORY

HELD = ("benchmarks", "configs", "docs", "ndkd", "notebooks", "results", "tests")  # folders of a source distribution
TOPS = {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "README.md", "mkdocs.yml"}
TOPS |= {"pyproject.toml", "requirements.txt", "setup.cfg", "setup.py", "Dockerfile", ".dockerignore"}
INSTRUCTIONS = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])"
# first on the path, whatever an environment puts there
START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from ndkd.cli import main; sys.exit(main())"


def build(kind, source, folder):
    """As every builder does; the one new file."""
    command = [sys.executable, "-c", BUILD.format(kind), folder]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = folder.iterdir()
    return file


def files_below(*folders):
    """Files of the checkout by their paths, but what is made of them."""
    found = {file for folder in folders for file in (REPOSITORY / folder).rglob("*") if file.is_file()}
    made = {"__pycache__", ".ipynb_checkpoints", ".ruff_cache", ".pytest_cache"}
    found = {file for file in found if not made & {*file.parts}}
    return {file.relative_to(REPOSITORY).as_posix() for file in found}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution of a copy of this checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in HELD:
        shutil.copytree(REPOSITORY / name, source / name)
    for name in TOPS:
        shutil.copy(REPOSITORY / name, source / name)
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel that the source distribution makes."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A function that runs ``ndkd`` as it is installed from the wheel, in a folder that is empty at first."""
    packages, empty = tmp_path_factory.mktemp("packages"), tmp_path_factory.mktemp("empty")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", packages, wheel]
    subprocess.run(pip, check=True, capture_output=True)

    def run(*arguments):
        command = [sys.executable, "-c", START, str(packages), *arguments]
        return subprocess.run(command, cwd=empty, capture_output=True, text=True)

    run.packages, run.folder = packages, empty
    return run


def test_the_source_distribution_holds_all(sdist):
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert files_below(*HELD) <= held
    assert held >= TOPS
    assert {Path(name).parts[0] for name in held - {""}} == {*HELD, *TOPS, "PKG-INFO", "ndkd.egg-info"}
    assert not [name for name in held if "__pycache__" in name]


def test_the_wheel_holds_the_package_and_its_configurations(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        shipped = {name: archive.read(f"ndkd/{name}") for name in files_below("configs")}
    assert held == files_below("ndkd") | {f"ndkd/{name}" for name in shipped}
    assert {"ndkd/py.typed", "ndkd/templates/report.html", "ndkd/configs/digits/kd++.yaml"} <= held
    assert shipped == {name: (REPOSITORY / name).read_bytes() for name in shipped}


def instructions():
    """The lines of the Dockerfile that are no comments, as (instruction, arguments)."""
    text = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_dockerfile_installs_and_starts_ndkd_as_nobody_special():
    lines = instructions()
    assert {name for name, _ in lines} == INSTRUCTIONS
    given = dict(lines)  # of each instruction the last
    image, version = given["FROM"].split(":")
    assert (image, re.fullmatch(r"3\.1[0-3]-slim-[a-z]+", version) is not None) == ("python", True)
    assert [text for name, text in lines if name == "COPY"] == [". ."]
    assert "python -m pip install" in (REPOSITORY / "README.md").read_text()
    assert [text for name, text in lines if name == "RUN"][0] == "python -m pip install --no-cache-dir ."
    assert (given["USER"], json.loads(given["ENTRYPOINT"])) == ("1000", ["ndkd"])
    assert [name for name, _ in lines][-2:] == ["ENTRYPOINT", "CMD"]


def test_what_docker_copies_is_enough_to_build_the_same_wheel(wheel, tmp_path):
    first, *patterns = (REPOSITORY / ".dockerignore").read_text().split("\n", 1)[1].split()
    copied = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    assert (first, patterns[len(copied) :]) == ("*", ["**/__pycache__"])
    source = tmp_path / "source"
    for name in copied:
        path = REPOSITORY / name
        source.mkdir(exist_ok=True)
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(path, source / name, ignore=skipped) if path.is_dir() else shutil.copy(path, source / name)
    (tmp_path / "wheel").mkdir()
    with zipfile.ZipFile(wheel) as wanted, zipfile.ZipFile(build("wheel", source, tmp_path / "wheel")) as found:
        assert sorted(found.namelist()) == sorted(wanted.namelist())


def test_a_teacher_is_trained_in_an_empty_folder_by_a_short_name(installed):
    short = ["--trainer.max_epochs=1", "--data.init_args.train_size=40"]
    short += [f"--trainer.limit_{part}_batches=1" for part in ("val", "test")]
    done = installed("fit", "--config", "digits/teacher.yaml", *short)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("run folder: runs/digits/teacher\n")
    assert (installed.folder / "runs/digits/teacher/checkpoints/last.ckpt").is_file()
    assert {file.name for file in installed.folder.iterdir()} == {"runs"}


def test_the_installed_one_lists_its_own_configurations(installed):
    listed = installed("configs")
    assert "\n  digits/kd++.yaml  " in listed.stdout
    place = installed.packages / "ndkd" / "configs" / "digits" / "kd++.yaml"
    place.write_text("# Changed\n" + place.read_text())
    assert installed("configs", "configs/digits/kd++.yaml").stdout.startswith("# Changed\n")


def test_a_mistyped_name_far_from_any_checkout(installed):
    done = installed("fit", "--config", "configs/digits/kdd.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("ndkd: config configs/digits/kdd.yaml does not exist; did you mean configs/digits/kd")
