"""The teacher's class means: their values, where they are kept, and what is wrong with them."""

import json
import re
import weakref

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from ndkd.callbacks import ClassMeans, FeatureStatistics, checkpoint_callbacks
from ndkd.callbacks.class_means_file import StoredMeans, read_class_means
from ndkd.distillation.module import DistillationModule
from ndkd.errors import NdkdError
from ndkd.models import ModelConfig, build_model
from ndkd.runs import Run
from tests.tiny_data import TinyData


def start(fit, module, callback=None, **options):
    """Fit for one step; the class means."""
    fit(module, callback or ClassMeans(), limit_train_batches=1, limit_val_batches=0, **options)
    return module.class_means


def brute_force(teacher_checkpoint, data, batches):
    """Mean of the embeddings per class, each image by itself, without the code under test."""
    teacher = ModelConfig("cifar/resnet8", checkpoint=teacher_checkpoint).build(10, data.mean, data.std).double().eval()
    embeddings = {}
    with torch.no_grad():
        for images, target in batches:
            for image, label in zip(images, target.tolist(), strict=True):
                embeddings.setdefault(label, []).append(teacher(image[None].double()).embedding[0])
    return torch.stack([torch.stack(embeddings[k]).mean(dim=0) for k in range(data.num_classes)]).float()


@pytest.fixture
def passes(monkeypatch):
    """Size of every batch that the teacher embeds for the class means, and whether it was in train mode."""
    seen, original = [], DistillationModule.teacher_embeddings

    def counted(module, batch):
        seen.append((len(batch[1]), any(part.training for part in module.teacher.modules())))
        return original(module, batch)

    monkeypatch.setattr(DistillationModule, "teacher_embeddings", counted)
    return seen


# ---- values -----------------------------------------------------------------------------------------------------


def test_means_of_one_pass_over_the_plain_images(fit, make_module, terms, tiny_data, teacher_checkpoint, passes):
    data = tiny_data(size=23, pad=2)
    means = start(fit, make_module(terms("nd")), data=data)
    images = torch.from_numpy(data.train_images).permute(0, 3, 1, 2) / 255
    plain = brute_force(teacher_checkpoint, data, [(images, torch.from_numpy(data.train_target))])
    torch.testing.assert_close(means, plain, rtol=0, atol=1e-6)
    assert passes == [(8, False), (8, False), (7, False)]


def test_means_of_augmented_images(fit, make_module, terms, tiny_data, teacher_checkpoint):
    data = tiny_data(pad=2)
    means = start(fit, make_module(terms("nd")), ClassMeans(augment=True), data=data)
    augmented, plain = (
        brute_force(teacher_checkpoint, data, data.class_mean_dataloader(flag)) for flag in (True, False)
    )
    torch.testing.assert_close(means, augmented, rtol=0, atol=1e-6)
    assert (means - plain).abs().max() > 1e-3


def test_memory_does_not_grow_with_the_images(fit, make_module, terms, tiny_data, monkeypatch):
    """However many batches there are, one is alive at a time, with its embeddings."""
    alive, most = [], []

    def count(tensor):
        alive.append(weakref.ref(tensor))
        most.append(sum(reference() is not None for reference in alive))

    def batches(data, augment=False):
        for number in range(40):
            images = torch.full((5, 3, 8, 8), number / 40)
            count(images)
            yield images, torch.arange(5) + number % 2 * 5

    def counted_embeddings(module, batch):
        embedding, target = embed(module, batch)
        count(embedding)
        return embedding, target

    embed = DistillationModule.teacher_embeddings
    monkeypatch.setattr(TinyData, "class_mean_dataloader", batches)
    monkeypatch.setattr(DistillationModule, "teacher_embeddings", counted_embeddings)
    start(fit, make_module(terms("nd")), ClassMeans())
    assert len(most) == 80
    assert max(most) <= 4


class KeepMeans(L.Callback):
    """Writes the means that each process trains with."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_start(self, trainer, pl_module):
        torch.save(pl_module.class_means, self.folder / f"{trainer.world_size}-{trainer.global_rank}.pt")


def test_two_processes_get_the_same(make_module, make_trainer, terms, tiny_data, tmp_path):
    for options in ({}, {"devices": 2, "strategy": "ddp_fork"}):
        callbacks = ClassMeans(), KeepMeans(tmp_path)
        trainer = make_trainer(*callbacks, limit_train_batches=1, limit_val_batches=0, **options)
        trainer.fit(make_module(terms("nd")), datamodule=tiny_data(size=23))
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=0, atol=1e-6)


def test_nothing_happens_where_no_term_wants_them(fit, make_module, terms, passes):
    assert start(fit, make_module(terms("ce", "kd")), ClassMeans(file="nowhere.json")) is None
    assert not passes


def test_foreign_data(fit, make_module, terms, teacher_checkpoint, tiny_data):
    data = tiny_data()
    images, target = torch.rand(20, 3, 8, 8), torch.arange(20) % 10
    loader = DataLoader(TensorDataset(images, target), batch_size=8)
    teacher = ModelConfig("cifar/resnet8", checkpoint=teacher_checkpoint, mean=list(data.mean), std=list(data.std))
    module = make_module(terms("nd"), teacher=teacher, num_classes=10)
    means = start(fit, module, loaders={"train_dataloaders": loader})
    wanted = brute_force(teacher_checkpoint, data, [(images, target)])
    torch.testing.assert_close(means, wanted, rtol=0, atol=1e-6)


# ---- kept -------------------------------------------------------------------------------------------------------


def test_a_resumed_run_keeps_them(fit, make_module, terms, tiny_data, tmp_path, passes):
    run, module = Run(tmp_path), make_module(terms("nd"))
    fit(module, *checkpoint_callbacks(run))
    assert len(passes) == 3
    resumed, last = make_module(terms("nd")), run.checkpoint("last")
    fit(resumed, *checkpoint_callbacks(run), data=tiny_data(seed=5), epochs=2, ckpt_path=last)
    assert len(passes) == 3
    assert torch.equal(resumed.class_means, module.class_means)
    assert torch.equal(torch.load(last, weights_only=True)["state_dict"]["class_means"], module.class_means)


def test_cache(fit, make_module, terms, tiny_data, teacher_checkpoint, tmp_path, passes):
    def cached(augment=False, **options):
        data = options.pop("data", None) or tiny_data(pad=2)
        return start(
            fit, make_module(terms("nd"), **options), ClassMeans(augment, cache_dir=tmp_path / "cache"), data=data
        )

    first = cached()
    assert len(passes) == 3
    assert torch.equal(cached(), first)
    assert len(passes) == 3  # no teacher pass
    weights = torch.load(teacher_checkpoint, weights_only=True)
    weights["conv1.weight"][0, 0, 0, 0] += 0.1
    torch.save(weights, tmp_path / "other.pth")
    others = {
        "weights": {"teacher": ModelConfig("cifar/resnet8", checkpoint=tmp_path / "other.pth")},
        "normalisation": {"teacher": ModelConfig("cifar/resnet8", teacher_checkpoint, mean=[0.4] * 3, std=[0.2] * 3)},
        "fifth digit": {"teacher": ModelConfig("cifar/resnet8", teacher_checkpoint, mean=[0.40001] * 3, std=[0.2] * 3)},
        "images": {"data": tiny_data(pad=2, seed=5)},
        "augmentation": {"augment": True},
    }
    for number, options in enumerate(others.values(), start=2):
        assert not torch.equal(cached(**options), first)
        assert len(passes) == 3 * number
        assert len(list((tmp_path / "cache").iterdir())) == number


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_cache_is_computed_again(fit, make_module, terms, tmp_path, passes, capsys, damage):
    first = start(fit, make_module(terms("nd")), ClassMeans(cache_dir=tmp_path))
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    file.write_bytes({"flipped": content, "cut": content[:-9], "empty": b""}[damage])
    if damage == "flipped":
        with pytest.raises(NdkdError, match=r"safetensors is damaged: its checksum is another; remove it"):
            read_class_means(file)
    before = len(passes)
    assert torch.equal(start(fit, make_module(terms("nd")), ClassMeans(cache_dir=tmp_path)), first)
    assert len(passes) > before
    assert f"{file} is damaged: it is computed again" in capsys.readouterr().out
    assert torch.equal(read_class_means(file).class_means, first)


def test_cache_holds_no_half_written_file(fit, make_module, terms, tmp_path, monkeypatch):
    def full_disk(*args):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(OSError, match="^disk full$"):
        start(fit, make_module(terms("nd")), ClassMeans(cache_dir=tmp_path))
    assert not list(tmp_path.iterdir())


def test_cache_of_data_without_a_fingerprint(fit, make_module, terms, tmp_path):
    loader = DataLoader(TensorDataset(torch.rand(10, 3, 8, 8), torch.arange(10)), batch_size=5)
    message = "^class_means.cache_dir: this data has no fingerprint to tell it by; leave cache_dir out$"
    module = make_module(terms("nd"), num_classes=10)
    with pytest.raises(NdkdError, match=message):
        start(fit, module, ClassMeans(cache_dir=tmp_path), loaders={"train_dataloaders": loader})


# ---- imported ---------------------------------------------------------------------------------------------------


def write(path, means):
    if path.suffix == ".json":
        path.write_text(json.dumps({str(k): row for k, row in enumerate(means.tolist())}))
    elif path.suffix == ".npz":
        np.savez(path, class_means=means.double().numpy())
    else:
        save_file({"class_means": means}, path)
    return path


@pytest.mark.parametrize("suffix", [".json", ".npz", ".safetensors"])
def test_file(fit, make_module, terms, tmp_path, passes, suffix):
    wanted = torch.randn(10, 64)
    means = start(fit, make_module(terms("nd")), ClassMeans(file=write(tmp_path / f"means{suffix}", wanted)))
    assert torch.equal(means, wanted)
    assert not passes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("means.json", None, "does not exist; correct class_means.file or leave it out"),
        ("means.txt", "", ": wanted a .json, .npz or .safetensors file"),
        ("means.json", '{"0": [1.0], "2": [1.0]}', ": wanted keys 0 to 1, 1 is missing"),
        ("means.json", '{"0": [1.0', " cannot be read: JSONDecodeError Expecting"),
        ("means.json", '{"0": [1.0], "1": [1.0, 2.0]}', " cannot be read: ValueError expected sequence of length 1"),
        ("means.npz", "", " cannot be read: EOFError No data left in file"),
        ("means.safetensors", "", " cannot be read: SafetensorError "),
    ],
)
def test_file_that_cannot_be_read(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(NdkdError, match=f"^class means {re.escape(str(path))} ?{re.escape(message.strip())}"):
        read_class_means(path)


def test_file_without_the_array(tmp_path):
    np.savez(tmp_path / "means.npz", other=np.zeros((10, 64)))
    save_file({"other": torch.zeros(10, 64)}, tmp_path / "means.safetensors")
    for path in tmp_path.iterdir():
        with pytest.raises(NdkdError, match=f"^class means {path} cannot be read: KeyError .*class_means"):
            read_class_means(path)


@pytest.mark.parametrize("suffix", [".json", ".npz", ".safetensors"])
def test_file_that_does_not_fit(fit, make_module, terms, tmp_path, suffix):
    path = write(tmp_path / f"means{suffix}", torch.ones(9, 64))
    with pytest.raises(NdkdError, match=f"^class means {path}: wanted 10 × 64 \\(classes × width\\), got 9 × 64$"):
        start(fit, make_module(terms("nd")), ClassMeans(file=path))
    path = write(tmp_path / f"means{suffix}", torch.full((10, 64), float("nan")))
    with pytest.raises(NdkdError, match=f"^class means {path}: not all numbers are finite$"):
        start(fit, make_module(terms("nd")), ClassMeans(file=path))


# ---- of others --------------------------------------------------------------------------------------------------


@pytest.fixture
def ours(fit, make_module, terms, tmp_path):
    """A file that the cache has written."""
    start(fit, make_module(terms("nd")), ClassMeans(cache_dir=tmp_path / "cache"))
    (file,) = (tmp_path / "cache").iterdir()
    return file


def test_a_file_of_ours_says_whose_it_is(fit, make_module, terms, ours, tiny_data):
    stored = read_class_means(ours)
    assert stored.class_names == list(tiny_data().class_names)
    assert torch.equal(start(fit, make_module(terms("nd")), ClassMeans(file=ours)), stored.class_means)
    half = start(fit, make_module(terms("nd")), ClassMeans(file=ours), precision="bf16-true")  # the same teacher
    torch.testing.assert_close(half.float(), stored.class_means, rtol=1e-2, atol=1e-2)


def test_means_of_another_teacher(fit, make_module, terms, ours, teacher_checkpoint, tmp_path):
    torch.manual_seed(2)
    torch.save(build_model("cifar/resnet8", 10).state_dict(), tmp_path / "other.pth")
    others = {
        "weights": ModelConfig("cifar/resnet8", checkpoint=tmp_path / "other.pth"),
        "normalisation": ModelConfig("cifar/resnet8", teacher_checkpoint, mean=[0.0] * 3, std=[1.0] * 3),
    }
    for teacher in others.values():
        message = f"^class means {ours} are another teacher's; leave class_means.file out to compute them$"
        with pytest.raises(NdkdError, match=message):
            start(fit, make_module(terms("nd"), teacher=teacher), ClassMeans(file=ours))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda names: ("cat", *names[1:]), "its class 0 is class 0, the data's is cat"),
        (lambda names: (names[1], names[0], *names[2:]), "its class 0 is class 0, the data's is class 1"),
        (lambda names: names[:9], "it has 10 classes, the data has 9"),
    ],
)
def test_means_of_other_classes(fit, make_module, terms, ours, tiny_data, tmp_path, change, found):
    data = tiny_data()
    data.class_names = change(data.class_names)
    message = f"^class means {ours} are of other classes: {found}; leave class_means.file out$"
    with pytest.raises(NdkdError, match=message):
        start(fit, make_module(terms("nd")), ClassMeans(file=ours), data=data)
    alone = make_module(terms("ce"), teacher=None)
    with pytest.raises(NdkdError, match=message):
        fit(alone, ClassMeans(file=ours), FeatureStatistics(Run(tmp_path)), data=data)


def test_a_number_of_classes_that_only_angles_are_measured_to(fit, make_module, terms, tmp_path):
    StoredMeans(torch.randn(9, 64)).write(tmp_path / "means.safetensors")
    callbacks = ClassMeans(file=tmp_path / "means.safetensors"), FeatureStatistics(Run(tmp_path))
    with pytest.raises(NdkdError, match="means.safetensors: wanted 10 classes, got 9$"):
        fit(make_module(terms("ce"), teacher=None), *callbacks)


# ---- mistakes in the data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "listed"), [(9, "class 9"), (4, "class 4, class 5, class 6, class 7, class 8 and 1 more")]
)
def test_classes_without_images_are_named(fit, make_module, terms, tiny_data, size, listed):
    message = f"^no training image of class {listed}: its mean is unknown; add images or drop the class$"
    with pytest.raises(NdkdError, match=message):
        start(fit, make_module(terms("nd")), data=tiny_data(size=size))


@pytest.mark.parametrize(("label", "found"), [(10, "0 to 10"), (-1, "-1 to 9")])
def test_label_outside_the_classes(fit, make_module, terms, tiny_data, label, found):
    data = tiny_data()
    data.train_target[3] = label
    with pytest.raises(NdkdError, match=f"^wanted labels from 0 to 9, the data has {found}$"):
        start(fit, make_module(terms("nd")), data=data)


def test_damaged_teacher(fit, make_module, terms, teacher_checkpoint, tmp_path):
    weights = torch.load(teacher_checkpoint, weights_only=True)
    weights["layer3.0.bn2.weight"][0] = float("nan")
    torch.save(weights, tmp_path / "teacher.pth")
    module = make_module(terms("nd"), teacher=ModelConfig("cifar/resnet8", checkpoint=tmp_path / "teacher.pth"))
    why = "teacher: not all numbers in layer3.0.bn2.weight are finite; is its checkpoint damaged?"
    with pytest.raises(NdkdError, match=f"^{re.escape(why)}$"):
        start(fit, module)
