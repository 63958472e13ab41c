"""Writes the student of a checkpoint for use elsewhere: checked by reading it back, and described by a model card."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from operator import methodcaller
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from ndkd.classifier import ReadRun, read_run
from ndkd.commands.export_card import flops, latencies, model_card, preprocessing
from ndkd.commands.export_formats import ENDINGS, WHOLE, Network, Normalised, write_and_read
from ndkd.commands.export_int8 import CALIBRATION, MAX_DROP, accuracies, quantized, training_images
from ndkd.commands.export_push import check_push, front_matter, upload
from ndkd.data.base import HasTransform
from ndkd.data.from_config import configured, evaluation_batches, has_test, made, noise_photos
from ndkd.data.preprocessing import photo_steps
from ndkd.errors import NdkdError
from ndkd.files import check_folder, sync_folder, write_atomically
from ndkd.lock import Lock, locked
from ndkd.models import build_model
from ndkd.trust import Trust

BESIDE = ("README.md", "preprocess.json")


def export(
    checkpoint: Path,
    format: str,
    out: Path,
    trust: Sequence[str] = (),
    config: Sequence[Path] = (),
    normalise: bool = False,
    quantize: str | None = None,
    calibration: int | None = None,
    max_drop: float | None = None,
    push: str | None = None,
    private: bool = False,
    license: str | None = None,
) -> None:
    """Write a checkpoint's student, in evaluation mode and without projector or hooks, and what tells how to use it.

    The file is read back and must give the checkpoint's logits for images of the run, else nothing is left. Beside it
    go README.md and ``preprocess.json``.

    Args:
        checkpoint: of ``ndkd fit``, in its run folder.
        format: ``safetensors`` or ``torch`` for the weights, ``onnx`` or ``torch_export`` for the whole network.
        out: the file to write; the network in it maps normalised images (B, c, h, w) to logits (B, C).
        trust: packages of one's own that the run may name, see ``ndkd.trust.Trust``.
        config: configurations of one's own; what they name is trusted too.
        normalise: the network takes images in [0, 1] and normalises them itself; of a whole network alone.
        quantize: ``int8`` for weights and activations of eight bits; in ONNX alone.
        calibration: the number of training images that the activations' ranges are measured on, by default 300.
        max_drop: points of accuracy that eight bits may cost, by default 1.
        push: a repository on the Hugging Face Hub; the folder of ``out`` is uploaded once it is whole.
        private: nobody else may see that repository.
        license: of the weights, as the Hub spells it.

    Raises:
        NdkdError: a place for the file or a checkpoint that will not do, a name that is not trusted, data that is not
            there, a student that cannot be traced, other logits than the checkpoint's, too much accuracy lost, a
            failed upload.
    """
    check_options(format, normalise, quantize, calibration, max_drop)
    above, trusted = writable_folder(out, format), Trust(trust, config)
    check_push(push, private, license, out)
    read = read_run(checkpoint, trusted, "only classifiers are exported")
    original = read_original(read, normalise, on_images=quantize is not None)
    images, data = original.prepare(original.pixels), original.data
    shape, names = images.shape[1:], read.known.class_names or [str(k) for k in range(read.num_classes)]
    photo = photo_steps(data.transform) if isinstance(data, HasTransform) else None
    steps = preprocessing(read.known.student, shape, photo, normalise)
    facts = {"preprocess": steps, "class_names": list(names)}
    with beside(out, above) as folder, torch.no_grad():
        file = folder / out.name
        try:
            loaded = write_and_read(original.network, original.fresh, format, file, shape, facts, out)
            rows = measured(loaded, original, file, out)
            if quantize:
                most = MAX_DROP if max_drop is None else max_drop
                rows |= in_eight_bits(loaded, original, file, out, calibration or CALIBRATION, most)
        except NdkdError:  # a full disk, or what was found
            raise
        except Exception as error:  # of any kind, where a model's forward is not for tracing
            why = " ".join(f"{type(error).__name__}: {error.__cause__ or error}".split())[:200]
            raise NdkdError(
                f"{read.model.name} cannot be written as {format} ({why}); choose another --format"
            ) from error
        about = {"format": format, "file": out.name, "shape": shape, "torch": torch.__version__, **read.settings}
        about |= {"run": read.run, "checkpoint": checkpoint, "epoch": read.content["epoch"], "known": read.known}
        about |= {"on": data, "photo": photo, "is_normalised": normalise, "classes": names, "is_test": has_test(data)}
        texts = {
            "README.md": (front_matter(format, license) if push else "") + model_card(read.run, about, rows),
            "preprocess.json": json.dumps(steps | {"class_names": list(names)}, indent=2) + "\n",
        }
        for name, text in texts.items():
            write_atomically(folder / name, methodcaller("write", text.encode()), out.parent / name)
        put(folder, out.parent)
    student = f"{read.model.name}, epoch {read.content['epoch']}"
    for title, text in {"student": student, **rows, "written": str(out)}.items():
        print(f"{title:<12}{text}")
    if push:
        print(f"{'uploaded':<12}{upload(push, private, out.parent)}")


@dataclass
class Original:
    """The network of a checkpoint, and what it is tried on.

    Args:
        network: as it is to be written.
        fresh: another of its kind, with other weights.
        prepare: makes what the network takes of pixels (B, c, h, w) in [0, 1].
        data: ready to evaluate on.
        pixels: its first batch or, where its images are gone, noise.
        seen: which of them, in words.
        wanted: the checkpoint's logits for it.
    """

    network: nn.Module
    fresh: nn.Module
    prepare: Callable[[Tensor], Tensor]
    data: L.LightningDataModule
    pixels: Tensor
    seen: str
    wanted: Tensor


def read_original(read: ReadRun, normalise: bool, on_images: bool) -> Original:
    """The network in a checkpoint, which normalises by itself if ``normalise``; ``on_images`` that have to be there."""
    model, count = read.model, read.num_classes
    student = model.build(count, None, None).eval()
    plain, fresh = (build_model(model.name, count, **model.kwargs).eval() for _ in range(2))
    plain.load_state_dict(student.model.state_dict())
    data, pixels, seen = first_images(read.settings["data"], on_images)
    with torch.no_grad():
        wanted = student(pixels).logits
    mean, std = student.mean, student.std
    if mean is None or std is None:
        return Original(plain, fresh, Tensor.contiguous, data, pixels, seen, wanted)
    if normalise:
        return Original(Normalised(plain, mean, std).eval(), fresh, Tensor.contiguous, data, pixels, seen, wanted)
    return Original(plain, fresh, lambda pixels: (pixels - mean) / std, data, pixels, seen, wanted)


def measured(loaded: Network, original: Original, file: Path, out: Path) -> dict[str, str]:
    """What the card says of a file that was read back.

    Raises:
        NdkdError: other logits than the checkpoint's.
    """
    images, wanted = original.prepare(original.pixels), original.wanted
    difference = ((loaded(images) - wanted).abs().max() / wanted.abs().max()).item()
    if not difference <= 1e-4:  # nor if it is no number
        found = f"read back, its logits differ from the checkpoint's by {difference:.1e} of the largest"
        raise NdkdError(f"{out} is not written: {found}; choose another --format")
    return {
        "difference": f"{difference:.1e} of the largest logit, on {len(images)} {original.seen}",
        "parameters": f"{sum(parameter.numel() for parameter in original.network.parameters()):,}",
        "compute": f"{flops(original.network, images[:1]) / 1e6:,.1f} MFLOPs an image; a multiply-add counts as two",
        "file": f"{file.stat().st_size / 1e6:,.2f} MB",
        "latency": f"{latencies(loaded, images)}; median, threads: {torch.get_num_threads()}",
    }


def in_eight_bits(
    loaded: Network, original: Original, file: Path, out: Path, calibration: int, max_drop: float
) -> dict[str, str]:
    """Quantize a file, and say what that changes.

    Args:
        loaded: what the file holds in float32.
        original: it was written from.
        file: replaced.
        out: its name in messages.
        calibration: number of training images.
        max_drop: points of accuracy.

    Raises:
        NdkdError: more accuracy lost.
    """
    size, images = file.stat().st_size, original.prepare(original.pixels)
    batches = [original.prepare(batch) for batch in training_images(original.data, calibration)]
    small = quantized(file, batches)
    found, number = accuracies({"before": loaded, "after": small}, original.data, original.prepare)
    before, after = found["before"], found["after"]
    accuracy = f"{after:.2f} %, before {before:.2f} %, on {number:,} images"
    if before - after > max_drop:
        raise NdkdError(
            f"{out} is not written: in eight bits its accuracy is {accuracy}, which is more than {max_drop:g} points "
            f"less; calibrate on more images (--calibration, {calibration} now) or allow it with --max_drop"
        )
    threads = torch.get_num_threads()
    return {
        "int8": f"static QDQ, a scale per channel, calibrated on {sum(map(len, batches)):,} training images",
        "accuracy": accuracy,
        "file": f"{file.stat().st_size / 1e6:,.2f} MB, before {size / 1e6:,.2f} MB",
        "latency": f"{latencies(small, images)}; before {latencies(loaded, images)}; median, threads: {threads}",
    }


def check_options(
    format: str, normalise: bool, quantize: str | None, calibration: int | None, max_drop: float | None
) -> None:
    """Raise ``NdkdError`` for options that do not go together, or numbers that make no sense."""
    if normalise and format not in WHOLE:
        raise NdkdError(f"--normalise is for a whole network, a {format} file holds weights alone: add --format onnx")
    if quantize and format != "onnx":
        raise NdkdError(f"--quantize {quantize} is for ONNX, got --format {format}: add --format onnx")
    for option, value in {"--calibration": calibration, "--max_drop": max_drop}.items():
        if value is not None and not quantize:
            raise NdkdError(f"{option} {value:g} has no effect without --quantize int8: add it, or leave {option} out")
    if calibration is not None and calibration < 1:
        raise NdkdError(f"--calibration: wanted at least 1 image, got {calibration}")
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise NdkdError(f"--max_drop: wanted points of accuracy, 0 to 100, got {max_drop:g}")


@contextmanager
def beside(out: Path, above: Path) -> Iterator[Path]:
    """An empty hidden folder to write in, without what an export to the same place left that was killed."""
    name = f".{out.name}.export"
    for left in (path / name for path in out.absolute().parents):  # by now the place itself may be there
        if left.is_dir() and (lock := Lock(left)).take() is None:
            shutil.rmtree(left)
            lock.release()
    with locked(above.absolute() / name, "folder", "choose another --out FILE") as lock:
        folder = lock.path.with_name("new")
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def put(folder: Path, place: Path) -> None:
    """Move the files of a folder to their place."""
    place.mkdir(parents=True, exist_ok=True)
    for file in list(folder.iterdir()):
        file.rename(place / file.name)
    sync_folder(place)


def writable_folder(out: Path, format: str) -> Path:
    """The folder to work in, the nearest to the file that exists; ``NdkdError`` if the file cannot be written."""
    if out.is_dir():
        raise NdkdError(f"out {out} is a folder: name a file in it, for example {out / 'model'}{ENDINGS[format]}")
    if out.suffix != ENDINGS[format] and (format, out.suffix) != ("torch", ".pth"):
        raise NdkdError(f"out {out}: a file of --format {format} is named like {out.with_suffix(ENDINGS[format])}")
    if there := [str(file) for file in (out, *(out.parent / name for name in BESIDE)) if file.exists()]:
        beside = " and ".join(BESIDE)
        raise NdkdError(f"out {out}: {' and '.join(there)} exists; choose a new folder, {beside} go beside it")
    packages = ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ()
    if missing := [package for package in packages if find_spec(package) is None]:
        raise NdkdError(f"--format onnx needs {', '.join(missing)}: python -m pip install -e '.[export]'")
    return check_folder(out.parent, "--out FILE")


def first_images(config: dict[str, Any], are_needed: bool) -> tuple[L.LightningDataModule, Tensor, str]:
    """A DataModule, its first batch to test on, or else to validate on, (B, c, h, w) in [0, 1], and what it shows.

    Where the images are gone and not needed, photos of noise do as well to compare a file with its checkpoint.
    """
    try:
        data = configured(config)
    except NdkdError as error:
        data = made(config)
        pixels = noise_photos(data) if isinstance(data, HasTransform) and not are_needed else None
        if pixels is None:
            raise
        print(f"ndkd: the file is compared with its checkpoint on noise, for the run's images are not there: {error}")
        return data, pixels, "photos of noise"
    for images, _ in evaluation_batches(data):
        return data, images.contiguous(), f"images of {type(data).__name__}"
    raise NdkdError(f"{type(data).__name__} gives no image to test or validate on: the file could not be checked")
