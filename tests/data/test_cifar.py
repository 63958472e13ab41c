"""CIFAR through torchvision, on a small archive of the same form."""

import hashlib
import pickle
import tarfile

import numpy as np
import pytest
import torch

from ndkd.data import CIFAR10DataModule, CIFAR100DataModule
from ndkd.errors import NdkdError


def digest(file):
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.fixture(params=[CIFAR10DataModule, CIFAR100DataModule], ids=["10", "100"])
def small(request, tmp_path, monkeypatch):
    """A DataModule class whose archive holds 200 training and 100 test images, and the folder of the archive."""
    module, random = request.param, np.random.default_rng(0)
    dataset, classes = module.dataset, module.num_classes
    folder = tmp_path / "made" / dataset.base_folder
    folder.mkdir(parents=True)

    def batch(name, size):
        labels = [k % classes for k in range(size)]
        data = random.integers(0, 256, (size, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels" if classes == 10 else "fine_labels": labels}))
        return [name, digest(folder / name)]

    meta = {**dataset.meta}
    (folder / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: [f"class {k}" for k in range(classes)]}))
    archive = tmp_path / "data" / dataset.filename
    archive.parent.mkdir()
    monkeypatch.setattr(dataset, "train_list", [batch("train", 200)])
    monkeypatch.setattr(dataset, "test_list", [batch("test", 100)])
    monkeypatch.setattr(dataset, "meta", meta | {"md5": digest(folder / meta["filename"])})
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, dataset.base_folder)
    monkeypatch.setattr(dataset, "tgz_md5", digest(archive))
    monkeypatch.setattr(dataset, "url", f"file://{tmp_path}/nowhere/{dataset.filename}")
    return module, archive


def test_an_archive_that_is_there_is_unpacked_and_read(small):
    module, archive = small
    data = module(archive.parent, download=False, batch_size=64)
    data.prepare_data()
    data.setup()
    assert len(data.class_names) == data.num_classes
    images, target = data.parts["train"]
    assert images.shape == (200, 32, 32, 3)
    assert target.tolist() == [k % data.num_classes for k in range(200)]
    assert sum(len(target) for _, target in data.test_dataloader()) == 100
    assert data.validates_on_test
    batch = next(iter(data.class_mean_dataloader()))[0]
    assert torch.equal(batch, torch.from_numpy(images[:64]).permute(0, 3, 1, 2) / 255)


def test_neither_files_nor_a_download(small):
    module, archive = small
    archive.unlink()
    where = f"get {module.dataset.url} elsewhere and put it at {archive}"
    message = rf"are not there, and a download did not help \(.*\); {where}$"
    for download in (True, False):
        with pytest.raises(NdkdError, match=message):
            module(archive.parent, download=download).prepare_data()


def test_a_truncated_archive_is_named(small):
    module, archive = small
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(NdkdError, match=f"^{module.dataset.__name__}: {archive} and .* are damaged, and a download"):
        module(archive.parent).prepare_data()
