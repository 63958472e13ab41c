"""CIFAR through torchvision, on a small archive of the same form."""

import hashlib
import pickle
import re
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

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
    images, target = data.splits["train"]
    assert images.shape == (200, 32, 32, 3)
    assert target.tolist() == [k % data.num_classes for k in range(200)]
    assert sum(len(target) for _, target in data.test_dataloader()) == 100
    assert data.validates_on_test
    batch = next(iter(data.class_mean_dataloader()))[0]
    assert torch.equal(batch, torch.from_numpy(images[:64]).permute(0, 3, 1, 2) / 255)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_files_that_are_not_there_are_downloaded(small, monkeypatch, tmp_path):
    module, archive = small
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=archive.parent)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(module.dataset, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        data = module(tmp_path / "empty")
        data.prepare_data()
        server.shutdown()
    data.setup()
    assert len(data.splits["train"][1]) == 200


def unpacked_alone(module, archive):
    """Unpack the archive and remove it; the folder of the unpacked files."""
    module(archive.parent, download=False).prepare_data()
    archive.unlink()
    return archive.parent / module.dataset.base_folder


def spoil_archive(module, archive):
    archive.write_bytes(archive.read_bytes()[:1000])
    return "{archive} is damaged"


def spoil_images(module, archive):
    file = unpacked_alone(module, archive) / "test"
    file.write_bytes(file.read_bytes()[:1000])
    return "{unpacked}/test is damaged"


def spoil_names(module, archive):
    (unpacked_alone(module, archive) / module.dataset.meta["filename"]).write_bytes(b"")
    return "{unpacked}/{meta} is damaged"


def remove_images(module, archive):
    (unpacked_alone(module, archive) / "train").unlink()
    return "{unpacked} is incomplete"


def remove_all(module, archive):
    archive.unlink()
    return "neither {archive} nor {unpacked} is there"


@pytest.mark.parametrize("spoil", [spoil_archive, spoil_images, spoil_names, remove_images, remove_all])
def test_what_is_wrong_is_named(small, spoil):
    module, archive = small
    dataset = module.dataset
    meta, unpacked = dataset.meta["filename"], archive.parent / dataset.base_folder
    found = re.escape(spoil(module, archive).format(archive=archive, unpacked=unpacked, meta=meta))
    elsewhere = f"get {dataset.url} elsewhere and put it at {archive}$"
    with pytest.raises(NdkdError, match=f"^{dataset.__name__}: {found}; set download: true, or {elsewhere}"):
        module(archive.parent, download=False).prepare_data()
    with pytest.raises(
        NdkdError, match=rf"^{dataset.__name__}: {found}, and a download did not help \(.*\); {elsewhere}"
    ):
        module(archive.parent).prepare_data()


def test_no_network_without_leave(small, monkeypatch):
    module, archive = small
    spoil_archive(module, archive)
    monkeypatch.setattr("urllib.request.urlopen", lambda *args: pytest.fail("went to the network"))
    with pytest.raises(NdkdError, match="is damaged; set download: true"):
        module(archive.parent, download=False).prepare_data()
