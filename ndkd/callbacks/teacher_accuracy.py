"""How good the teacher is itself, on the images that its student is validated on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from tqdm import tqdm

from ndkd.callbacks.epoch_lines import shows_bars
from ndkd.data.base import HasFingerprint
from ndkd.distillation.batches import hard, on_device
from ndkd.distillation.compression import Compression
from ndkd.distillation.recorded_teacher import RecordedTeacher
from ndkd.distillation.recordings import digest_of, identity_of, is_in_a_file
from ndkd.distillation.step_output import ONE
from ndkd.errors import Damaged, NdkdError
from ndkd.files import write_atomically
from ndkd.models.ensemble import Ensemble
from ndkd.run_checks import NUMBER
from ndkd.runs import Run

Values = dict[str, Any]  # ``val/acc1`` and others, and ``digest``: of what


class TeacherAccuracy(Checkpoint):
    """Pass the teacher over the validation images, once before the first epoch, and measure it as its student is.

    What is found goes into the run's status. Where the images have a fingerprint it is also kept with the teacher, in
    the run folder that its checkpoint lies in and in the folder of its recording, and later runs read it from there.

    A teacher of other classes than the data's is not measured, nor is a detector, nor one that is not loaded.

    Like the run recorder, after which it has to come, it is one of Lightning's checkpoint callbacks: status.json is
    written after config.yaml.

    Args:
        run: the folder.
    """

    def __init__(self, run: Run):
        self.run = run
        self.found: Values | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.found = None
        if not (trainer.enable_validation and is_of_these_classes(pl_module)):
            return
        trainer.fit_loop.epoch_loop.val_loop.setup_data()  # the trainer's own preparation, which is done once
        if len(trainer.num_val_batches) != 1:  # several sets have no accuracy in common
            return
        loader, batches = _validation(trainer)
        digest = _digest(trainer, pl_module, loader, batches) if trainer.is_global_zero else ""
        places = _places(pl_module) if isinstance(loader, HasFingerprint) else []
        found = _known(self.run, places, digest) if trainer.is_global_zero else None
        found = trainer.strategy.broadcast(found)
        if found is None and all(map(_is_loaded, pl_module.teachers.values())):
            found = {**measure(trainer, pl_module, loader, batches), "digest": digest}
            if trainer.is_global_zero:
                _remember(places, found)
        metric, word = pl_module.headline
        if found is None or f"val/{metric}" not in found:
            return
        self.found = found
        if trainer.is_global_zero:
            said = "teachers, by the mean of their logits" if len(pl_module.teachers) > 1 else "teacher"
            print(f"{said}: validation {word} {found[f'val/{metric}']:.2%}")

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self.run.update_status(teacher=self.found)


def measure(trainer: Any, module: Any, loader: Any, batches: float) -> dict[str, float]:
    """The values of the module's own metrics, ``val/acc1`` and others, with the teacher in the student's place.

    Args:
        trainer: that trains the module; all of its processes take part.
        module: with a teacher.
        loader: of the validation images.
        batches: so many of them.
    """
    bar = tqdm(loader, desc="teacher", total=batches, disable=not shows_bars(trainer), leave=False, unit="batch")
    with isolate_rng(), as_in_validation(trainer, module):
        for number, batch in enumerate(bar, 1):
            batch = on_device(trainer, module, batch)
            with trainer.precision_plugin.val_step_context():
                output = module.forward_pair(batch)
                module.update_metrics(replace(output, student=output.teacher, target=hard(output.target)))
            if number >= batches:
                break
        return {f"val/{name}": float(value) for name, value in module.compute_metrics("val").items()}


@contextmanager
def as_in_validation(trainer: Any, module: Any) -> Iterator[None]:
    """All modules in evaluation mode and no gradients; the trainer says that it validates, so that no images are
    mixed."""
    stage, modes = trainer.state.stage, {part: part.training for part in module.modules()}
    as_configured = trainer.fit_loop.epoch_loop.val_loop.inference_mode
    trainer.state.stage = RunningStage.VALIDATING
    module.eval()
    try:
        with torch.no_grad(), torch.inference_mode() if as_configured else nullcontext():
            yield
    finally:
        trainer.state.stage = stage
        for part, mode in modes.items():
            part.training = mode


def is_of_these_classes(module: Any) -> bool:
    """Whether there is a teacher whose logits are those of the data's classes; of several, whether all are."""
    if module.teacher is None or not module.has_embeddings:
        return False
    return all(_is_of_classes(teacher, module.num_classes) for teacher in module.teachers.values())


def _is_of_classes(teacher: Any, number: int) -> bool:
    itself = teacher.model if isinstance(teacher, RecordedTeacher) else teacher
    return teacher.num_classes == number and getattr(itself, "knows_classes", True)


def _is_loaded(teacher: Any) -> bool:
    return not isinstance(teacher, RecordedTeacher) or teacher.is_asked


def _validation(trainer: Any) -> tuple[Any, float]:
    """The loader of the validation images, and how many batches of it are wanted."""
    (loader,) = CombinedLoader(trainer.val_dataloaders, "sequential").flattened
    (batches,) = trainer.num_val_batches
    return loader, batches


def _digest(trainer: Any, module: Any, loader: Any, batches: float) -> str:
    """Of all that the accuracy depends on."""
    data = trainer.datamodule
    identities = [_identity(module.sources[name], teacher) for name, teacher in module.teachers.items()]
    statistics = [getattr(data, "mean", None), getattr(data, "std", None)]
    images = loader.fingerprint() if isinstance(loader, HasFingerprint) else None
    share = [batches, getattr(loader, "batch_size", None), trainer.world_size]
    parts = [*chain(*identities), images, share, trainer.precision, statistics, module.class_names, module.headline]
    return digest_of(parts)


def _identity(source: Any, teacher: Any) -> tuple[Any, Any]:
    """What makes a teacher another, and its weights."""
    if isinstance(teacher, RecordedTeacher):
        identity = teacher.recording.identity
    else:
        identity = identity_of(source, None if is_in_a_file(source) else teacher, {}, Compression())
    about, weights = identity["teacher"], identity["weights"]
    return {**about, "checkpoint": None} if weights else about, weights  # the same file by another name


def _places(module: Any) -> list[Path]:
    """Files beside the teacher, of several beside their recordings, in which accuracies are kept by their digests."""
    recorded = [each.file("as_teacher.json") for each in module.teachers.values() if isinstance(each, RecordedTeacher)]
    if isinstance(module.teacher, Ensemble):
        return recorded
    source = module.sources[ONE]
    run = Run.of_checkpoint(source.checkpoint) if is_in_a_file(source) else None
    return [run.as_teacher, *recorded] if run else recorded


def _known(run: Run, places: list[Path], digest: str) -> Values | None:
    """What an earlier start of the run, or another run, has found."""
    try:
        found = [run.status().get("teacher")]
    except Damaged:
        found = []
    found += [values for place in places for values in _read(place)]
    return next((values for values in found if values and values.get("digest") == digest), None)


def _read(file: Path) -> list[Values]:
    """What is kept in a file; of one that is damaged nothing."""
    try:
        kept = json.loads(file.read_bytes())
        return [values for values in kept if all(isinstance(v, NUMBER) for k, v in values.items() if k != "digest")]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def _remember(places: list[Path], found: Values) -> None:
    """Keep it for others, where that can be written; a measurement ends no run."""
    for place in places:
        kept = [values for values in _read(place) if values.get("digest") != found["digest"]]
        content = json.dumps([*kept, found], indent=2).encode()
        try:
            write_atomically(place, lambda file, content=content: file.write(content))  # type: ignore[misc]
        except (OSError, NdkdError):
            continue
