"""The teacher's outputs in training are computed once, and read by every later run that sees the same images."""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch

from ndkd.callbacks.class_means_file import noise
from ndkd.data.base import HasFingerprint
from ndkd.distillation.building import image_shape
from ndkd.distillation.compression import Compression
from ndkd.distillation.detection import DetectionDistillationModule
from ndkd.distillation.recorded_teacher import RecordedTeacher, Recording
from ndkd.distillation.recording import Rows
from ndkd.distillation.recordings import find_recording, identity_of, is_in_a_file, new_recording, stream_of
from ndkd.distillation.step_output import ONE, outputs_of
from ndkd.distillation.teachers import build_teacher
from ndkd.errors import NdkdError
from ndkd.models.features import FeatureExtractor
from ndkd.seeds import seed_torch

KEPT = {"logits", "norm"}  # what KD, DKD, DIST and ND want, which then share a recording


class TeacherCache(L.Callback):
    """Record what the loss terms name of the teacher, epoch by epoch, and read it back where it is recorded.

    How an image is augmented depends on (seed, epoch, image) alone: a run that sees the same images as an earlier one
    gets the same outputs, and has the same gradients, bit for bit. Where all epochs are recorded, the teacher is not
    even loaded.

    A recording is of one teacher's weights, images, augmentation, seed, batch size and number of processes. Logits and
    norms are always kept, embeddings where a term reads them. Feature maps are not: a run whose terms read them asks
    the teacher as ever.

    Args:
        dir: folder of recordings; without it nothing is recorded.
        dtype: ``float16`` halves the space of float32 and is not exact.
        top_k: keep the so many largest logits of an image; the other classes share the rest of the probability evenly,
            which is not exact.

    Raises:
        NdkdError: a folder that cannot be made, a task that is not classification.
    """

    def __init__(self, dir: Path | None = None, dtype: Literal["exact", "float16"] = "exact", top_k: int | None = None):
        if top_k is not None and top_k < 1:
            raise NdkdError(f"teacher_cache.top_k: wanted at least 1, got {top_k}")
        if dir is not None and Path(dir).exists() and not Path(dir).is_dir():
            raise NdkdError(f"teacher_cache: wanted a folder, {dir} is a file")
        self.dir, self.compression = dir, Compression(dtype, top_k)
        self.teachers: list[RecordedTeacher] = []

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if self.dir is None or stage != "fit":
            return
        if isinstance(pl_module, DetectionDistillationModule):
            raise NdkdError("teacher_cache: a detector's regions depend on its student; leave it out")

    def make_teacher(self, trainer: Any, module: Any, name: str, used: Collection[str]) -> Any:
        """A teacher, with its recording where there can be one.

        Args:
            trainer: that will train.
            module: that is being built.
            name: of the teacher.
            used: the inputs of its loss terms.
        """
        if self.dir is None:
            return build_teacher(module, name, used)
        say = print if trainer.is_global_zero else _nothing
        who, names = "the teacher" if name == ONE else f"teacher {name}", outputs_of(name, used)

        def build() -> FeatureExtractor:
            return build_teacher(module, name, used).to(memory_format=module.memory_format)

        loader = _loader_or_why_not(trainer, name, names)
        if isinstance(loader, str):
            say(f"ndkd: {who}'s outputs are not recorded: {loader}")
            return build()
        source = module.sources[name]
        teacher = None if is_in_a_file(source) else build()
        stream = stream_of(trainer, loader, module.class_names)
        folder = Path(str(self.dir))
        identity = trainer.strategy.broadcast(identity_of(source, teacher, stream, self.compression))
        found = trainer.strategy.broadcast(find_recording(folder, identity, names))
        if isinstance(found, str):
            say(f"ndkd: no recording in {self.dir} is this run's; of the nearest, {found}")
        recording = found if isinstance(found, Recording) else new_recording(folder, identity, names | KEPT)
        epochs = _epochs(trainer, len(loader))
        is_full = bool(recording.about) and epochs is not None and recording.has(range(epochs), trainer.global_rank)
        is_full = trainer.strategy.reduce_boolean_decision(is_full)
        if teacher is None and not is_full:
            teacher = build()
        if is_full:
            loaded = ", and not loaded" if is_in_a_file(source) else ""
            say(f"{who.removeprefix('the ')}: read from {recording.folder}, all {epochs} epochs{loaded}")
            teacher = None
        elif isinstance(found, Recording):
            say(f"{who.removeprefix('the ')}: read from {recording.folder} where it has the epoch, else recorded there")
        recorded = RecordedTeacher(recording, build, teacher, recording.names or names | KEPT, say, who)
        self.teachers.append(recorded)
        self.rows_per_epoch, self.epochs = len(loader.sampler), epochs
        seed_torch(module.seed)  # as after any teacher
        return recorded

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Look what a row takes, and say how much space all of them will."""
        for teacher in self._own(pl_module):
            if teacher.is_asked:
                self._look(trainer, pl_module, teacher)

    def _look(self, trainer: Any, pl_module: Any, teacher: RecordedTeacher) -> None:
        blank = noise(image_shape(trainer)).to(pl_module.device, pl_module.dtype)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            kept = teacher.kept_of(blank, teacher.itself(blank).forward(blank))
        rows, recording = Rows.of(kept), teacher.recording
        if recording.rows is None:
            recording.about["fields"] = rows.fields
        elif recording.rows.fields != rows.fields:
            teacher.records = False
        left = (self.epochs or 0) - sum(
            recording.has([epoch], trainer.global_rank) for epoch in range(self.epochs or 0)
        )
        self._start_recording(trainer, teacher, rows.size * self.rows_per_epoch * trainer.world_size, left)

    def _start_recording(self, trainer: Any, teacher: RecordedTeacher, bytes_per_epoch: int, epochs: int) -> None:
        recording, wanted = teacher.recording, bytes_per_epoch * epochs
        try:
            recording.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(recording.folder).free
            if wanted > free:
                teacher.records = False
                teacher.say(
                    f"ndkd: {teacher.who}'s outputs are not recorded: they would take {in_words(wanted)}, and "
                    f"{recording.folder} has {in_words(free)} left"
                )
                return
            if trainer.is_global_zero:
                recording.write_about()
        except (OSError, NdkdError) as error:
            teacher.records = False
            teacher.say(f"ndkd: {teacher.who}'s outputs are not recorded: {error}")
            return
        exact = "" if self.compression == Compression() else ", not exact"
        space = f"{in_words(wanted)} for {epochs} epoch{'s' if epochs != 1 else ''}"
        if self.epochs is None:  # the trainer stops by time
            space = f"{in_words(bytes_per_epoch)} an epoch"
        if epochs or self.epochs is None:
            teacher.say(f"{teacher.who.removeprefix('the ')}: recorded in {recording.folder}, {space}{exact}")

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        for teacher in self._own(pl_module):
            teacher.begin_epoch(trainer.current_epoch, trainer.global_rank)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        for teacher in self._own(pl_module):
            teacher.end_epoch()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        for teacher in self._own(pl_module):
            teacher.is_paused = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        for teacher in self._own(pl_module):
            teacher.is_paused = False

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        for teacher in self.teachers:
            teacher.leave_epoch()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def _own(self, module: Any) -> list[RecordedTeacher]:
        return [teacher for teacher in self.teachers if any(teacher is each for each in module.teachers.values())]


def _loader_or_why_not(trainer: Any, teacher: str, names: set[str]) -> Any:
    """A loader of the training images, or what stands in the way of a recording of these outputs."""
    if other := sorted(names - KEPT - {"embedding"}):
        return f"a loss reads {teacher}.{other[0]}, which would take too much space"
    if trainer.fast_dev_run:
        return "fast_dev_run leaves nothing"
    data = trainer.datamodule
    loader = None if data is None else data.train_dataloader()
    return loader if isinstance(loader, HasFingerprint) else "this data has no fingerprint to tell it by"


def _epochs(trainer: Any, batches: int) -> int | None:
    """How many there will be at most; None if nobody knows."""
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        return int(trainer.max_epochs)
    steps = trainer.max_steps * trainer.accumulate_grad_batches
    return -(-steps // batches) if steps > 0 and batches else None


def in_words(size: float) -> str:
    """A number of bytes.

    >>> in_words(5.2e9), in_words(22_800)
    ('5.20 GB', '0.02 MB')
    """
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def _nothing(line: str) -> None:
    pass
