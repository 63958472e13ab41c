"""A teacher that is asked once for each image of an epoch, and read from its recording from then on."""

import json
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ndkd.distillation.compression import Compression
from ndkd.distillation.recording import EpochReader, EpochWriter, Rows, Tensors
from ndkd.errors import Damaged, NdkdError
from ndkd.files import write_atomically
from ndkd.models.features import FeatureExtractor

ABOUT = "about.json"
NUMBERS = Rows({"number": ("float32", ())})
SEEN = 8  # pixels of an image that are kept, to tell that it is the same one


@dataclass
class Recording:
    """A folder of the outputs of one teacher on one stream of images.

    Args:
        folder: ``about.json`` and a file for each epoch and process.
        identity: what makes the stream and the teacher; two recordings with the same one hold the same numbers.
        compression: of the outputs.
        about: what else is kept of it: ``fields`` of a row, ``embedding_dim`` and ``num_classes`` of the teacher.
    """

    folder: Path
    identity: dict[str, Any]
    compression: Compression
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> Rows | None:
        """How an image's outputs are kept, once one is known."""
        return Rows(self.about["fields"]) if "fields" in self.about else None

    @property
    def names(self) -> set[str]:
        """The outputs of the teacher that are kept, as loss terms name them; none before one is known."""
        packed = ("top_logits", "top_classes", "rest")
        return {"logits" if name in packed else name for name in self.about.get("fields", ())} - {"seen"}

    def file(self, epoch: int, rank: int) -> Path:
        return self.folder / f"epoch-{epoch:04}-rank-{rank}.rows"

    def has(self, epochs: Collection[int], rank: int) -> bool:
        """Whether all of them are there."""
        return all(self.file(epoch, rank).is_file() for epoch in epochs)

    def write_about(self) -> None:
        content = json.dumps({"identity": self.identity, **self.about}, indent=1)
        write_atomically(self.folder / ABOUT, lambda out: out.write(content.encode()))


class RecordedTeacher(nn.Module):
    """Answers as its teacher does: in a training step from the recording, where that has the epoch.

    Args:
        recording: what is there, and where more goes.
        build: makes the teacher, on the CPU; called when it is wanted and no sooner.
        teacher: it, where it is built already.
        names: the outputs that are kept.
        say: prints a line.
        who: the teacher, in such a line.
    """

    def __init__(
        self,
        recording: Recording,
        build: Callable[[], FeatureExtractor],
        teacher: FeatureExtractor | None,
        names: Collection[str],
        say: Callable[[str], None] = print,
        who: str = "the teacher",
    ):
        super().__init__()
        self.recording, self.build, self.names, self.say = recording, build, sorted(names), say
        self.who = who
        self.model, self.when_built = teacher, list[Callable[[FeatureExtractor], None]]()
        self.is_new = teacher is None  # the first question is that for the shapes
        self.is_paused = False  # between training steps
        self.records = True  # until something stands in its way
        self.reader: EpochReader | None = None
        self.writer: EpochWriter | None = None
        self.differs: Tensor | None = None
        if teacher is not None:
            recording.about |= {"embedding_dim": teacher.embedding_dim, "num_classes": teacher.num_classes}

    @property
    def embedding_dim(self) -> int:
        return self.recording.about["embedding_dim"]

    @property
    def num_classes(self) -> int:
        return self.recording.about["num_classes"]

    @property
    def is_asked(self) -> bool:
        """Whether the teacher itself is there."""
        return self.model is not None

    def prepare(self, change: Callable[[FeatureExtractor], None]) -> None:
        """Change the teacher itself, now or when it is built."""
        self.when_built.append(change)
        if self.model is not None:
            change(self.model)

    def itself(self, images: Tensor) -> FeatureExtractor:
        """The teacher, built if need be, where such images are."""
        if self.model is None:
            with torch.random.fork_rng(devices=[]):
                self.model = self.build().to(images.device, images.dtype)
            for change in self.when_built:
                change(self.model)
        return self.model

    def forward(self, images: Tensor) -> Any:
        """``ModelOutput``, or of a recorded image what was kept of it, under the same names."""
        if self.is_new:
            self.is_new = False
            return self._blank(len(images))
        if self.reader is not None and not self.is_paused:
            if (kept := self.reader.take(len(images))) is not None:
                return self._replayed(kept, images)
            self._leave(f"{self.recording.folder} ends before the epoch does: {self.who} goes on")
        output = self.itself(images)(images)
        if self.writer is not None and not self.is_paused:
            self._record(images, output)
        return output

    # ---- what is measured once ------------------------------------------------------------------------------------

    def file(self, name: str) -> Path:
        """For something else that is known of the teacher."""
        return self.recording.folder / name

    def may_write(self) -> bool:
        """Whether more can be kept; a folder that is only read is no mistake."""
        try:
            self.recording.folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return False
        return os.access(self.recording.folder, os.W_OK)

    def remember(self, name: str, numbers: Tensor) -> None:
        """Keep a number for each image of a set, (N,) float32."""
        if not self.may_write():
            return
        writer = EpochWriter(self.file(f"{name}.rows"), NUMBERS)
        try:
            writer.add({"number": numbers})
            writer.commit()
        except OSError:
            writer.discard()

    def recall(self, name: str) -> Tensor | None:
        """What was remembered, if it was."""
        try:
            reader = EpochReader(self.file(f"{name}.rows"), NUMBERS)
        except (Damaged, OSError):
            return None
        return (reader.take(len(reader.data)) or {}).get("number")

    # ---- an epoch ---------------------------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int, rank: int) -> None:
        """From here on every forward is that of a training step."""
        file, rows = self.recording.file(epoch, rank), self.recording.rows
        assert rows is not None
        self.differs = None
        if file.is_file():
            try:
                self.reader = EpochReader(file, rows)
                return
            except (Damaged, OSError) as error:
                self.say(f"ndkd: {error}")
        if self.records:
            try:
                self.writer = EpochWriter(file, rows)
            except OSError as error:
                self.stop_recording(error)

    def end_epoch(self) -> None:
        """Keep what was recorded of a whole epoch.

        Raises:
            NdkdError: the images of the epoch are not those that were recorded.
        """
        if self.differs is not None and self.differs.item():
            raise NdkdError(
                f"{self.recording.folder} was recorded of other images than this epoch's, though everything that is "
                "known of them agrees: remove that folder, or give another --teacher_cache"
            )
        if self.writer is not None:
            try:
                self.writer.commit()
            except OSError as error:
                self.stop_recording(error)
        self.leave_epoch()

    def leave_epoch(self) -> None:
        """Every forward is of its own again; what was recorded of half an epoch is dropped."""
        if self.reader is not None:
            self.reader.close()
        if self.writer is not None:
            self.writer.discard()
        self.reader = self.writer = None

    def stop_recording(self, why: OSError) -> None:
        self.records = False
        if self.writer is not None:
            self.writer.discard()
        self.writer = None
        self.say(f"ndkd: {self.who}'s outputs are not recorded any more: {why.strerror or why}; the run goes on")

    # ---- a step -----------------------------------------------------------------------------------------------------

    def kept_of(self, images: Tensor, output: Any) -> Tensors:
        """What is recorded of a batch."""
        outputs = {name: getattr(output, name) for name in self.names}
        return self.recording.compression.pack(outputs) | {"seen": _seen(images)}

    def _blank(self, count: int) -> Any:
        """Outputs of the right shapes, to build losses from."""
        rows = self.recording.rows
        assert rows is not None
        kept = {name: torch.zeros(count, *shape, dtype=rows.types[name]) for name, (_, shape) in rows.fields.items()}
        return self._outputs(kept)

    def _record(self, images: Tensor, output: Any) -> None:
        assert self.writer is not None
        try:
            self.writer.add(self.kept_of(images, output))
        except OSError as error:
            self.stop_recording(error)

    def _replayed(self, kept: Tensors, images: Tensor) -> Any:
        kept = {name: tensor.to(images.device, non_blocking=True) for name, tensor in kept.items()}
        differs = (kept["seen"] != _seen(images)).any()
        self.differs = differs if self.differs is None else self.differs | differs  # looked at once an epoch
        return self._outputs(kept)

    def _outputs(self, kept: Tensors) -> Any:
        outputs = self.recording.compression.unpack(kept, self.num_classes)
        outputs.pop("seen", None)
        return SimpleNamespace(**outputs)

    def _leave(self, why: str) -> None:
        self.say(f"ndkd: {why}")
        if self.reader is not None:
            self.reader.close()
        self.reader = None


def _seen(images: Tensor) -> Tensor:
    """A few pixels (B, SEEN) of each image."""
    flat = images.permute(0, 2, 3, 1).flatten(1)  # a view, of images that are channels last
    return flat[:, :: max(1, flat.shape[1] // SEEN)][:, :SEEN].float()
