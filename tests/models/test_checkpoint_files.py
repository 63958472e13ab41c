"""Checkpoints on the Hugging Face Hub, whose client is replaced by a folder."""

import inspect
import io
import pickle
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save

from ndkd.analysis import load_run
from ndkd.commands.compare_plan import _check_teacher
from ndkd.distillation.compression import Compression
from ndkd.distillation.recordings import identity_of
from ndkd.models import ModelConfig, build_model
from ndkd.models.checkpoint import read_checkpoint
from ndkd.models.checkpoint_files import _fetched, existing_file, hub_file
from ndkd.models.detectors import build_detector
from tests.command import SHORT, ndkd, refusal
from tests.stub_hub import StubHub, failed

LOG_IN = "log in with hf auth login, or set HF_TOKEN"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub without any repository."""
    _fetched.cache_clear()
    yield StubHub(tmp_path / "hub", monkeypatch)
    _fetched.cache_clear()


def state(model="cifar/resnet8", classes=10):
    return build_model(model, classes).state_dict()


def pickled(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


class Harmful:
    def __reduce__(self):
        return Path("harmed").touch, ()


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("hf://org/name/model.safetensors", ("org/name", None, "model.safetensors")),
        ("hf://org/name@v1.0/a/b.pth", ("org/name", "v1.0", "a/b.pth")),
        ("hf://org/name@refs/pr/3/b.pth", ("org/name", "refs/pr/3", "b.pth")),
        ("hf://org/name", ("org/name", None, None)),
        ("hf://org/name@main", ("org/name", "main", None)),
        (Path("hf://org/name/model.safetensors"), ("org/name", None, "model.safetensors")),  # one slash is left
        ("hf", None),
        ("runs/hf://org/name/b.pth", None),
    ],
)
def test_names(name, wanted):
    found = hub_file(name)
    assert (found and tuple(found)) == wanted
    if found:
        assert str(found) == str(name).replace("hf:/o", "hf://o")


@pytest.mark.parametrize(
    "name",
    ["hf://", "hf://org", "hf://org/name@", "hf://org/name/", "hf:///org/name/x.pth", "hf://org/name/../../x.pth"],
)
def test_what_is_no_name(name):
    assert refusal(ModelConfig, "cifar/resnet8", checkpoint=name) == (
        f"checkpoint {name}: wanted hf://NAMESPACE/NAME/FILE or hf://NAMESPACE/NAME@REVISION/FILE"
    )


# ---- files -----------------------------------------------------------------------------------------------------------


def test_the_stub_is_called_as_the_client_is(hub, monkeypatch):
    stub = inspect.signature(huggingface_hub.hf_hub_download)
    monkeypatch.undo()
    assert stub == inspect.signature(huggingface_hub.hf_hub_download)


@pytest.mark.parametrize(("file", "written"), [("model.safetensors", save), ("old/best.pth", pickled)])
def test_a_model_with_weights_of_the_hub(hub, file, written):
    weights = state()
    hub.add(file, written(weights), "org/name@v1")
    hub.add("README.md", b"", "org/name")
    config = ModelConfig("cifar/resnet8", checkpoint=f"hf://org/name@v1/{file}")
    built = config.build(10, None, None).model.state_dict()
    assert all(torch.equal(built[key], weights[key]) for key in weights)
    config.build(10, None, None)
    assert hub.asked == [("org/name", file, "v1")]  # once in a process


def test_a_detectors_backbone(hub):
    weights = state("torchvision/resnet18", 1000)
    hub.add("model.safetensors", save(weights))
    model = build_detector("resnet18", 3, True, "hf://org/name/model.safetensors")
    assert torch.equal(model.backbone.body.conv1.weight, weights["conv1.weight"])


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["b.safetensors", "model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["pytorch_model.bin", "weights/b.safetensors"], "weights/b.safetensors"),
        (["README.md", "best.pth"], "best.pth"),
    ],
)
def test_without_a_file_the_only_one_is_taken_safetensors_first(hub, files, taken):
    for file in files:
        hub.add(file, b"")
    assert existing_file("hf://org/name") == hub.folder / "org/name" / taken


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.safetensors", "b.safetensors", "c.bin"], "has a.safetensors, b.safetensors; add the name of one of them"),
        (["README.md"], "has no file of weights; name another repository"),
    ],
)
def test_without_a_file_where_there_is_not_one(hub, files, message):
    for file in files:
        hub.add(file, b"")
    assert refusal(read_checkpoint, "hf://org/name") == f"checkpoint hf://org/name: the repository {message}"


def test_a_file_of_the_hub_is_read_as_carefully_as_any(hub, folder):
    hub.add("best.ckpt", pickled({"weights": Harmful()}))
    hub.add("cut.safetensors", save(state())[:100])
    assert refusal(read_checkpoint, "hf://org/name/best.ckpt").startswith(
        "checkpoint hf://org/name/best.ckpt is not a plain weights file: it holds a "
    )
    assert not Path("harmed").exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(hub.folder / "org/name/best.ckpt", weights_only=True)
    assert refusal(read_checkpoint, "hf://org/name/cut.safetensors").startswith(
        "checkpoint hf://org/name/cut.safetensors is damaged, or not a checkpoint: "
    )


# ---- what goes wrong -------------------------------------------------------------------------------------------------

FAILURES = {
    "no such file": (
        "hf://org/name/modle.safetensors",
        None,
        "the repository has no such file; did you mean model.safetensors?",
    ),
    "no such repository": (
        "hf://org/nam/model.safetensors",
        None,
        f"there is no such repository, or it is private: correct its name, or {LOG_IN}",
    ),
    "no such revision": (
        "hf://org/name@v9/model.safetensors",
        None,
        "the repository has no such revision; correct what is behind the @",
    ),
    "a name that none can have": ("hf://org/na--me/a.pth", None, "no repository can be called that: %"),
    "gated": (
        "hf://org/name/model.safetensors",
        failed(errors.GatedRepoError, 403),
        f"the repository is gated: ask for access on its page, and {LOG_IN}",
    ),
    "no network": (
        "hf://org/name/model.safetensors",
        errors.LocalEntryNotFoundError("cannot find the requested files in the disk cache"),
        "the Hub cannot be reached, and its cache here lacks it: see the network, and HF_HUB_OFFLINE",
    ),
    "no answer": (
        "hf://org/name/model.safetensors",
        TimeoutError("timed\nout"),
        "the Hub cannot be reached (TimeoutError: timed out)",
    ),
    "a token that is not known": (
        "hf://org/name/model.safetensors",
        failed(errors.HfHubHTTPError, 401),
        f"the Hub does not know who you are: {LOG_IN}",
    ),
    "a server in trouble": (
        "hf://org/name/model.safetensors",
        failed(errors.HfHubHTTPError, 500, "500 Server Error"),
        "the Hub refuses: HfHubHTTPError: 500 Server Error",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_goes_wrong_is_one_line(hub, failure):
    name, hub.down, wanted = FAILURES[failure]
    hub.add("model.safetensors", b"")
    said = refusal(read_checkpoint, name)
    assert said.startswith(f"checkpoint {name}: {wanted.partition('%')[0]}")
    assert existing_file(name) is None


def test_a_full_disk_is_not_the_hubs_fault(hub):
    hub.down = OSError(28, "No space left on device", "/cache/blobs/x")
    with pytest.raises(OSError, match="No space left"):
        read_checkpoint("hf://org/name/model.safetensors")


def test_without_the_client(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refusal(read_checkpoint, "hf://org/name/a.pth") == (
        "the Hugging Face Hub needs a package: python -m pip install 'ndkd[hub]'"
    )


# ---- commands --------------------------------------------------------------------------------------------------------


def test_a_recorded_teacher_is_told_by_its_contents(hub, tmp_path):
    weights = state()
    hub.add("model.safetensors", save(weights))
    (tmp_path / "local.safetensors").write_bytes(save(weights))
    names = ["hf://org/name/model.safetensors", tmp_path / "local.safetensors"]
    first, second = (identity_of(ModelConfig("cifar/resnet8", name), None, {}, Compression()) for name in names)
    assert first["weights"] == second["weights"] is not None
    assert first["teacher"]["checkpoint"] == "hf://org/name/model.safetensors"
    gone = identity_of(ModelConfig("cifar/resnet8", "hf://org/name/gone.pth"), None, {}, Compression())
    assert gone["weights"] is None  # its name and options must do


def test_compare_lets_a_teacher_of_the_hub_through():
    def config(checkpoint):
        return {"model": {"init_args": {"teacher": {"checkpoint": checkpoint}}}}

    _check_teacher("kd", config("hf://org/name/model.safetensors"), None)
    assert "wanted hf://NAMESPACE/NAME/FILE" in refusal(_check_teacher, "kd", config("hf://org"), None)


def test_a_fit_and_its_evaluation(workplace, hub):
    """By name in the configuration that the run keeps; an evaluation from the run needs no Hub."""
    weights = read_checkpoint("runs/digits/teacher/checkpoints/last.ckpt")["state_dict"]
    hub.add("model.safetensors", save({key: value.contiguous() for key, value in weights.items()}))
    teacher = "--model.init_args.teacher.checkpoint=hf://org/name/model.safetensors"
    fit = ["fit", "--config", "configs/digits/kd++.yaml", *SHORT, "--trainer.max_epochs=1", "--run_dir=runs/hub"]
    status, _, err = ndkd(*fit, teacher, "--teacher_cache=recorded")
    assert status == 0, err
    assert "checkpoint: hf://org/name/model.safetensors\n" in Path("runs/hub/config.yaml").read_text()
    module, _ = load_run("runs/hub")
    assert module.teacher is not None
    _fetched.cache_clear()
    hub.down = errors.LocalEntryNotFoundError("no")
    assert ndkd("test", "--ckpt_path", "runs/hub/checkpoints/last.ckpt")[0] == 0
    assert load_run("runs/hub")[0].teacher is None
    status, _, err = ndkd(*fit[:-1], "--run_dir=runs/other", teacher)
    assert (status, err.splitlines()[-1]) == (
        2,
        "ndkd: checkpoint hf://org/name/model.safetensors: the Hub cannot be reached, and its cache here lacks it: see "
        "the network, and HF_HUB_OFFLINE",
    )
    assert not Path("runs/other/config.yaml").exists()


def test_a_runs_checkpoint_on_the_hub(workplace, hub):
    hub.add("best.ckpt", Path("runs/digits/teacher/checkpoints/best.ckpt").read_bytes())
    test = ["test", "--ckpt_path", "hf://org/name/best.ckpt"]
    status, here, err = ndkd("test", "--ckpt_path", "runs/digits/teacher/checkpoints/best.ckpt")
    assert status == 0, err
    status, there, err = ndkd(*test, "--config", "configs/digits/teacher.yaml", *SHORT)
    assert status == 0, err
    assert there.splitlines()[-1] == here.splitlines()[-1]
    status, _, err = ndkd(*test)
    assert (status, err) == (
        2,
        "ndkd: checkpoint hf://org/name/best.ckpt is not in a run folder: give its --config FILE too\n",
    )
    status, _, err = ndkd("export", "hf://org/name/best.ckpt", "--out", "new/model.safetensors")
    assert (status, "is not in a run folder" in err) == (2, True)
