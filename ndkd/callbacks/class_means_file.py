"""Files of class means, and whose they are."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ndkd.distillation.recordings import add_tensors
from ndkd.errors import Damaged, NdkdError
from ndkd.files import write_atomically

NEAR = 0.05  # bfloat16 is 0.01 off, another teacher about 1


@dataclass
class StoredMeans:
    """Class means with what tells whose they are; a file of others has the means alone.

    Args:
        class_means: (C, D).
        class_names: in the order of the rows.
        probe: the teacher's embeddings (2, D) of ``noise``; by these it is known again, whatever the precision,
            the device or the classifier on top.
        image_shape: of the noise.
        images: digest of the images that the means are of.
        teacher_norm: mean length of the teacher's embeddings of the validation images.
    """

    class_means: Tensor
    class_names: list[str] | None = None
    probe: Tensor | None = None
    image_shape: tuple[int, ...] | None = None
    images: str | None = None
    teacher_norm: float | None = None

    def write(self, file: Path) -> None:
        """Write a ``.safetensors`` file."""
        stored = {"class_means": self.class_means, "probe": self.probe}
        tensors = {name: tensor.contiguous().cpu() for name, tensor in stored.items() if tensor is not None}
        about = {name: json.dumps(value) for name, value in vars(self).items() if name not in tensors and value}
        content = save(tensors, about | {"checksum": _checksum(tensors)})
        write_atomically(file, lambda out: out.write(content))

    def check(
        self, file: Path, class_names: Sequence[str] | None, embed: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Raise ``NdkdError`` unless they are of these classes and, where both are known, of this teacher.

        Args:
            file: named in the message.
            class_names: the data's.
            embed: the present teacher's embeddings of images.
        """
        if self.class_names and class_names and self.class_names != list(class_names):
            pairs = zip(self.class_names, class_names, strict=False)
            k = next((k for k, (one, other) in enumerate(pairs) if one != other), None)
            found = (
                f"its class {k} is {self.class_names[k]}, the data's is {class_names[k]}"
                if k is not None
                else (f"it has {len(self.class_names)} classes, the data has {len(class_names)}")
            )
            raise NdkdError(f"class means {file} are of other classes: {found}; leave class_means.file out")
        if self.probe is not None and embed is not None and not self._is_of(embed, self.probe):
            raise NdkdError(f"class means {file} are another teacher's; leave class_means.file out to compute them")

    def _is_of(self, embed: Callable[[Tensor], Tensor], probe: Tensor) -> bool:
        try:
            found = embed(noise(self.image_shape or ())).float().cpu()
        except RuntimeError:  # a model that takes images of another size
            return False
        return found.shape == probe.shape and bool((found - probe).norm() <= NEAR * probe.norm())


def noise(shape: Sequence[int]) -> Tensor:
    """Two images (2, c, h, w) of noise in [0, 1], always the same."""
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))


def read_class_means(path: str | Path) -> StoredMeans:
    """Class means from a ``.json``, ``.npz`` or ``.safetensors`` file.

    Raises:
        NdkdError: no such file, another format, or classes missing from it.
        Damaged: a file of ours with other numbers than were written.
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
            return StoredMeans(torch.tensor([rows[str(k)] for k in range(len(rows))]))
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return StoredMeans(torch.from_numpy(arrays["class_means"]).float())
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
    except NdkdError:
        raise
    except FileNotFoundError as error:
        raise NdkdError(f"class means {path} does not exist; correct class_means.file or leave it out") from error
    except Exception as error:
        raise NdkdError(f"class means {path} cannot be read: {type(error).__name__} {error}") from error
    raise NdkdError(f"class means {path}: wanted a .json, .npz or .safetensors file")


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    add_tensors(digest, dict(sorted(tensors.items())))
    return digest.hexdigest()


def _read_safetensors(path: Path) -> StoredMeans:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = file.metadata() or {}
    if about.get("checksum", found := _checksum(tensors)) != found:
        raise Damaged(path, "its checksum is another", "remove it; it is computed again")
    about = {
        name: json.loads(about[name])
        for name in ("class_names", "image_shape", "images", "teacher_norm")
        if name in about
    }
    probe = tensors.get("probe") if "image_shape" in about else None
    return StoredMeans(tensors["class_means"].float(), probe=probe, **about)
