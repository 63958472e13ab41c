"""Writes the student of a checkpoint for use elsewhere: checked by reading it back, and described by a model card."""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import jinja2
import lightning.pytorch as L
import torch
import yaml
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ndkd.classifier import read_run
from ndkd.commands.markdown import code, fence, inline, one_row, python_text
from ndkd.data.from_config import configured, evaluation_batches
from ndkd.errors import Damaged, NdkdError
from ndkd.files import check_folder, sync_folder, write_atomically
from ndkd.lock import Lock, locked
from ndkd.models import build_model
from ndkd.models.checkpoint import read_checkpoint
from ndkd.runs import Run
from ndkd.trust import Trust

ENDINGS = {"safetensors": ".safetensors", "torch": ".pt", "onnx": ".onnx", "torch_export": ".pt2"}
SECONDS = 0.5  # to measure a latency
TEMPLATES = jinja2.Environment(loader=jinja2.PackageLoader("ndkd"), trim_blocks=True, lstrip_blocks=True)
TEMPLATES.filters |= {"inline": inline, "code": code, "fence": fence, "row": one_row, "python": python_text}
TEMPLATES.filters["yaml"] = lambda value: yaml.safe_dump([value], default_flow_style=True, width=1e9).strip()[1:-1]


def export(checkpoint: Path, format: str, out: Path, trust: Sequence[str] = (), config: Sequence[Path] = ()) -> None:
    """Write a checkpoint's student, in evaluation mode and without projector or hooks, and README.md beside it.

    The file is read back and must give the checkpoint's logits for images of the run, else nothing is left.

    Args:
        checkpoint: of ``ndkd fit``, in its run folder.
        format: ``safetensors`` or ``torch`` for the weights, ``onnx`` or ``torch_export`` for the whole network.
        out: the file to write; the network in it maps normalised images (B, c, h, w) to logits (B, C).
        trust: packages of one's own that the run may name, see ``ndkd.trust.Trust``.
        config: configurations of one's own; what they name is trusted too.

    Raises:
        NdkdError: a place for the file or a checkpoint that will not do, a name that is not trusted, data that is not
            there, a student that cannot be traced, other logits than the checkpoint's.
    """
    above, trusted = writable_folder(out, format), Trust(trust, config)
    content, known, model, num_classes, run, settings = read_run(checkpoint, trusted, "only classifiers are exported")
    student = model.build(num_classes, None, None).eval()
    network, fresh = (build_model(model.name, num_classes, **model.kwargs).eval() for _ in range(2))
    network.load_state_dict(student.model.state_dict())
    data, pixels = first_images(settings["data"])
    with torch.no_grad():
        wanted = student(pixels).logits
    images = pixels if student.mean is None or student.std is None else (pixels - student.mean) / student.std
    logging.getLogger("torch").setLevel(logging.ERROR)  # the exporters log, warn of and print what helps nobody here
    with beside(out, above) as folder, torch.no_grad(), redirect_stderr(StringIO()):
        try:
            loaded = write_and_read(network, fresh, format, folder / out.name, images, out)
            logits = loaded(images)
            latency = [f"{median_ms(loaded, images, batch):,.2f} ms at batch {batch}" for batch in (1, 64)]
        except NdkdError:  # a full disk
            raise
        except Exception as error:  # of any kind, where a model's forward is not for tracing
            why = " ".join(f"{type(error).__name__}: {error.__cause__ or error}".split())[:200]
            raise NdkdError(f"{model.name} cannot be written as {format} ({why}); choose another --format") from error
        difference = ((logits - wanted).abs().max() / wanted.abs().max()).item()
        if not difference <= 1e-4:  # nor if it is no number
            found = f"read back, its logits differ from the checkpoint's by {difference:.1e} of the largest"
            raise NdkdError(f"{out} is not written: {found}; choose another --format")
        rows = {
            "difference": f"{difference:.1e} of the largest logit, on {len(images)} images of {type(data).__name__}",
            "parameters": f"{sum(parameter.numel() for parameter in network.parameters()):,}",
            "compute": f"{flops(network, images[:1]) / 1e6:,.1f} MFLOPs an image; a multiply-add counts as two",
            "file": f"{sum(file.stat().st_size for file in folder.iterdir()) / 1e6:,.2f} MB",
            "latency": f"{', '.join(latency)}; median, threads: {torch.get_num_threads()}",
        }
        about = {"format": format, "file": out.name, "shape": images.shape[1:], "torch": torch.__version__, **settings}
        about |= {"run": run, "checkpoint": checkpoint, "epoch": content["epoch"], "known": known, "on": data}
        card = model_card(run, about, rows)
        write_atomically(folder / "README.md", lambda file: file.write(card.encode()), out.parent / "README.md")
        put(folder, out.parent)
    for title, text in {"student": f"{model.name}, epoch {content['epoch']}", **rows, "written": out}.items():
        print(f"{title:<12}{text}")


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
    if there := [str(file) for file in (out, out.parent / "README.md") if file.exists()]:
        raise NdkdError(f"out {out}: {' and '.join(there)} exists; choose a new folder, README.md goes beside it")
    packages = ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ()
    if missing := [package for package in packages if find_spec(package) is None]:
        raise NdkdError(f"--format onnx needs {', '.join(missing)}: python -m pip install -e '.[export]'")
    return check_folder(out.parent, "--out FILE")


def first_images(config: dict) -> tuple[L.LightningDataModule, Tensor]:
    """A DataModule and its first batch to test on, or else to validate on: (B, c, h, w) in [0, 1]."""
    data = configured(config)
    for images, _ in evaluation_batches(data):
        return data, images.contiguous()
    raise NdkdError(f"{type(data).__name__} gives no image to test or validate on: the file could not be checked")


def write_and_read(
    network: nn.Module, fresh: nn.Module, format: str, file: Path, images: Tensor, out: Path
) -> Callable:
    """Write a network, or its weights alone, and give the one that is in the file, which will be called ``out``.

    Weights are loaded into ``fresh``.
    """
    if format in ("safetensors", "torch"):
        weights = {key: value.detach().clone().contiguous() for key, value in network.state_dict().items()}
        # safetensors' own save_file lets nobody else read the file
        is_safe = format == "safetensors"
        write_atomically(file, lambda f: f.write(save(weights)) if is_safe else torch.save(weights, f), out)
        fresh.load_state_dict(read_checkpoint(file))
        return fresh
    # a batch of one would be taken for a constant
    options: dict[str, Any] = {
        "args": (images.new_zeros(2, *images.shape[1:]),),
        "dynamic_shapes": ({0: torch.export.Dim("batch")},),
    }
    if format == "torch_export":
        exported = torch.export.export(network, **options)
        write_atomically(file, lambda f: torch.export.save(exported, f), out)
        return torch.export.load(file).module()
    import onnxruntime

    options |= {"input_names": ["images"], "output_names": ["logits"], "external_data": False}
    program: Any = torch.onnx.export(network, dynamo=True, verbose=False, **options)
    write_atomically(file, lambda f: f.write(program.model_proto.SerializeToString()), out)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = torch.get_num_threads(), 3  # errors only
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def model_card(run: Run, about: dict[str, Any], rows: dict[str, str]) -> str:
    """README.md; ``Damaged`` if a run's configuration has entries of another shape.

    Args:
        run: of the checkpoint.
        about: the run's configuration, and what the file holds.
        rows: what was measured.
    """
    try:
        return TEMPLATES.get_template("model_card.md").render(about, rows=rows) + "\n"
    except (jinja2.TemplateError, AttributeError, TypeError, ValueError) as error:
        raise Damaged(run.config, f"no model card can be made of it: {error}", "use one that ndkd fit wrote") from error


def flops(network: nn.Module, image: Tensor) -> int:
    """Floating point operations that a network takes for an image (1, c, h, w)."""
    # fused attention would not be counted, nor the fast path of nn.MultiheadAttention, which has no gradient
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


def median_ms(network: Callable, images: Tensor, batch: int) -> float:
    """Milliseconds that a network takes for so many images."""
    from torch.utils.benchmark import Timer  # it looks for CUDA, and warns

    call = {"network": network, "images": images[torch.arange(batch) % len(images)]}
    timer = Timer("network(images)", globals=call, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=SECONDS).median * 1e3
