"""The model card of an exported network, the same facts for programs, and what is measured for both."""

from typing import Any

import jinja2
import torch
import yaml
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ndkd.commands.export_formats import Network, quietly
from ndkd.commands.markdown import code, fence, inline, one_row, python_text
from ndkd.data.transforms import DEEP
from ndkd.errors import Damaged
from ndkd.runs import Run

SECONDS = 0.5  # to measure a latency
TEMPLATES = jinja2.Environment(loader=jinja2.PackageLoader("ndkd"), trim_blocks=True, lstrip_blocks=True)
TEMPLATES.filters |= {"inline": inline, "code": code, "fence": fence, "row": one_row, "python": python_text}
TEMPLATES.filters["yaml"] = lambda value: yaml.safe_dump([value], default_flow_style=True, width=1e9).strip()[1:-1]
TEMPLATES.globals["deep_modes"] = DEEP


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


def preprocessing(student: dict[str, Any], shape: Any, photo: dict[str, Any] | None, inside: bool) -> dict[str, Any]:
    """What becomes of a photo before the network sees it, for ``preprocess.json``.

    Args:
        student: the entry of its checkpoint, with ``mean`` and ``std``.
        shape: (c, h, w) of the images.
        photo: the steps up to the pixels, see ``ndkd.data.preprocessing.photo_steps``.
        inside: the network normalises by itself.
    """
    return {
        "input": {"shape": ["batch", *shape], "type": "float32", "colours": "RGB"},
        "photo": photo,
        "divide_by": 255,
        "normalised_by_the_network": inside,
        "mean": student.get("mean"),
        "std": student.get("std"),
    }


@quietly()
def flops(network: nn.Module, image: Tensor) -> int:
    """Floating point operations that a network takes for an image (1, c, h, w)."""
    # fused attention would not be counted, nor the fast path of nn.MultiheadAttention, which has no gradient
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


@quietly()
def latencies(network: Network, images: Tensor) -> str:
    """The time that a network takes for one image and for a batch, in words."""
    return ", ".join(f"{median_ms(network, images, batch):,.2f} ms at batch {batch}" for batch in (1, 64))


def median_ms(network: Network, images: Tensor, batch: int) -> float:
    """Milliseconds that a network takes for so many images."""
    from torch.utils.benchmark import Timer  # it looks for CUDA, and warns

    call = {"network": network, "images": images[torch.arange(batch) % len(images)]}
    timer = Timer("network(images)", globals=call, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=SECONDS).median * 1e3
