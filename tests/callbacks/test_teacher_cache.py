"""A teacher that is asked once: the same weights to the bit, whatever becomes of the recording."""

import json
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from ndkd.callbacks import FeatureStatistics, TeacherCache
from ndkd.data import ImageFolderDataModule
from ndkd.distillation.compression import Compression
from ndkd.distillation.objective import LossTerm
from ndkd.errors import NdkdError
from ndkd.losses import L2Loss
from ndkd.models import FeatureExtractor, ModelConfig, build_model
from ndkd.runs import Run


@pytest.fixture
def asked(monkeypatch):
    """The number of images of each batch that any teacher has seen; students are in training mode or without one."""
    seen, original = [], FeatureExtractor.forward

    def counted(model, images):
        if not any(p.requires_grad for p in model.parameters()):
            seen.append(len(images))
        return original(model, images)

    monkeypatch.setattr(FeatureExtractor, "forward", counted)
    return seen


@pytest.fixture
def trained(fit, make_module, terms, tiny_data, tmp_path):
    """Fit with or without a recording; the student's weights, with what the optimizer has added to them."""

    def run(*names, cache=None, losses=None, data=None, callbacks=(), module=None, epochs=2, narrow=True, **options):
        module = module or make_module(losses or terms(*(names or ("ce", "kd", "nd"))), narrow=narrow)
        cache = TeacherCache(cache) if cache and not isinstance(cache, TeacherCache) else cache
        fit(module, *([cache] if cache else []), *callbacks, data=data or tiny_data(pad=2), epochs=epochs, **options)
        return {name: value.clone() for name, value in module.state_dict().items()}

    return run


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- the same run -----------------------------------------------------------------------------------------------


def test_recorded_and_replayed_runs_are_the_plain_one_bit_by_bit(trained, tmp_path, asked, capsys):
    plain = trained()
    assert same(trained(cache=tmp_path / "cache"), plain)
    (folder,) = (tmp_path / "cache").iterdir()
    size = 2 * (20 * (4 * 10 + 4 + 4 * 8))
    assert f"teacher: recorded in {folder}, {size / 1e6:.2f} MB for 2 epochs\n" in capsys.readouterr().out
    asked.clear()
    assert same(trained(cache=tmp_path / "cache"), plain)
    assert asked == []
    assert f"teacher: read from {folder}, all 2 epochs, and not loaded\n" in capsys.readouterr().out


def test_a_full_recording_needs_no_file_of_the_teacher(trained, make_module, terms, tmp_path, teacher_checkpoint):
    away = tmp_path / "teacher.pth"
    shutil.copy(teacher_checkpoint, away)
    teacher = ModelConfig("cifar/resnet8", checkpoint=away)
    run = Run(tmp_path / "run")
    first = trained(module=make_module(terms("ce", "nd"), teacher=teacher), cache=tmp_path / "cache",
                    callbacks=[FeatureStatistics(run)])  # fmt: skip
    away.unlink()
    again = trained(module=make_module(terms("ce", "nd"), teacher=teacher), cache=tmp_path / "cache",
                    callbacks=[FeatureStatistics(run)])  # fmt: skip
    assert same(first, again)


def test_all_methods_of_a_seed_share_one(trained, terms, tmp_path, asked):
    trained("ce", "kd", cache=tmp_path)
    trained("ce", "nd", cache=tmp_path)  # the class means alone are left to compute
    assert sum(asked) > 0
    asked.clear()
    for names in (("ce", "kd"), ("kd", "nd"), ("ce", "kd", "nd")):
        trained(*names, cache=tmp_path)
    assert asked == []
    assert len(list(tmp_path.glob("*/about.json"))) == 1


def test_embeddings_are_kept_where_a_term_reads_them(trained, terms, tmp_path, asked):
    losses = {"l2": LossTerm(L2Loss()), **terms("ce", "kd")}
    first = trained(losses=losses, cache=tmp_path)
    (about,) = tmp_path.glob("*/about.json")
    fields = {"embedding": ["float32", [64]], "logits": ["float32", [10]], "norm": ["float32", []],
              "seen": ["float32", [8]]}  # fmt: skip
    assert json.loads(about.read_text())["fields"] == fields
    asked.clear()
    assert same(trained(losses={"l2": LossTerm(L2Loss()), **terms("ce", "kd")}, cache=tmp_path), first)
    trained("ce", "kd", cache=tmp_path)  # there is more than it needs
    assert asked == []


def test_a_recording_that_lacks_an_output_is_not_used(trained, terms, tmp_path, capsys):
    trained("ce", "kd", cache=tmp_path)
    trained(losses={"l2": LossTerm(L2Loss())}, cache=tmp_path)
    wanted = f"ndkd: no recording in {tmp_path} is this run's; of the nearest, it lacks the teacher's embedding\n"
    assert wanted in capsys.readouterr().out
    assert len(list(tmp_path.glob("*/about.json"))) == 2


def test_a_longer_run_records_the_rest(trained, tmp_path, asked, capsys):
    trained(cache=tmp_path)
    asked.clear()
    longer = trained(cache=tmp_path, epochs=3)
    assert "where it has the epoch, else recorded there\n" in capsys.readouterr().out
    assert asked == [2, 2, 8, 8, 4]  # to see shapes and space, and the third epoch
    assert same(longer, trained(epochs=3))
    asked.clear()
    assert same(longer, trained(cache=tmp_path, epochs=3))
    assert asked == []


def test_validation_in_the_middle_of_an_epoch_is_not_recorded(trained, tmp_path):
    options = {"val_check_interval": 1, "callbacks": [FeatureStatistics(Run(tmp_path / "run"))]}
    plain = trained()
    for _ in range(2):
        assert same(trained(cache=tmp_path / "cache", **options), plain)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision(trained, tmp_path, asked, precision):
    plain = trained(precision=precision)
    assert same(trained(cache=tmp_path, precision=precision), plain)
    asked.clear()
    assert same(trained(cache=tmp_path, precision=precision), plain)
    assert asked == []


def test_a_ready_teacher_is_known_by_its_weights(trained, make_module, terms, tmp_path, asked):
    def module(seed):
        torch.manual_seed(seed)
        return make_module(terms("kd"), teacher=build_model("cifar/resnet8", 10))

    first = trained(module=module(0), cache=tmp_path)
    asked.clear()
    assert same(trained(module=module(0), cache=tmp_path), first)
    assert asked == []
    trained(module=module(1), cache=tmp_path)
    assert len(list(tmp_path.glob("*/about.json"))) == 2


# ---- another run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"seed": 1}, "its seed is 0, this run's 1"),
        ({"data": {"batch_size": 4}}, "its batch size is 8, this run's 4"),
        ({"data": {"pad": 1}}, "it is of other images or augmentation"),
        ({"data": {"seed": 5}}, "it is of other images or augmentation"),
        ({"precision": "bf16-mixed"}, "its precision is 32-true, this run's bf16-mixed"),
        ({"limit_train_batches": 1}, "it has other batches"),
    ],
)
def test_another_stream_is_not_used_and_why(trained, tiny_data, tmp_path, capsys, options, why):
    trained("kd", cache=tmp_path)
    given = {**options, "data": tiny_data(**{"pad": 2, **options.get("data", {})})}
    assert same(trained("kd", cache=tmp_path, **given), trained("kd", **given))
    assert f"no recording in {tmp_path} is this run's; of the nearest, {why}\n" in capsys.readouterr().out


def test_another_teacher_is_not_used(trained, make_module, terms, tmp_path, teacher_checkpoint, capsys):
    trained("kd", cache=tmp_path)
    weights = torch.load(teacher_checkpoint)
    torch.save({name: value + 0.01 for name, value in weights.items()}, tmp_path / "other.pth")
    other = make_module(
        terms("kd"), narrow=True, teacher=ModelConfig("cifar/resnet8", checkpoint=tmp_path / "other.pth")
    )
    trained(module=other, cache=tmp_path)
    assert "of the nearest, its teacher has other weights\n" in capsys.readouterr().out


def test_other_images_under_the_same_name_end_the_run(trained, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr("ndkd.data.in_memory_loader.InMemoryLoader.fingerprint", lambda self: "always this")
    trained("kd", cache=tmp_path)
    with pytest.raises(NdkdError, match="was recorded of other images than this epoch's, .* remove that folder"):
        trained("kd", cache=tmp_path, data=tiny_data(pad=2, seed=5))


def test_what_cannot_be_recorded_is_said(trained, fit, make_module, terms, tmp_path, capsys):
    plain = trained("ce", "review")
    assert same(trained("ce", "review", cache=tmp_path), plain)
    said = "ndkd: the teacher's outputs are not recorded: "
    assert f"{said}a loss reads teacher.feature_maps, which would take too much space\n" in capsys.readouterr().out
    images = TensorDataset(torch.rand(16, 3, 8, 8), torch.arange(16) % 10)
    module = make_module(terms("kd"), num_classes=10)
    fit(module, TeacherCache(tmp_path), loaders={"train_dataloaders": DataLoader(images, 8)})
    assert f"{said}this data has no fingerprint to tell it by\n" in capsys.readouterr().out
    trained("kd", cache=tmp_path, fast_dev_run=True)
    assert f"{said}fast_dev_run leaves nothing\n" in capsys.readouterr().out
    trained("ce", cache=tmp_path)  # no teacher at all
    assert not list(tmp_path.iterdir())


# ---- what goes wrong --------------------------------------------------------------------------------------------


def test_a_damaged_epoch_is_computed_again(trained, tmp_path, capsys, asked):
    plain = trained(cache=tmp_path)
    (file,) = tmp_path.glob("*/epoch-0001-rank-0.rows")
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)
    asked.clear()
    assert same(trained(cache=tmp_path), plain)
    assert f"ndkd: {file} is damaged: its checksum is another; it is computed again\n" in capsys.readouterr().out
    assert asked == [8, 8, 4]
    asked.clear()
    assert same(trained(cache=tmp_path), plain)
    assert asked == []


def test_too_little_space_is_said_before_anything_is_written(trained, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")(10_000, 9_000, 1_000)
    monkeypatch.setattr("ndkd.callbacks.teacher_cache.shutil.disk_usage", lambda folder: usage)
    assert same(trained(cache=tmp_path), trained())
    assert "not recorded: they would take 0.00 MB, and " in capsys.readouterr().out
    assert not list(tmp_path.glob("*/*.rows*"))


def test_a_full_disk_in_the_middle_does_not_end_the_run(trained, tmp_path, monkeypatch, capsys):
    from ndkd.distillation.recording import EpochWriter

    original, calls = EpochWriter.add, []

    def full(writer, tensors):
        calls.append(1)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        original(writer, tensors)

    plain = trained("ce", "kd")
    monkeypatch.setattr(EpochWriter, "add", full)
    assert same(trained("ce", "kd", cache=tmp_path), plain)
    said = "ndkd: the teacher's outputs are not recorded any more: No space left on device; the run goes on\n"
    assert said in capsys.readouterr().out
    assert [file.name for file in tmp_path.glob("*/*.rows*")] == ["epoch-0000-rank-0.rows"]
    assert not list(tmp_path.glob("*/.*"))


def test_a_folder_that_cannot_be_written_is_read(trained, tmp_path, monkeypatch, capsys):
    plain = trained(cache=tmp_path)
    monkeypatch.setattr("os.access", lambda *a: False)
    (file,) = tmp_path.glob("*/epoch-0001-rank-0.rows")
    file.unlink()
    monkeypatch.setattr("ndkd.distillation.recorded_teacher.Recording.write_about", refuse)
    assert same(trained(cache=tmp_path), plain)
    assert "ndkd: the teacher's outputs are not recorded: [Errno 30] Read-only file system\n" in capsys.readouterr().out
    assert not file.exists()


def refuse(*arguments):
    raise OSError(30, "Read-only file system")


@pytest.mark.parametrize("exception", [KeyboardInterrupt, RuntimeError])
def test_half_an_epoch_is_dropped(trained, tmp_path, monkeypatch, exception):
    from lightning.pytorch import Callback

    class Fails(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, number):
            if trainer.current_epoch == 1:
                raise exception

    with pytest.raises((exception, SystemExit)):
        trained(cache=tmp_path, callbacks=[Fails()])
    assert [file.name for file in tmp_path.glob("*/epoch*")] == ["epoch-0000-rank-0.rows"]
    assert not list(tmp_path.glob("*/.*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "teacher_cache.top_k: wanted at least 1, got 0"),
        ({"dir": __file__}, f"teacher_cache: wanted a folder, {__file__} is a file"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(NdkdError, match=f"^{message}$"):
        TeacherCache(**options)


# ---- in less space ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten classes of three photos of several sizes; one of each to validate on."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1)):
        for name in "abcdefghij":
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (40 + 5 * number, 48, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.jpg")
    return root


def test_photos_that_worker_processes_read_crop_and_mix(trained, photos, tmp_path, asked):
    """Recorded with no process but its own, read beside two; whole, and the largest logits alone."""

    def run(cache, workers=0):
        data = ImageFolderDataModule(photos, batch_size=8, image_size=32, num_workers=workers, mixup=0.4, cutmix=1)
        return trained(data=data, cache=cache, limit_val_batches=0)

    plain = run(None)
    assert same(run(tmp_path / "whole"), plain)
    asked.clear()
    assert same(run(tmp_path / "whole", workers=2), plain)
    assert asked == []
    largest = TeacherCache(tmp_path / "largest", top_k=9)
    assert same(run(largest), plain)  # it asks the teacher
    replayed = run(TeacherCache(tmp_path / "largest", top_k=9))
    for name, value in plain.items():  # the one that is left of ten has exactly what is left
        torch.testing.assert_close(replayed[name], value, rtol=1e-3, atol=1e-4)


def test_float16_takes_half_and_says_that_it_is_not_exact(trained, tmp_path, capsys):
    plain = trained()
    trained(cache=TeacherCache(tmp_path, dtype="float16"))
    assert "for 2 epochs, not exact\n" in capsys.readouterr().out
    (file,) = tmp_path.glob("*/epoch-0000-rank-0.rows")
    assert file.stat().st_size == 20 * (2 * 10 + 2 + 4 * 8) + 12
    replayed = trained(cache=TeacherCache(tmp_path, dtype="float16"))
    assert not same(replayed, plain)
    for name, value in plain.items():
        torch.testing.assert_close(replayed[name], value, rtol=0.05, atol=0.02)


def test_top_k_keeps_the_probabilities_of_the_largest():
    logits = torch.randn(6, 10) * 3
    compression = Compression(top_k=4)
    packed = compression.pack({"logits": logits, "norm": torch.ones(6)})
    assert {name: tuple(t.shape) for name, t in packed.items()} == {
        "norm": (6,), "top_logits": (6, 4), "top_classes": (6, 4), "rest": (6,)}  # fmt: skip
    found = compression.unpack(packed, 10)["logits"].softmax(dim=1)
    wanted, top = logits.softmax(dim=1), logits.topk(4).indices
    torch.testing.assert_close(found.gather(1, top), wanted.gather(1, top))
    rest = found.scatter(1, top, 0)
    torch.testing.assert_close(rest.sum(dim=1), wanted.scatter(1, top, 0).sum(dim=1))
    assert (rest.amax(dim=1) * 6).allclose(rest.sum(dim=1))
    few = {"logits": logits[:, :4]}
    assert compression.pack(few).keys() == {"logits"}  # no fewer than there are
