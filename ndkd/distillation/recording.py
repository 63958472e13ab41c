"""What a teacher said of each image of an epoch, in the order of the stream: a file for each epoch and process.

A file is rows of bytes, one for each image, and at its end their number and their checksum. It gets its name when it is
whole.
"""

import os
import zlib
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ndkd.errors import Damaged
from ndkd.stopping import is_alive

BEHIND = 8  # batches that writing may lag behind the steps
FOOTER = np.dtype([("rows", "<u8"), ("checksum", "<u4")])
Fields = Mapping[str, tuple[str, tuple[int, ...]]]
Tensors = dict[str, Tensor]


class Rows:
    """How the tensors of a batch, (B, …) each, become rows of bytes and tensors again, bit by bit.

    Args:
        fields: type and shape of one image's part of each tensor, by name: ``{"logits": ("float32", (100,))}``.

    Examples:
        >>> tensors = {"logits": torch.randn(4, 10).bfloat16(), "norm": torch.rand(4)}
        >>> rows = Rows.of(tensors)
        >>> rows.size, rows.pack(tensors).shape
        (24, (4, 24))
        >>> torch.equal(rows.unpack(rows.pack(tensors))["norm"], tensors["norm"])
        True
    """

    def __init__(self, fields: Fields):
        self.fields = {name: (dtype, tuple(shape)) for name, (dtype, shape) in fields.items()}
        types = {name: getattr(torch, dtype) for name, (dtype, _) in self.fields.items()}
        widths = [types[name].itemsize * prod(shape) for name, (_, shape) in self.fields.items()]
        ends = np.cumsum(widths).tolist()
        self.types, self.size = types, ends[-1]
        self.parts = {name: slice(end - width, end) for name, width, end in zip(types, widths, ends, strict=True)}

    @classmethod
    def of(cls, tensors: Tensors) -> "Rows":
        """As these tensors want it."""
        return cls({name: (str(t.dtype).removeprefix("torch."), tuple(t.shape[1:])) for name, t in tensors.items()})

    def pack(self, tensors: Tensors) -> np.ndarray:
        """Bytes (B, size)."""
        whole = {name: tensors[name].detach().cpu().contiguous() for name in self.fields}
        return np.concatenate([t.view(len(t), -1).view(torch.uint8).numpy() for t in whole.values()], axis=1)

    def unpack(self, rows: np.ndarray) -> Tensors:
        """The tensors of bytes (B, size)."""
        found = {}
        for name, (_, shape) in self.fields.items():
            part = torch.from_numpy(rows[:, self.parts[name]].copy())
            found[name] = part.view(self.types[name]).view(len(rows), *shape)
        return found


class EpochWriter:
    """Write the rows of an epoch, in a thread: no step waits for a GPU or a disk. Nobody sees them before ``commit``.

    Args:
        file: its name when it is whole.
        rows: what they look like.

    Raises:
        OSError: as files do; of ``add``, maybe for an earlier batch.
    """

    def __init__(self, file: Path, rows: Rows):
        self.file, self.rows = file, rows
        self.count = self.checksum = 0
        file.parent.mkdir(parents=True, exist_ok=True)
        for left in file.parent.glob(f".{file.name}.*"):  # by a process that was killed
            if not is_alive(int(left.suffix[1:])):
                left.unlink(missing_ok=True)
        self.temporary = file.with_name(f".{file.name}.{os.getpid()}")
        self.out = self.temporary.open("wb")
        self.thread, self.begun = ThreadPoolExecutor(1), deque[Future[None]]()

    def add(self, tensors: Tensors) -> None:
        while len(self.begun) >= BEHIND or self.begun and self.begun[0].done():
            self.begun.popleft().result()
        # cloned: what a CUDA graph has returned is overwritten by the next step
        self.begun.append(self.thread.submit(self._write, {name: t.detach().clone() for name, t in tensors.items()}))

    def _write(self, tensors: Tensors) -> None:
        packed = self.rows.pack(tensors)
        self.out.write(packed.data)
        self.count += len(packed)
        self.checksum = zlib.crc32(packed.data, self.checksum)

    def commit(self) -> None:
        for each in self.begun:
            each.result()
        self.thread.shutdown()
        self.out.write(np.array([(self.count, self.checksum)], FOOTER).tobytes())
        self.out.close()
        self.temporary.replace(self.file)

    def discard(self) -> None:
        """Leave nothing of it, unless it is whole."""
        self.thread.shutdown(cancel_futures=True)
        try:
            self.out.close()
        finally:
            self.temporary.unlink(missing_ok=True)


class EpochReader:
    """Read the rows of an epoch, in order; the next batch is fetched by a thread while the last one is used.

    Args:
        file: a whole one.
        rows: what they look like.

    Raises:
        Damaged: not as it was written.
    """

    def __init__(self, file: Path, rows: Rows):
        if not file.stat().st_size:  # which cannot be mapped
            raise Damaged(file, "it is empty", "it is computed again")
        content = np.memmap(file, np.uint8, "r")
        data, footer = content[: -FOOTER.itemsize], content[-FOOTER.itemsize :]
        whole = len(footer) == FOOTER.itemsize and len(data) % rows.size == 0
        count, checksum = footer.view(FOOTER)[0] if whole else (0, 0)
        if not whole or count * rows.size != len(data) or zlib.crc32(data.data) != checksum:
            raise Damaged(file, "its checksum is another", "it is computed again")
        self.rows, self.data, self.position = rows, data.reshape(-1, rows.size), 0
        self.thread = ThreadPoolExecutor(1)
        self.ahead: tuple[slice, Future[Tensors]] | None = None

    def take(self, count: int) -> Tensors | None:
        """The tensors of the next so many images, None where there are not so many left."""
        part = slice(self.position, self.position + count)
        if part.stop > len(self.data):
            return None
        ahead, self.position = self.ahead, part.stop
        found = ahead[1].result() if ahead and ahead[0] == part else self._read(part)
        following = slice(part.stop, min(part.stop + count, len(self.data)))
        self.ahead = following, self.thread.submit(self._read, following)
        return found

    def close(self) -> None:
        self.thread.shutdown()

    def _read(self, part: slice) -> Tensors:
        return self.rows.unpack(self.data[part])
