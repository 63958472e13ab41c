"""A network in a file of each format, and read back from it."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ndkd.files import write_atomically
from ndkd.models.checkpoint import read_checkpoint

ENDINGS = {"safetensors": ".safetensors", "torch": ".pt", "onnx": ".onnx", "torch_export": ".pt2"}
WHOLE = ("onnx", "torch_export")  # formats that hold the network, not its weights alone
Network = Callable[[Tensor], Tensor]  # images (B, c, h, w) to logits (B, C)


@contextmanager
def quietly() -> Iterator[None]:
    """Without what exporters log, warn of and print, which helps nobody here."""
    levels = {name: logging.getLogger(name).level for name in ("", "torch")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class Normalised(nn.Module):
    """A network for images in [0, 1], which it normalises itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor):
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


@quietly()
def write_and_read(
    network: nn.Module,
    fresh: nn.Module,
    format: str,
    file: Path,
    shape: Sequence[int],
    about: dict[str, Any],
    out: Path,
) -> Network:
    """Write a network, or its weights alone, and give the one that is in the file, which will be called ``out``.

    Args:
        network: in evaluation mode.
        fresh: another of its kind, which weights are loaded into.
        format: of ``ENDINGS``.
        file: to write.
        shape: (c, h, w) of the images.
        about: kept with the network, as JSON by these names, where the format has a place for it: in ONNX's metadata.
        out: the file's name in messages.
    """
    if format not in WHOLE:
        weights = {key: value.detach().clone().contiguous() for key, value in network.state_dict().items()}
        # safetensors' own save_file lets nobody else read the file
        is_safe = format == "safetensors"
        write_atomically(file, lambda f: f.write(save(weights)) if is_safe else torch.save(weights, f), out)
        fresh.load_state_dict(read_checkpoint(file))
        return fresh
    # a batch of one would be taken for a constant
    options: dict[str, Any] = {
        "args": (torch.zeros(2, *shape),),
        "dynamic_shapes": ({0: torch.export.Dim("batch")},),
    }
    if format == "torch_export":
        exported = torch.export.export(network, **options)
        write_atomically(file, lambda f: torch.export.save(exported, f), out)
        return torch.export.load(file).module()
    options |= {"input_names": ["images"], "output_names": ["logits"], "external_data": False}
    program: Any = torch.onnx.export(network, dynamo=True, verbose=False, **options)
    model = program.model_proto
    for name, value in about.items():
        model.metadata_props.add(key=name, value=json.dumps(value))
    write_atomically(file, lambda f: f.write(model.SerializeToString()), out)
    return in_onnxruntime(file)


def in_onnxruntime(file: Path) -> Network:
    """The network of an ONNX file, on the CPU."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = torch.get_num_threads(), 3  # errors only
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
