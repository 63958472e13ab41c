"""The teacher's mean embedding per class, computed on fit start: https://arxiv.org/abs/2305.17007."""

import hashlib
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from ndkd.errors import NdkdError, some
from ndkd.runs import write_atomically


class ClassMeans(L.Callback):
    """Fill the module's class means from one pass of the teacher over the training images.

    .. math:: c_k = \\frac{1}{|S_k|} \\sum_{i \\in S_k} t_i

    summed in float64 over all processes. The means are part of the checkpoint; a resumed run keeps them.

    Args:
        augment: pass over augmented images, as the published numbers did, instead of the plain ones.
        file: read the means from here instead: ``.json`` (``{"0": [...], ...}``), ``.npz`` (array ``class_means``)
            or ``.safetensors`` (tensor ``class_means``).
        cache_dir: keep the means here, and reuse them for the same teacher weights, images and augmentation.
        max_images: pass over so many images at most, for detectors; a class that they do not show has a mean of zero,
            to which the ND loss gives no gradient.
        background_last: the background is the last class in ``file``, as in published ones for COCO.

    Raises:
        NdkdError: a class without samples, or a file whose means do not fit the teacher and the classes.
    """

    def __init__(
        self,
        augment: bool = False,
        file: Path | None = None,
        cache_dir: Path | None = None,
        max_images: int | None = None,
        background_last: bool = False,
    ):
        if max_images is not None and max_images < 1:
            raise NdkdError(f"class_means.max_images: wanted at least 1, got {max_images}")
        self.augment, self.file, self.cache_dir = augment, file, cache_dir
        self.max_images, self.background_last = max_images, background_last

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        means = pl_module.class_means
        if means is None or not means.isnan().any():  # not wanted, or restored from a checkpoint
            return
        if self.file is not None:
            found = read_class_means(self.file)
            if not found.any():
                raise NdkdError(f"class means {self.file}: all numbers are 0, they point nowhere; give another file")
            if found.shape != means.shape:
                raise NdkdError(f"class means {self.file}: wanted {_size(means)} (classes × width), got {_size(found)}")
            if not found.isfinite().all():
                raise NdkdError(f"class means {self.file}: not all numbers are finite")
            if self.background_last:
                found = found.roll(1, dims=0)
        else:
            found = self._cached_or_computed(trainer, pl_module)
        means.copy_(found)

    def _cached_or_computed(self, trainer: L.Trainer, module: Any) -> Tensor:
        ours = getattr(trainer.datamodule, "class_mean_dataloader", None)
        # foreign data: its training images as they come
        loader = ours(self.augment) if ours else trainer.fit_loop._data_source.dataloader()
        if self.cache_dir is None:
            return self._compute(trainer, module, loader)
        if not hasattr(loader, "fingerprint"):
            raise NdkdError("class_means.cache_dir: this data has no fingerprint to tell it by; leave cache_dir out")
        file = Path(self.cache_dir) / f"{self._key(module, loader)}.safetensors"
        # every rank looks before any rank writes
        is_cached = trainer.strategy.broadcast(file.is_file())
        if is_cached:
            return read_class_means(file)
        means = self._compute(trainer, module, loader)
        if trainer.is_global_zero:
            write_atomically(file, lambda out: out.write(save({"class_means": means.contiguous().cpu()})))
        return means

    def _compute(self, trainer: L.Trainer, module: Any, loader: Any) -> Tensor:
        shape = module.class_means.shape
        device = torch.device("cpu") if module.device.type == "mps" else module.device  # Apple's GPUs have no float64
        sums = torch.zeros(shape, dtype=torch.float64, device=device)
        counts = torch.zeros(shape[0], dtype=torch.float64, device=device)
        span = torch.tensor([-shape[0], 0], device=device)  # of the labels: minus the lowest, the highest
        shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
        # the share of this process in the first max_images
        most = None if self.max_images is None else len(range(trainer.global_rank, self.max_images, trainer.world_size))
        seen = 0
        for batch in tqdm(loader, desc="class means", disable=not shown, leave=False, unit="batch"):
            if seen == most:
                break
            batch = trainer.precision_plugin.convert_input(module.transfer_batch_to_device(batch, module.device, 0))
            embedding, label = module.teacher_embeddings(batch)
            embedding, label = embedding.to(device).double(), label.to(device)
            span = torch.maximum(span, torch.stack([-label.min(), label.max()]))
            label = label.clamp(0, shape[0] - 1)  # a wrong one is named below, by every rank: none waits for another
            sums.index_add_(0, label, embedding)
            counts.index_add_(0, label, torch.ones_like(label, dtype=torch.float64))
            seen += len(batch[0])
        sums, counts = (trainer.strategy.reduce(tensor, reduce_op="sum") for tensor in (sums, counts))
        low, high = (trainer.strategy.reduce(span, reduce_op="max") * span.new_tensor([-1, 1])).tolist()
        if low < 0 or high >= shape[0]:
            raise NdkdError(f"wanted labels from 0 to {shape[0] - 1}, the data has {low} to {high}")
        empty = (counts == 0).nonzero().flatten().tolist()
        if empty:
            names = module.hparams["class_names"] or list(range(shape[0]))
            listed = some([str(names[k]) for k in empty], most=5)
            if not module.absent_classes:
                raise NdkdError(
                    f"no training image of class {listed}: its mean is unknown; add images or drop the class"
                )
            if trainer.is_global_zero:
                print(f"ndkd: no region of class {listed} for its mean: the ND loss leaves it out")
        if not sums.isfinite().all():
            raise NdkdError("the teacher's embeddings are not finite; is its checkpoint damaged?")
        if not sums.any():
            raise NdkdError("the teacher's embeddings are all 0, no class has a direction; is its checkpoint damaged?")
        return (sums / counts.clamp_min(1).unsqueeze(1)).float()

    def _key(self, module: Any, loader: Any) -> str:
        statistics = [None if v is None else v.tolist() for v in (module.teacher.mean, module.teacher.std)]
        digest = hashlib.sha256(f"{loader.fingerprint()} {statistics} {self.max_images}".encode())
        for name, tensor in module.teacher.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())  # NumPy knows no bfloat16
        return digest.hexdigest()[:32]


def read_class_means(path: str | Path) -> Tensor:
    """Class means (C, D) from a ``.json``, ``.npz`` or ``.safetensors`` file.

    Raises:
        NdkdError: no such file, another format, or classes missing from it.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise NdkdError(f"class means {path}: wanted a file")
    try:
        if path.suffix == ".json":
            rows = json.loads(path.read_text())
            missing = [k for k in range(len(rows)) if str(k) not in rows]
            if missing:
                raise NdkdError(f"class means {path}: wanted keys 0 to {len(rows) - 1}, {missing[0]} is missing")
            return torch.tensor([rows[str(k)] for k in range(len(rows))])
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return torch.from_numpy(arrays["class_means"]).float()
        if path.suffix == ".safetensors":
            return load_file(path)["class_means"].float()
    except NdkdError:
        raise
    except FileNotFoundError as error:
        raise NdkdError(f"class means {path} does not exist; correct class_means.file or leave it out") from error
    except Exception as error:
        raise NdkdError(f"class means {path} cannot be read: {type(error).__name__} {error}") from error
    raise NdkdError(f"class means {path}: wanted a .json, .npz or .safetensors file")


def _size(tensor: Tensor) -> str:
    return " × ".join(str(n) for n in tensor.shape)
