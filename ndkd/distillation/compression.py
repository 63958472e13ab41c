"""Less space for what is recorded of a teacher."""

from dataclasses import dataclass
from math import log

from ndkd.distillation.recording import Tensors


@dataclass
class Compression:
    """How outputs are kept in less space, at the price of exactness.

    Args:
        dtype: ``exact``, as they were computed, or ``float16``, half of float32.
        top_k: of the logits the so many largest; the others share what is left of the probability evenly.
    """

    dtype: str = "exact"
    top_k: int | None = None

    def pack(self, outputs: Tensors) -> Tensors:
        packed = dict(outputs)
        if self.top_k is not None and (logits := packed.get("logits")) is not None and self.top_k < logits.shape[1]:
            logits = packed.pop("logits").float()
            values, indices = logits.topk(self.top_k, dim=1)
            rest = logits.scatter(1, indices, float("-inf")).logsumexp(dim=1)
            packed |= {"top_logits": values, "top_classes": indices.int(), "rest": rest}
        if self.dtype == "float16":
            packed = {name: t.half() if t.is_floating_point() else t for name, t in packed.items()}
        return packed

    def unpack(self, packed: Tensors, num_classes: int) -> Tensors:
        found = dict(packed)
        if self.dtype == "float16":
            found = {name: t.float() if t.is_floating_point() else t for name, t in found.items()}
        if "rest" in found:
            values, indices, rest = (found.pop(name) for name in ("top_logits", "top_classes", "rest"))
            each = rest - log(num_classes - values.shape[1])
            found["logits"] = each[:, None].repeat(1, num_classes).scatter(1, indices.long(), values)
        return found
