"""How long the embeddings of trained models are and where they point: what the notebooks compute and draw."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from ndkd.data.from_config import configured, evaluation_batches
from ndkd.distillation.module import DistillationModule
from ndkd.errors import NdkdError
from ndkd.losses.common import unit_vectors
from ndkd.models.checkpoint import read_checkpoint
from ndkd.models.checkpoint_files import existing_file
from ndkd.models.config import ModelConfig
from ndkd.models.projector import Projector
from ndkd.models.run_checkpoint import Known, check_run_checkpoint
from ndkd.runs import Run
from ndkd.trust import Trust


def load_run(
    folder: str | Path, checkpoint: str = "last", trust: Sequence[str] = ()
) -> tuple[DistillationModule, L.LightningDataModule]:
    """A run's models and its data, ready to evaluate.

    The module has ``student``, ``projector``, ``class_means`` (C, D of the teacher) and ``teacher``. A student trained
    alone has the first only, and there is no teacher where its checkpoint is gone: then they are None.

    Args:
        folder: the run folder of a classifier.
        checkpoint: ``last`` or ``best``.
        trust: packages of one's own that the run may name, see ``ndkd.trust.Trust``.

    Raises:
        NdkdError: no such run, no such checkpoint, one of something else, a name that is not trusted, or images that
            are gone.
    """
    run = Run.existing(folder)
    config, content, trusted = run.read_config(), read_checkpoint(run.checkpoint(checkpoint)), Trust(trust)
    known, weights = Known.of(content), content.get("state_dict") or {}
    is_described = known.student and known.num_classes is not None
    if not is_described or any(".roi_heads." in str(key) for key in weights):
        raise NdkdError(
            f"checkpoint {run.checkpoint(checkpoint)} is not a classifier's from ndkd fit; give the run of one"
        )
    check_run_checkpoint(content, run.checkpoint(checkpoint))
    teacher = _entry(config, "model", "init_args", "teacher")
    for name, described in (("student", known.student), ("teacher", teacher or known.student)):
        trusted.check_model(described, f"{run.path}: {name}")
    trusted.check_data(config.get("data"), str(run.config))
    data = configured(config["data"])
    models = {"student": ModelConfig(**known.student), "teacher": teacher}
    module = DistillationModule(**models, num_classes=known.num_classes, class_names=known.class_names)
    module.configure_model()
    if "projector.2.weight" in weights:
        module.projector = Projector(*reversed(weights["projector.2.weight"].shape))
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"])
    source: Any = module.sources["teacher"]  # several are none that a student is compared with
    if source and (source.checkpoint is None or existing_file(source.checkpoint)):
        module.teacher = module.build_extractor(source, data)
    return module.eval(), data


def _entry(config: Any, *keys: str) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


@torch.no_grad()
def embed(model: nn.Module, data: L.LightningDataModule, projector: nn.Module | None = None) -> dict[str, Tensor]:
    """Every test image (of data without any, every validation image) through one model, on a GPU if there is one.

    Args:
        model: a run's student or teacher, in evaluation mode.
        data: gives images and class indices.
        projector: of a student that has one.

    Returns:
        On the CPU ``target`` (N,), ``logits`` (N, C), ``embedding`` (N, D) and ``projected`` (N, D of the teacher),
        which is the embedding itself where there is no projector.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, projector = model.to(device), (projector or nn.Identity()).to(device)
    batches = []
    for images, target in evaluation_batches(data):
        output = model(images.to(device))
        batches.append((target, output.logits.cpu(), output.embedding.cpu(), projector(output.embedding).cpu()))
    parts = map(torch.cat, zip(*batches, strict=True))
    return dict(zip(("target", "logits", "embedding", "projected"), parts, strict=True))


def angles_to(class_means: Tensor, embedding: Tensor) -> Tensor:
    """Angles (N, C) in degrees between embeddings (N, D) and class means (C, D); of an embedding of length 0, 90.

    Examples:
        >>> angles_to(torch.eye(2), torch.tensor([[1.0, 1.0], [0.0, 3.0]]))
        tensor([[45., 45.],
                [90.,  0.]])
    """
    return torch.rad2deg((unit_vectors(embedding) @ unit_vectors(class_means).T).clamp(-1, 1).acos())


def measure(run: str, embedded: dict[str, Tensor], class_means: Tensor | None) -> pd.DataFrame:
    """Norms, angles and a projection, a row per test image.

    Args:
        run: its name.
        embedded: of ``embed``.
        class_means: the teacher's (C, D of the teacher), of this run or of another.

    Returns:
        ``run``, ``image`` (its number), ``target``, ``prediction``; the lengths ``norm`` and ``projected_norm``; of the
        projected embedding, in degrees, ``angle`` to the own class mean and ``other_angle`` to the nearest other; and
        its direction, a unit vector, along the first two principal axes of those of the class means, ``x`` and ``y``.

    Raises:
        NdkdError: no class means, or embeddings of another width.
    """
    target, projected = embedded["target"], embedded["projected"]
    wanted, found = projected.shape[1], None if class_means is None else class_means.shape[1]
    if class_means is None or found != wanted:
        raise NdkdError(f"run {run}: wanted class means {wanted} wide, got {found}; take those of a run with NDLoss")
    angles, own = angles_to(class_means, projected), target.unsqueeze(1)
    columns = {"run": run, "image": range(len(target)), "target": target, "prediction": embedded["logits"].argmax(1)}
    columns |= {"norm": embedded["embedding"].norm(dim=1), "projected_norm": projected.norm(dim=1)}
    columns |= {"angle": angles.gather(1, own)[:, 0], "other_angle": angles.scatter(1, own, torch.inf).amin(dim=1)}
    columns["x"], columns["y"] = PCA(2).fit(unit_vectors(class_means)).transform(unit_vectors(projected)).T
    return pd.DataFrame(columns)


def distribution_figure(measured: pd.DataFrame, columns: list[str], log: bool = False) -> plt.Figure:
    """Histograms, a panel per column, a line per run.

    Args:
        measured: of ``measure``, several runs one below the other.
        columns: ``["norm", "projected_norm"]``, or ``["angle", "other_angle"]``.
        log: the axis is logarithmic, as suits norms.
    """
    low, high = measured[columns].min(axis=None), measured[columns].max(axis=None)
    edges = np.geomspace(max(low, high / 1e4), high, 60) if log else np.linspace(low, high, 60)
    figure, axes = plt.subplots(len(columns), sharex=True, squeeze=False, figsize=(7, 4.5), layout="constrained")
    for axis, column in zip(axes.flat, columns, strict=True):
        for run, rows in measured.groupby("run", sort=False):
            axis.hist(rows[column].clip(edges[0], edges[-1]), edges, histtype="step", linewidth=1.5, label=run)
        axis.set(xlabel=column.replace("_", " "), ylabel="images", xscale="log" if log else "linear")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    plt.close(figure)  # a notebook would show it twice
    return figure


def projection_figure(measured: pd.DataFrame, class_means: Tensor) -> plt.Figure:
    """Directions, a panel per run: an image is a dot in the colour of its class, a class mean the class's number.

    Args:
        measured: of ``measure`` with these class means, several runs one below the other.
        class_means: (C, D of the teacher).
    """
    figure, axes = plt.subplots(1, measured["run"].nunique(), sharex=True, sharey=True, figsize=(14, 4), layout="tight")
    for axis, (run, rows) in zip(np.ravel(axes), measured.groupby("run", sort=False), strict=True):
        axis.scatter("x", "y", s=6, c="target", cmap="tab10", data=rows)
        for k, (x, y) in enumerate(PCA(2).fit_transform(unit_vectors(class_means))):
            axis.text(x, y, k, weight="bold", ha="center", va="center", bbox={"boxstyle": "circle", "fc": "white"})
        axis.set(title=run, xlabel="first axis of the class means", ylabel="second axis", aspect="equal")
    plt.close(figure)
    return figure
