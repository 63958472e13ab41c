"""Weights from files: every usual wrapping is read, anything else is refused in one line."""

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ndkd.models import ModelConfig, build_model
from ndkd.models.checkpoint import load_weights, model_weights, read_checkpoint


def net(**layers):
    return nn.Sequential(OrderedDict(layers))


def plain(width=2):
    return net(conv=nn.Conv2d(3, width, 1), norm=nn.BatchNorm2d(width), fc=nn.Linear(width, 3))


MODELS = {
    "plain": plain,
    **{name: partial(lambda name: net(**{name: plain()}), name) for name in ("model", "student", "module")},
    "student and more": lambda: net(student=plain(), other=plain()),
}


def prefixed(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}


def of_ndkd(state, student="student.model."):
    """What a run of ours saves."""
    rest = {"projector.0.weight": torch.ones(4), "losses.nd.x": torch.ones(1), "class_means": torch.ones(3, 4)}
    hyper_parameters = {"student": {"name": "cifar/resnet8", "mean": [0.5] * 3}, "num_classes": 3}
    return {"epoch": 1, "state_dict": prefixed(state, student) | rest, "hyper_parameters": hyper_parameters}


CONTENTS = {
    "plain": lambda state: state,
    "module.": lambda state: prefixed(state, "module."),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "beside others": lambda state: {**state, "epoch": 3, "names": ["a"]},
    "model": lambda state: {"model": state},
    "model, module.": lambda state: {"model": prefixed(state, "module.")},
    "model beside others": lambda state: {"model": state, "epoch": 3, "best": 71.2, "optimizer": {"state": {}}},
    **{
        f"state_dict, {prefix}": partial(lambda prefix, state: {"state_dict": prefixed(state, prefix)}, prefix)
        for prefix in ("", "module.", "student.", "module.student.", "model.", "model.module.")
    },
    **{
        name: partial(lambda name, state: {name: state, "epoch": 3, "optimizer": {"state": {}}}, name)
        for name in ("model_state_dict", "net", "params", "weights", "ema_state_dict", "state_dict_ema", "teacher_net")
    },
    **{
        f"{prefix} beside others": partial(
            lambda prefix, state: {"state_dict": prefixed(state, prefix) | {"head.0.weight": torch.ones(2)}}, prefix
        )
        for prefix in ("backbone.", "net.", "encoder.", "model.", "module.encoder.")
    },
    "a dictionary of dictionaries": lambda state: {"checkpoint": {"model": prefixed(state, "module.")}, "config": {}},
    "an average beside it": lambda state: {
        "state_dict_ema": {key: value + 1 for key, value in state.items()},
        "net": state,
    },
    "a teacher beside it": lambda state: (
        prefixed({key: value + 1 for key, value in state.items()}, "teacher.") | prefixed(state, "student.")
    ),
    "ndkd": of_ndkd,
    "ndkd, compiled": partial(of_ndkd, student="student.model._orig_mod."),
}


def randomised(model):
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
    return model


def assert_same(model, other):
    state = other.state_dict()
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


# ---- read -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("wrap", CONTENTS.values(), ids=CONTENTS)
def test_wrappings(tmp_path, make, wrap):
    saved, model, path = randomised(make()), make(), tmp_path / "weights.pth"
    torch.save(wrap(saved.state_dict()), path)
    load_weights(model, model_weights(read_checkpoint(path), model.state_dict()), "checkpoint")
    assert_same(model, saved)


@pytest.mark.parametrize("prefix", ["", "module.", "student.model."])
def test_safetensors(tmp_path, prefix):
    saved, model, path = randomised(plain()), plain(), tmp_path / "weights.safetensors"
    save_file(prefixed(saved.state_dict(), prefix), path)
    load_weights(model, model_weights(read_checkpoint(str(path)), model.state_dict()), "checkpoint")
    assert_same(model, saved)


@pytest.mark.parametrize("numpy_name", [b"numpy._core", b"numpy.core"])  # since NumPy 2, and before
def test_options_and_accuracies_beside_the_weights(tmp_path, numpy_name):
    saved, model, path = randomised(plain()), plain(), tmp_path / "weights.pth"
    beside = {"opt": argparse.Namespace(lr=0.1, name="x"), "best_acc": np.float64(72.3), "epoch": np.int64(240)}
    torch.save({"model": saved.state_dict(), **beside}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray", b"c" + numpy_name + b".multiarray"))
    content = read_checkpoint(path)
    load_weights(model, model_weights(content, model.state_dict()), "checkpoint")
    assert_same(model, saved)
    assert {name: content[name] for name in beside} == beside


def test_old_format(tmp_path):
    saved, model, path = randomised(plain()), plain(), tmp_path / "weights.pth"
    torch.save(saved.state_dict(), path, _use_new_zipfile_serialization=False)
    load_weights(model, model_weights(read_checkpoint(path)), "checkpoint")
    assert_same(model, saved)


def test_weights_without_a_model():
    """Everything that can be stripped is."""
    state = plain().state_dict()
    for name in ("plain", "module.", "compiled", "model, module.", "state_dict, module.student.", "ndkd", "net"):
        assert list(model_weights(CONTENTS[name](state))) == list(state)


def test_content_stays_whole(tmp_path):
    content = of_ndkd(plain().state_dict())
    torch.save(content, tmp_path / "last.ckpt")
    read = read_checkpoint(tmp_path / "last.ckpt")
    assert read["hyper_parameters"] == content["hyper_parameters"]
    model_weights(read)
    assert read["state_dict"].keys() == content["state_dict"].keys()


# ---- refused ----------------------------------------------------------------------------------------------------


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def save_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [torch.save, save_pickle])
def test_code_in_a_file_is_not_run(refused, tmp_path, save):
    path, folder = tmp_path / "weights.pth", tmp_path / "evil"
    save({"a": 1, "b": Evil(folder)}, path)
    with refused(f"checkpoint {path} is not a plain weights file: ", ""):
        read_checkpoint(path)
    assert not folder.exists()


def test_the_evil_file_works(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "evil")))
    assert (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        (plain(), "torch.nn.modules.container.Sequential"),
        ({"steps": range(3)}, "range"),
    ],
    ids=["model", "range"],
)
def test_objects_in_a_file(refused, tmp_path, content, culprit):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with refused(f"checkpoint {path} is not a plain weights file: ", "Save its state_dict() instead") as error:
        read_checkpoint(path)
    assert culprit in str(error.value)
    assert "\x1b" not in str(error.value)
    assert "weights_only" not in str(error.value)  # no advice to run the file's code


def saved_bytes(tmp_path, **options):
    torch.save({"a": torch.zeros(200)}, tmp_path / "whole.pth", **options)
    return (tmp_path / "whole.pth").read_bytes()


DAMAGED = {
    "empty": lambda tmp_path: b"",
    "text": lambda tmp_path: b"hello world\n",
    "page": lambda tmp_path: b"<!DOCTYPE html>\n<html></html>\n",
    "JSON": lambda tmp_path: b'{"a": [1, 2]}',
    "half a zip": lambda tmp_path: saved_bytes(tmp_path)[:900],
    "start of a zip": lambda tmp_path: saved_bytes(tmp_path)[:10],
    "half an old file": lambda tmp_path: saved_bytes(tmp_path, _use_new_zipfile_serialization=False)[:-100],
    "start of an old file": lambda tmp_path: saved_bytes(tmp_path, _use_new_zipfile_serialization=False)[:50],
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files(refused, tmp_path, damage, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(damage(tmp_path))
    with refused(f"checkpoint {path} is ", ""):
        read_checkpoint(path)


def test_any_bytes(refused, tmp_path):
    path = tmp_path / "weights.pth"
    for first in range(256):
        path.write_bytes(bytes([first]) * 40)
        with refused(f"checkpoint {path} is ", ""):
            read_checkpoint(path)


def test_zip_of_something_else(refused, tmp_path):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "hello")
    with refused(f"checkpoint {path} is damaged, or not a checkpoint: ", ""):
        read_checkpoint(path)


def test_file_that_may_not_be_read(refused, tmp_path, monkeypatch):
    def denied(path, *args, **options):
        raise PermissionError(13, "Permission denied", str(path))

    path = tmp_path / "weights.pth"
    path.write_bytes(b"x")
    monkeypatch.setattr(torch, "load", denied)
    with refused(f"checkpoint {path} ", "Permission denied", ""):
        read_checkpoint(path)


@pytest.mark.parametrize(("content", "kind"), [(torch.zeros(2), "Tensor"), ([1], "list"), (None, "NoneType")])
def test_file_without_a_dictionary(refused, tmp_path, content, kind):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with refused(f"checkpoint {path}: wanted a dictionary of tensors, got a {kind}"):
        read_checkpoint(path)


def test_file_that_is_not_there(refused, tmp_path):
    path = tmp_path / "weights.pth"
    with refused(f"checkpoint {path} does not exist; train it first or correct the path"):
        read_checkpoint(path)
    path.mkdir()
    with refused(f"checkpoint {path} is a folder; name a file in it"):
        read_checkpoint(path)
    (path / "last.ckpt").touch()
    with refused(f"checkpoint {path} is a folder; name a file in it: {path / 'last.ckpt'}"):
        read_checkpoint(path)


# ---- fit --------------------------------------------------------------------------------------------------------


@pytest.fixture
def refuses_weights(refused):
    """Loading changed weights fails with this difference, and changes nothing."""

    def check(model, weights, difference):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with refused(f"file x does not fit the model; {difference}. Is it another architecture or data set?"):
            load_weights(model, weights, "file x")
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    return check


def test_missing_and_unexpected_keys(refuses_weights):
    model, weights = plain(), randomised(plain()).state_dict()
    weights["head.weight"] = weights.pop("fc.weight")
    refuses_weights(model, weights, "missing: fc.weight; unexpected: head.weight")
    weights["fc.weight"] = torch.zeros(3, 2)
    refuses_weights(model, weights, "unexpected: head.weight")


def test_wrong_shapes(refuses_weights):
    weights = randomised(plain()).state_dict()
    weights["fc.weight"], weights["fc.bias"] = torch.zeros(4, 2), torch.zeros(4)
    shapes = "fc.weight (4, 2) instead of (3, 2), fc.bias (4,) instead of (3,)"
    refuses_weights(plain(), weights, f"wrongly shaped: {shapes}")
    del weights["conv.bias"]
    weights["x"] = torch.zeros(1)
    refuses_weights(plain(), weights, f"missing: conv.bias; unexpected: x; wrongly shaped: {shapes}")


def test_long_lists_are_cut(refuses_weights):
    keys = list(plain().state_dict())
    assert len(keys) == 9
    refuses_weights(plain(), {}, f"missing: {', '.join(keys[:4])} and 4 more")
    refuses_weights(
        plain(), plain().state_dict() | {f"x{k}": torch.ones(1) for k in range(4)}, "unexpected: x0, x1, x2, x3"
    )
    wide = "conv.weight (5, 3, 1, 1) instead of (2, 3, 1, 1), conv.bias (5,) instead of (2,)"
    wide += ", norm.weight (5,) instead of (2,), norm.bias (5,) instead of (2,)"
    refuses_weights(plain(), plain(5).state_dict(), f"wrongly shaped: {wide} and 3 more")


def test_file_without_weights(refuses_weights):
    weights = model_weights({"epoch": 3, "optimizer": {}}, plain().state_dict())
    assert weights == {}
    refuses_weights(plain(), weights, f"missing: {', '.join(list(plain().state_dict())[:4])} and 4 more")


def test_another_architecture(refused):
    model, weights = build_model("cifar/resnet8", 5), build_model("cifar/resnet14", 5).state_dict()
    with refused("file x does not fit the model; unexpected: layer1.1.conv1.weight, ", " and 32 more. ", ""):
        load_weights(model, weights, "file x")


def test_a_file_of_something_else_says_what_it_has(refused, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"epoch": 3, "generator": {"g.weight": torch.ones(2), "g.bias": torch.ones(2)}}, path)
    with refused(
        f"checkpoint {path} has no weights of this model; it has epoch, generator: g.weight, generator: g.bias"
    ):
        ModelConfig("cifar/resnet8", path).build(10, None, None)
