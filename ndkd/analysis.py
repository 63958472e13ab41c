"""The embeddings of finished runs on their test images: how long they are and where they point.

:func:`embed_runs` gives the embeddings of several runs and of their teacher; :func:`norms`, :func:`angles` and
:func:`plane` make tables of them, a row per image; :func:`distributions` and :func:`scatter` make figures of those.
Runs that are compared have the same images and the same teacher.
"""

from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pandas as pd
import torch
import yaml
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional as F

from ndkd.data.configured import configured
from ndkd.distillation import DistillationModule, StepOutput
from ndkd.errors import NdkdError
from ndkd.models import ModelConfig, ModelOutput
from ndkd.models.checkpoint import read_checkpoint
from ndkd.models.projector import Projector
from ndkd.runs import Run

LABELS = {"raw_norm": "norm", "projected_norm": "norm after the projector"}
LABELS |= {"angle": "to its own class mean", "other_angle": "to the nearest other one"}


# ---- from run folders -----------------------------------------------------------------------------------------------


def load_module(run: str | Path, checkpoint: str = "last") -> DistillationModule:
    """The models of a run in evaluation mode: the student and, where it had them, projector, class means and teacher.

    All but the teacher comes from the checkpoint; the teacher is built as the configuration says, and left out if its
    file is gone.

    Args:
        run: the run's folder.
        checkpoint: of the ``last`` or the ``best`` epoch.

    Raises:
        NdkdError: no such run or checkpoint, one that is not a classifier's of ``ndkd fit``, a teacher that does not
            fit.
    """
    run = Run.existing(run)
    file = run.checkpoint(checkpoint)
    content, init = read_checkpoint(file), yaml.safe_load(run.config.read_text())["model"]["init_args"]
    stored, weights = content.get("hyper_parameters"), content.get("state_dict")
    student, teacher = stored.get("student") if isinstance(stored, dict) else None, init.get("teacher") or {}
    if not isinstance(student, dict) or "roi_heads" in str(student.get("classifier", "roi_heads")):
        raise NdkdError(f"checkpoint {file} is none of a classifier that ndkd fit has built and trained by its name")
    module = DistillationModule(student, channels_last=False)
    config = ModelConfig(**{**student, "checkpoint": file, "taps": None})
    module.student = config.build(stored["num_classes"], None, None)
    module.class_means = weights.get("class_means")
    if projector := {key.split(".", 1)[1]: weights[key] for key in weights if key.startswith("projector.")}:
        module.projector = Projector(module.student.embedding_dim, len(projector["2.weight"]))
        module.projector.load_state_dict(projector)
    if "name" in teacher and (not teacher.get("checkpoint") or Path(teacher["checkpoint"]).is_file()):
        data, config = load_data(run.path), ModelConfig(**{**teacher, "taps": None})
        statistics = getattr(data, "mean", None), getattr(data, "std", None)
        module.teacher = config.build(stored["num_classes"], *statistics, stored["class_names"])
    return module.eval()


def load_data(run: str | Path) -> L.LightningDataModule:
    """The DataModule of a run's configuration.

    Raises:
        NdkdError: no such run, or data that cannot be made as its configuration says.
    """
    return configured(yaml.safe_load(Run.existing(run).config.read_text())["data"])


@torch.no_grad()
def embed(run: str | Path, checkpoint: str = "last") -> StepOutput:
    """What a run's models make of its N test images, or of the validation images if there are none to test on.

    Args:
        run: the run's folder.
        checkpoint: of the ``last`` or the ``best`` epoch.

    Returns:
        On the CPU: ``student.embedding`` (N, D), ``student.projected`` (N, D of the teacher; the embedding itself
        where the run has no projector), ``student.logits`` (N, C), ``target`` (N,), and where the run has them
        ``teacher.embedding``, ``teacher.logits`` and ``class_means`` (C, D of the teacher).

    Raises:
        NdkdError: what :func:`load_module` and :func:`load_data` raise.
    """
    module, data = load_module(run, checkpoint), load_data(run)
    module.to("cuda" if torch.cuda.is_available() else "cpu")
    has_test = type(data).test_dataloader is not L.LightningDataModule.test_dataloader
    data.prepare_data()
    data.setup("test" if has_test else "validate")
    loader = data.test_dataloader() if has_test else data.val_dataloader()
    batches = [module.forward_pair((images.to(module.device), target)) for images, target, *_ in loader]
    student, teacher = ([getattr(batch, kind) for batch in batches] for kind in ("student", "teacher"))
    target, means = torch.cat([batch.target for batch in batches]).cpu(), module.cpu().class_means
    return StepOutput(_joined(student), target, _joined(teacher) if module.teacher else None, means)


def embed_runs(runs: dict[str, str | Path], checkpoint: str = "last") -> dict[str, StepOutput]:
    """What :func:`embed` gives for each run by its name, and first, if one of them has a teacher, for ``teacher``."""
    found = {name: embed(run, checkpoint) for name, run in runs.items()}
    taught = next((run for run in found.values() if run.teacher), None)
    return ({"teacher": StepOutput(taught.teacher, taught.target)} if taught else {}) | found


def _joined(outputs: list[ModelOutput]) -> ModelOutput:
    columns = zip(*((output.logits, output.embedding, output.projected) for output in outputs), strict=True)
    return ModelOutput(*(torch.cat(column).cpu() for column in columns))


# ---- tables ---------------------------------------------------------------------------------------------------------


def norms(runs: dict[str, StepOutput]) -> pd.DataFrame:
    """Lengths of the embeddings, a row per run and image.

    Columns: ``run``, ``image``, ``target``, ``prediction``, ``raw_norm`` and ``projected_norm``, which is the same
    where there is no projector.

    >>> student = ModelOutput(logits=torch.tensor([[0.0, 2.0]]), embedding=torch.tensor([[3.0, 4.0]]))
    >>> norms({"mine": StepOutput(student, target=torch.tensor([1]))})["raw_norm"].tolist()
    [5.0]
    """
    columns = {}
    for name, run in runs.items():
        kinds = {"raw_norm": run.student.embedding, "projected_norm": run.student.projected}
        columns[name] = {kind: embedding.double().norm(dim=1) for kind, embedding in kinds.items()}
    return _table(runs, columns)


def angles(runs: dict[str, StepOutput], class_means: Tensor | None = None) -> pd.DataFrame:
    """Angles between the (projected) embeddings and class means in degrees, a row per run and image.

    Columns: ``run``, ``image``, ``target``, ``prediction``, ``angle`` to the mean of the own class and ``other_angle``
    to the nearest mean of another.

    Args:
        runs: by the names to give them.
        class_means: (C, D) for all of them, such as another run's; by default each run's own.

    Raises:
        NdkdError: a run without class means, or embeddings that are not as wide as the class means.
    """
    columns = {}
    for name, run in runs.items():
        means = run.class_means if class_means is None else class_means
        degrees, own = degrees_to(_comparable(name, run, means), means), run.target.unsqueeze(1)
        others = degrees.scatter(1, own, float("inf")).amin(dim=1)
        columns[name] = {"angle": degrees.gather(1, own)[:, 0], "other_angle": others}
    return _table(runs, columns)


def degrees_to(embeddings: Tensor, class_means: Tensor) -> Tensor:
    """Angles (N, C) in degrees between embeddings (N, D) and class means (C, D).

    >>> degrees_to(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    tensor([[ 0., 90.]], dtype=torch.float64)
    """
    cosine = F.normalize(embeddings.double()) @ F.normalize(class_means.double()).T
    return cosine.clamp(-1, 1).acos().rad2deg()


def means_of(run: StepOutput) -> Tensor:
    """A run's own class means, those of the (projected) embeddings of these images, (C, D); NaN for a class without.

    >>> embedding = torch.tensor([[3.0, 4.0], [5.0, 6.0], [0.0, 1.0]])
    >>> means_of(StepOutput(ModelOutput(torch.zeros(3, 2), embedding), target=torch.tensor([0, 0, 1])))
    tensor([[4., 5.],
            [0., 1.]])
    """
    classes = range(run.student.logits.shape[1])
    return torch.stack([run.student.projected[run.target == k].mean(dim=0) for k in classes])


def plane(runs: dict[str, StepOutput], class_means: Tensor) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The (projected) embeddings and class means (C, D) in the plane of the means' first two principal components.

    The embeddings have no say in the plane: every run is seen from the same side.

    Returns:
        ``x`` and ``y`` of each run and image (``run``, ``image``, ``target``, ``prediction``), and of each mean.

    Raises:
        NdkdError: embeddings that are not as wide as the class means.
    """
    pca = PCA(2).fit(class_means)
    seen = {name: pca.transform(_comparable(name, run, class_means)) for name, run in runs.items()}
    points = _table(runs, {name: dict(zip("xy", points.T, strict=True)) for name, points in seen.items()})
    return points, pd.DataFrame(pca.transform(class_means), columns=["x", "y"])


def _comparable(name: str, run: StepOutput, class_means: Tensor | None) -> Tensor:
    embedding = run.student.projected
    if class_means is None:
        raise NdkdError(f"{name} has no class means, for none of its losses uses them: give those of another run")
    if embedding.shape[1] != class_means.shape[1]:
        widths = f"embeddings of width {embedding.shape[1]} and class means of width {class_means.shape[1]}"
        raise NdkdError(f"{name}: {widths} cannot be compared; leave it out, or train it with a projector")
    return embedding


def _table(runs: dict[str, StepOutput], columns: dict[str, dict]) -> pd.DataFrame:
    frames = []
    for name, run in runs.items():
        images = {"run": name, "image": range(len(run.target)), "target": run.target}
        frames.append(pd.DataFrame({**images, "prediction": run.student.logits.argmax(dim=1), **columns[name]}))
    return pd.concat(frames, ignore_index=True)


# ---- figures --------------------------------------------------------------------------------------------------------


def distributions(table: pd.DataFrame) -> Figure:
    """Histograms of :func:`norms` (on a logarithmic axis) or :func:`angles`: a row per run, ``teacher`` in each."""
    columns = [column for column in LABELS if column in table]
    is_norms, low, high = "raw_norm" in columns, table[columns].min().min(), table[columns].max().max()
    edges = np.geomspace(max(low, 1e-3), high, 80) if is_norms else np.linspace(0, max(90, high), 91)
    runs, handles = dict(list(table.groupby("run", sort=False))), {}
    teacher = runs.pop("teacher") if "teacher" in runs and len(runs) > 1 else None
    figure = Figure(figsize=(8, 1 + 1.6 * len(runs)), layout="constrained")
    for axes, name in zip(figure.subplots(len(runs), sharex=True, squeeze=False)[:, 0], runs, strict=True):
        for who, images, colours in (("teacher", teacher, ("0.75", "0.3")), ("student", runs[name], ("C0", "C1"))):
            for column, kind, colour in zip(columns, ("stepfilled", "step"), colours, strict=True):
                if images is not None and (column != "projected_norm" or (images[column] != images["raw_norm"]).any()):
                    style = {"histtype": kind, "color": colour, "alpha": 0.7, "linewidth": 2}
                    share = np.full(len(images), 100 / len(images))
                    bars = axes.hist(images[column].clip(lower=edges[0]), edges, weights=share, **style)[2]
                    handles[f"{who}, {LABELS[column]}"] = bars[0]
        axes.set_title(name, loc="left")
        axes.set(ylabel="% of images", xscale="log" if is_norms else "linear")
    axes.set_xlabel("norm of the embedding" if is_norms else "angle to a class mean (degrees)")
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=2)
    return figure


def scatter(points: pd.DataFrame, means: pd.DataFrame) -> Figure:
    """What :func:`plane` gives, a panel per run: images in the colours of their classes, means as the class numbers."""
    runs = dict(list(points.groupby("run", sort=False)))
    figure = Figure(figsize=(3.2 * len(runs), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(runs), sharex=True, sharey=True, squeeze=False)[0], runs, strict=True):
        axes.scatter(runs[name]["x"], runs[name]["y"], s=5, alpha=0.5, c=[f"C{k % 10}" for k in runs[name]["target"]])
        for k, x, y in means.itertuples():
            box = {"boxstyle": "circle", "facecolor": "white", "edgecolor": f"C{k % 10}", "alpha": 0.9}
            axes.text(x, y, k, ha="center", va="center", size="small", weight="bold", bbox=box)
        axes.set(title=name, xlabel="first principal component")
    figure.axes[0].set_ylabel("second principal component")
    return figure
