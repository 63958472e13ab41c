"""The page of ``ndkd diagnose`` and the overlay of suggested weights."""

import base64
import io
from collections.abc import Iterator, Mapping
from operator import methodcaller
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ndkd.commands.diagnose_teacher import as_dots
from ndkd.commands.report_figures import COLOURS, calibration
from ndkd.files import write_atomically

MARK = '<meta name="generator" content="ndkd diagnose">'  # by which a page is told from other folders
WEIGHTS = "weights.yaml"


def write_page(out: Path, diagnosis: Any) -> Path:
    """Write ``index.html``, which needs no other file.

    Args:
        out: the folder.
        diagnosis: of ``ndkd.commands.diagnose.Diagnosis``.
    """
    pictures = {}
    with matplotlib.style.context(Path(__file__).parents[1] / "templates" / "report.mplstyle"):
        for name, figure in figures(diagnosis):
            picture = io.BytesIO()
            figure.savefig(picture, format="png")
            pictures[name] = base64.b64encode(picture.getvalue()).decode()
    templates = jinja2.Environment(loader=jinja2.PackageLoader("ndkd"), autoescape=True)
    page = templates.get_template("diagnose.html").render(mark=MARK, d=diagnosis, pictures=pictures)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "index.html", methodcaller("write", page.encode()), out)
    return out / "index.html"


def write_overlay(out: Path, weights: Mapping[str, float], shares: Mapping[str, float]) -> Path:
    """Write the weights of some terms as a configuration that ``--config`` takes after the one that was diagnosed."""
    asked = " ".join(f"{name}={share:g}" for name, share in shares.items())
    terms = "".join(f"      {name}: {{weight: {weights[name]:g}}}\n" for name in shares)
    text = f"# The weights that ndkd diagnose --share {asked} found.\nmodel:\n  init_args:\n    losses:\n{terms}"
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / WEIGHTS, methodcaller("write", text.encode()), out)
    return out / WEIGHTS


def figures(diagnosis: Any) -> Iterator[tuple[str, Figure]]:
    """Names and figures of everything that there is data for."""
    seen = {"training": diagnosis.training, "validation": diagnosis.validation}
    dots = [
        SimpleNamespace(name=f"{name} images", colour=colour, predictions=pd.DataFrame(as_dots(images)))
        for (name, images), colour in zip(seen.items(), COLOURS[1:], strict=False)
        if images is not None and images.logits is not None and len(images) >= 10
    ]
    if dots:
        yield "calibration", calibration(dots)
    if len(diagnosis.embeddings.between):
        yield "between", _between(diagnosis.embeddings)
    yield "shares", _shares(diagnosis.terms)


def _between(found: Any) -> Figure:
    figure = Figure(figsize=(6, 3.6))
    axes = figure.add_subplot(xlabel="angle between two class means (°)", ylabel="pairs of classes")
    bins: Any = np.linspace(0, max(90.0, found.between.max().item()), 46)
    axes.hist(found.between.numpy(), bins=bins, color=COLOURS[1])
    axes.axvline(found.limit, color=COLOURS[2], linestyle="--", label="nearly the same below")
    figure.legend(loc="outside upper left")
    return figure


def _shares(terms: Any) -> Figure:
    """A bar per term, at the start and after the proxy run."""
    figure = Figure(figsize=(6, 1.4 + 0.6 * len(terms.start)))
    axes = figure.add_subplot(xlabel="weight × norm of the gradient, share of the sum (%)")
    bars = {"at the start": terms.start, f"after {terms.steps} steps": terms.later}
    places = np.arange(len(terms.start))
    for k, (label, gradients) in enumerate(bars.items()):
        shares = [100 * share for share in terms.shares(gradients).values()]
        drawn = axes.barh(places + 0.36 * k, shares, height=0.34, color=COLOURS[k + 1], label=label)
        axes.bar_label(drawn, fmt="{:.1f}", padding=3, fontsize=9)
    axes.set_yticks(places + 0.18, list(terms.start))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    figure.legend(loc="outside upper left", ncols=2)
    return figure
