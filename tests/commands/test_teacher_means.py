"""A teacher's class means in a file, without a trainer."""

import pytest
import torch

from ndkd.callbacks import ClassMeans
from ndkd.callbacks.class_means_file import read_class_means
from ndkd.commands import teacher_means
from ndkd.commands.teacher_means import write_teacher_means
from ndkd.errors import NdkdError

DATA = {"class_path": "DigitsDataModule", "init_args": {"train_size": 40, "val_size": 20}}


@pytest.fixture
def teacher(teacher_checkpoint):
    """The entry of a configuration, as it is resolved."""
    return {"name": "cifar/resnet8", "checkpoint": str(teacher_checkpoint), "taps": ["layer1"], "compile": "default"}


def test_they_are_those_of_training_and_its_validation_norm(fit, make_module, terms, teacher, tmp_path):
    file = tmp_path / "deep" / "means.safetensors"
    write_teacher_means(file, teacher, DATA)
    stored = read_class_means(file)
    module, data = make_module(terms("ce", "nd")), teacher_means.configured(DATA)
    fit(module, ClassMeans(), data=data, limit_train_batches=1, limit_val_batches=0)
    torch.testing.assert_close(stored.class_means, module.class_means, rtol=0, atol=1e-5)
    norms = torch.cat([module.teacher_embeddings(batch)[0].norm(dim=1) for batch in data.val_dataloader()])
    assert stored.teacher_norm == pytest.approx(norms.mean().item(), rel=1e-5)
    assert stored.class_names == list("0123456789")
    fit(make_module(terms("nd")), ClassMeans(file=file), data=data, limit_train_batches=1, limit_val_batches=0)


def test_they_are_computed_once_and_that_is_said(teacher, teacher_checkpoint, tmp_path, monkeypatch, capsys):
    made, original = [], teacher_means.ClassSums
    monkeypatch.setattr(teacher_means, "ClassSums", lambda *args: made.append(0) or original(*args))
    file = tmp_path / "means.safetensors"
    for _ in range(2):
        write_teacher_means(file, teacher, DATA)
    assert len(made) == 1
    assert capsys.readouterr().out == f"the teacher's class means, one pass over the training images: {file}\n"
    write_teacher_means(file, teacher, {**DATA, "init_args": {"train_size": 50, "val_size": 20}})
    weights = torch.load(teacher_checkpoint, weights_only=True)
    other = tmp_path / "other.pth"
    torch.save(
        {name: value + 0.1 * torch.randn(value.shape) if value.ndim == 4 else value for name, value in weights.items()},
        other,
    )
    write_teacher_means(file, {**teacher, "checkpoint": str(other)}, DATA)
    assert len(made) == 3
    file.write_bytes(b"half")
    write_teacher_means(file, teacher, DATA)
    assert len(made) == 4


def test_a_teacher_that_is_gone(teacher, tmp_path):
    with pytest.raises(NdkdError, match="nowhere.pth does not exist"):
        write_teacher_means(tmp_path / "means.safetensors", {**teacher, "checkpoint": "nowhere.pth"}, DATA)
    assert not list(tmp_path.iterdir())
