"""``ndkd export --push``: what is uploaded, and what is left where it cannot be; a folder stands for the Hub."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, errors

import ndkd.commands.export_card as export_card
from ndkd.models import ModelConfig
from tests.command import REPOSITORY, ndkd
from tests.stub_hub import StubHub, failed

CHECKPOINT = "runs/digits/teacher/checkpoints/last.ckpt"
WHOLE = ["README.md", "model.safetensors", "preprocess.json"]
LOG_IN = "log in with hf auth login, or set HF_TOKEN"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(export_card, "SECONDS", 1e-3)
    return StubHub(tmp_path / "hub", monkeypatch)


@pytest.fixture
def export(workplace, hub, tmp_path):
    """Export with these options: the folder, the exit status, and what was said."""

    def run(*options, folder="new"):
        out = tmp_path / folder / "model.safetensors"
        return out.parent, *ndkd("export", CHECKPOINT, "--out", out, *options)

    return run


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_the_folder_is_uploaded_and_its_address_printed(export, hub):
    folder, status, out, err = export("--push", "org/name")
    assert (status, err) == (0, "")
    assert out.splitlines()[-2:] == [f"written     {folder / WHOLE[1]}", "uploaded    https://huggingface.co/org/name"]
    there = hub.folder / "org/name"
    assert names(folder) == names(there) == WHOLE
    assert all((folder / name).read_bytes() == (there / name).read_bytes() for name in WHOLE)
    assert hub.visibility == {"org/name": False}
    built = ModelConfig("cifar/resnet20", "hf://org/name").build(10, None, None)  # and back again
    assert built.num_classes == 10


def test_the_card_begins_as_the_hub_wants(export):
    folder, *_ = export("--push", "name", "--license", "cc-by-4.0")
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict() == {
        "license": "cc-by-4.0",
        "library_name": "ndkd",
        "pipeline_tag": "image-classification",
        "tags": ["knowledge-distillation", "pytorch"],
        "metrics": ["accuracy"],
    }
    plain, *_ = export(folder="plain")
    text = (plain / "README.md").read_text()
    assert text.startswith("# cifar/resnet20\n")
    measured = re.compile(r"\| (latency|file) \|.*")
    assert measured.sub("", card.text.strip()) == measured.sub("", text.strip())


def test_the_licence_is_not_guessed(export, hub):
    folder, *_ = export("--push", "name")
    assert yaml.safe_load((folder / "README.md").read_text().split("---")[1])["license"] == "unknown"
    assert hub.visibility == {"me/name": False}  # the account's own


def test_a_private_repository(export, hub):
    assert export("--push", "org/name", "--private")[1] == 0
    assert hub.visibility == {"org/name": True}
    hub.visibility["org/seen"] = False
    folder, status, _, err = export("--push", "org/seen", "--private", folder="second")
    assert (status, err) == (
        2,
        f"ndkd: {folder} is written but not uploaded to org/seen: it is there and public: make it private on its page, "
        f"or leave --private out; then hf upload --private org/seen {folder}\n",
    )
    assert not (hub.folder / "org/seen").exists()


FAILURES = {
    "others/name": (
        None,
        "there is no such namespace, or you may not write there: correct it, or log in as another",
    ),
    "org/name": (failed(errors.HfHubHTTPError, 401), f"the Hub does not know who you are: {LOG_IN}"),
    "org/away": (ConnectionError("no route\nto host"), "the Hub cannot be reached (ConnectionError: no route to host)"),
    "org/offline": (errors.OfflineModeIsEnabled("no"), "HF_HUB_OFFLINE keeps its client from the network: unset it"),
    "org/bad": (
        failed(errors.BadRequestError, 400, "license must be one of …"),
        "the Hub refuses: BadRequestError: license must be one of …",
    ),
}


@pytest.mark.parametrize("repo", FAILURES)
def test_an_upload_that_fails_leaves_the_export(export, hub, repo):
    hub.down, why = FAILURES[repo]
    folder, status, out, err = export("--push", repo)
    said = f"{folder} is written but not uploaded to {repo}: {why}; then hf upload {repo} {folder}"
    assert (status, err) == (2, f"ndkd: {said}\n")
    assert names(folder) == WHOLE
    assert out.splitlines()[-1].startswith("written ")


def test_who_is_not_logged_in(export, hub):
    hub.token = None
    folder, status, _, err = export("--push", "org/name")
    assert (status, f"org/name: you are not logged in: {LOG_IN}; then hf upload org/name {folder}\n" in err) == (
        2,
        True,
    )
    assert (names(folder), hub.visibility) == (WHOLE, {})


def test_nothing_is_uploaded_of_an_export_that_fails(export, hub, monkeypatch):
    monkeypatch.setattr("ndkd.commands.export.latencies", lambda *_: 1 / 0)
    folder, status, _, err = export("--push", "org/name")
    assert (status, "ZeroDivisionError" in err) == (2, True)
    assert not folder.exists()
    assert hub.visibility == {}


MISTAKES = {
    "a/b/c": (["--push", "a/b/c"], "push 'a/b/c': wanted NAME or NAMESPACE/NAME; no repository can be called that: "),
    "empty": (["--push", ""], "push '': wanted NAME or NAMESPACE/NAME; "),
    "dashes": (["--push", "org/na--me"], "push 'org/na--me': wanted NAME or NAMESPACE/NAME; "),
    "an address": (
        ["--push", "https://huggingface.co/org/name"],
        "push 'https://huggingface.co/org/name': wanted NAME",
    ),
    "private": (["--private"], "--private has no effect without --push REPO: add it, or leave --private out"),
    "license": (["--license=mit"], "--license has no effect without --push REPO: add it, or leave --license out"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_before_the_export_begins(export, monkeypatch, mistake):
    monkeypatch.setattr("ndkd.commands.export.read_run", None)
    options, message = MISTAKES[mistake]
    folder, status, out, err = export(*options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"ndkd: {message}")
    assert not folder.exists()


def test_without_the_client(export, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    folder, status, _, err = export("--push", "org/name")
    assert (status, err) == (
        2,
        "ndkd: the Hugging Face Hub needs a package: python -m pip install 'ndkd[hub]'\n",
    )
    assert not folder.exists()
    assert export()[1] == 0  # an export that stays here needs none


def test_in_a_process_that_has_imported_nothing_of_the_client():
    code = "from pathlib import Path; from ndkd.commands.export_push import *; print(front_matter('onnx', 'mit')); "
    code += (
        "check_push('org/name', True, None, Path('new/model.onnx')); check_push('a/b/c', False, None, Path('new/x'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert yaml.safe_load(done.stdout.split("---")[1])["tags"] == ["knowledge-distillation", "onnx"]
    assert "NdkdError: push 'a/b/c': wanted NAME or NAMESPACE/NAME; " in done.stderr.splitlines()[-1]


def test_a_folder_with_other_files_is_not_uploaded(export, hub, tmp_path):
    Path(tmp_path / "new").mkdir()
    Path(tmp_path / "new" / "diary.txt").touch()
    folder, status, _, err = export("--push", "org/name")
    said = f"push: the folder of --out is uploaded, and {folder} holds diary.txt: name a new folder"
    assert (status, err) == (2, f"ndkd: {said}\n")
    assert (names(folder), hub.visibility) == (["diary.txt"], {})
