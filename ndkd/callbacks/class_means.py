"""The teacher's mean embedding per class, computed on fit start: https://arxiv.org/abs/2305.17007."""

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from tqdm import tqdm

from ndkd.callbacks.class_means_file import StoredMeans, noise, read_class_means
from ndkd.callbacks.class_sums import ClassSums, UnknownMean
from ndkd.callbacks.epoch_lines import shows_bars
from ndkd.data.base import HasClassMeanLoader, HasFingerprint, labeled_part
from ndkd.distillation.building import training_loader
from ndkd.distillation.recorded_teacher import RecordedTeacher
from ndkd.distillation.recordings import add_tensors
from ndkd.distillation.step_output import ONE
from ndkd.errors import NdkdError, shortened
from ndkd.models.ensemble import Ensemble


class ClassMeans(L.Callback):
    """Fill the module's class means from one pass of the teacher over the training images.

    $$
    c_k = \\frac{1}{|S_k|} \\sum_{i \\in S_k} t_i
    $$

    summed in float64 over all processes. The means are part of the checkpoint; a resumed run keeps them.

    Args:
        augment: pass over augmented images, as the published numbers did, instead of the plain ones.
        file: read the means from here instead: ``.json`` (``{"0": [...], ...}``), ``.npz`` (array ``class_means``)
            or ``.safetensors`` (tensor ``class_means``). Where no loss asks for them, angles are measured against them.
        cache_dir: keep the means here, and reuse them for the same teacher weights, images and augmentation.
        max_images: pass over so many images at most, for detectors; a class that they do not show has a mean of zero,
            to which the ND loss gives no gradient.
        background_last: the background is the last class in ``file``, as in published ones for COCO.

    Raises:
        NdkdError: a class without samples, or a file whose means do not fit the teacher and the classes or, where the
            file says whose they are, are those of others.
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
        for name, means in pl_module.means_by_teacher.items():
            if means.isnan().any():  # else restored from a checkpoint
                self._fill(trainer, pl_module, name, means)

    def _fill(self, trainer: L.Trainer, module: Any, teacher: str, means: Tensor) -> None:
        if self.file is None:
            found = self._cached_or_computed(trainer, module, teacher)
        elif teacher != ONE:
            raise NdkdError("class_means.file is for one teacher, and there are several; leave it out to compute them")
        else:
            found = self._from_file(self.file, module).class_means
            if found.shape != means.shape:
                raise NdkdError(f"class means {self.file}: wanted {_size(means)} (classes × width), got {_size(found)}")
            if not found.any():
                raise NdkdError(f"class means {self.file}: all numbers are 0, they point nowhere; give another file")
        means.copy_(found)

    def reference(self, trainer: L.Trainer, module: Any) -> StoredMeans | None:
        """What angles are measured against where no loss asks for class means; it costs a run nothing but time.

        Those of the file or, where there is a teacher, its own. None where there are none to be had, and a line that
        says why: a run does not fail for a measurement.
        """
        if isinstance(module.teacher, Ensemble):
            return self._unmeasured(trainer, "there are several teachers")
        width = (module.student if module.projector is None else module.teacher).embedding_dim
        if self.file is not None:
            if trainer.ckpt_path and not Path(self.file).exists():
                return self._unmeasured(trainer, f"class means {self.file} are gone")
            stored = self._from_file(self.file, module)
            classes, wide = stored.class_means.shape
            if classes != (wanted := module.num_classes):
                raise NdkdError(f"class means {self.file}: wanted {wanted} classes, got {classes}")
            if wide == width:
                return stored
            return self._unmeasured(trainer, f"the embeddings are {width} wide, those of {self.file} {wide}", stored)
        # foreign data may change its order with every pass
        if module.teacher is None or not isinstance(_data_of(trainer), HasClassMeanLoader):
            return None
        if (wide := module.teacher.embedding_dim) != width:
            return self._unmeasured(trainer, f"the student's embeddings are {width} wide, the teacher's {wide}")
        try:
            with torch.random.fork_rng(devices=[]):
                return StoredMeans(self._cached_or_computed(trainer, module, ONE).to(module.device))
        except UnknownMean as error:
            return self._unmeasured(trainer, str(error))

    def _unmeasured(self, trainer: L.Trainer, why: str, stored: StoredMeans | None = None) -> StoredMeans | None:
        if trainer.is_global_zero:
            print(f"ndkd: no angles to class means: {why}")
        nothing: Any = None
        return stored and replace(stored, class_means=nothing)

    def _from_file(self, file: Path, module: Any) -> StoredMeans:
        stored = read_class_means(file)
        if not stored.class_means.isfinite().all():
            raise NdkdError(f"class means {file}: not all numbers are finite")
        knows = module.teacher is not None and module.has_embeddings
        stored.check(file, module.class_names, partial(_embed, module.teacher) if knows else None)
        means = stored.class_means.roll(1, dims=0) if self.background_last else stored.class_means
        return replace(stored, class_means=means.to(module.device))

    def _cached_or_computed(self, trainer: L.Trainer, module: Any, name: str) -> Tensor:
        teacher = module.teachers[name]
        loader: Any
        if isinstance(data := _data_of(trainer), HasClassMeanLoader):
            loader = data.class_mean_dataloader(self.augment)
        else:  # foreign data: its training images as they come
            loader = training_loader(trainer)
        if (file := self._cache_file(teacher, loader)) is None:
            return self._compute(trainer, module, name, loader)
        # one rank looks, before it writes
        if trainer.strategy.broadcast(trainer.is_global_zero and _is_whole(file)):
            return read_class_means(file).class_means
        means = self._compute(trainer, module, name, loader)
        if trainer.is_global_zero:
            names, shape = module.class_names, getattr(_data_of(trainer), "image_shape", None)
            probe = _embed(teacher, noise(shape)).float() if shape and module.has_embeddings else None
            stored = StoredMeans(means, names, probe, probe is not None and shape or None, str(loader.fingerprint()))
            if not isinstance(teacher, RecordedTeacher) or teacher.may_write():
                stored.write(file)
        return means

    def _cache_file(self, teacher: Any, loader: Any) -> Path | None:
        if isinstance(teacher, RecordedTeacher):  # which need not be there
            return teacher.file(f"class_means-augment-{self.augment}-of-{self.max_images or 'all'}.safetensors")
        if self.cache_dir is None:
            return None
        if not isinstance(loader, HasFingerprint):
            raise NdkdError("class_means.cache_dir: this data has no fingerprint to tell it by; leave cache_dir out")
        return Path(self.cache_dir) / f"{self._key(teacher, loader)}.safetensors"

    def _compute(self, trainer: L.Trainer, module: Any, name: str, loader: Any) -> Tensor:
        sums = ClassSums(module.num_classes, module.teachers[name].embedding_dim, module.device)
        # the share of this process in the first max_images
        most = None if self.max_images is None else len(range(trainer.global_rank, self.max_images, trainer.world_size))
        seen = 0
        embeddings, whose = module.teacher_embeddings, ""
        if name != ONE:  # a task of one's own need know of one teacher alone
            embeddings, whose = partial(embeddings, name=name), f" of {name}"
        bar = tqdm(loader, desc=f"class means{whose}", disable=not shows_bars(trainer), leave=False, unit="batch")
        for batch in bar:
            if seen == most:
                break
            batch = labeled_part(batch)
            batch = trainer.precision_plugin.convert_input(module.transfer_batch_to_device(batch, module.device, 0))
            sums.add(*embeddings(batch))
            seen += 0 if most is None else len(batch[0])  # another task's batch may be anything
        sums.reduce(trainer.strategy.reduce)
        means, absent = sums.means(module.class_names, module.allows_empty_classes)
        if absent and trainer.is_global_zero:
            print(f"ndkd: no region of class {shortened(absent, most=5)} for its mean: the ND loss leaves it out")
        return means

    def _key(self, teacher: Any, loader: Any) -> str:
        statistics = [None if v is None else v.tolist() for v in (teacher.mean, teacher.std)]
        digest = hashlib.sha256(f"{loader.fingerprint()} {statistics} {self.max_images}".encode())
        add_tensors(digest, teacher.state_dict())
        return digest.hexdigest()[:32]


def _is_whole(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        read_class_means(file)
    except NdkdError:
        print(f"ndkd: {file} is damaged: it is computed again")
        return False
    return True


@torch.no_grad()
def _embed(teacher: Any, images: Tensor) -> Tensor:
    """Its embeddings, by its own ``forward``: one that is compiled would be compiled again for two images."""
    like = next(teacher.parameters())
    return teacher.forward(images.to(like.device, like.dtype)).embedding


def _data_of(trainer: Any) -> Any:
    return trainer.datamodule


def _size(tensor: Tensor) -> str:
    return " × ".join(str(n) for n in tensor.shape)
