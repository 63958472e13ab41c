"""The page of ``ndkd report``, from small run folders written as training writes them."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from ndkd.commands import report_figures
from ndkd.commands.compare_tables import write_tables
from ndkd.commands.report import ShownRun, calibration_error, confusion_changes, quantiles_over_epochs, report
from ndkd.commands.report_figures import classes
from ndkd.runs import Run
from tests.command import ndkd

NORM_EDGES, ANGLE_EDGES = np.geomspace(1e-2, 1e4, 241), np.linspace(0, 180, 181)
TAUGHT = ("student_norm", "projected_norm", "teacher_norm", "angle")
VOID = {"meta", "img", "br"}


@pytest.fixture
def make_run(tmp_path):
    """Write a run folder of random predictions and histograms."""

    def make(
        name,
        epochs=3,
        classes=4,
        images=40,
        seed=0,
        accuracy=0.7,
        kinds=("student_norm",),
        class_names=None,
        target=None,
        results=True,
        **status,
    ):
        rng, run = np.random.default_rng(seed), Run(tmp_path / name)
        run.start(f"seed_everything: {seed}\n", 0)
        target = np.arange(images) % classes if target is None else target
        for epoch in range(epochs):
            wrong = rng.random(len(target)) > accuracy
            prediction = np.where(wrong, rng.integers(0, classes, len(target)), target)
            confidence = rng.uniform(1 / classes, 1, len(target))
            arrays = {"target": target, "prediction": prediction}
            arrays = {key: value.astype(np.int32) for key, value in arrays.items()}
            run.write_epoch("predictions", epoch, {**arrays, "confidence": confidence.astype(np.float16)})
            features = {"norm_edges": NORM_EDGES, "angle_edges": ANGLE_EDGES}
            for kind in kinds:
                edges = ANGLE_EDGES if kind == "angle" else NORM_EDGES
                features[kind] = np.histogram(rng.normal(40, 5, len(target)), edges)[0]
            run.write_epoch("features", epoch, features)
            measured = {"val/acc1": (prediction == target).mean(), "val/cross_entropy": 2 / (epoch + 1)}
            run.add_metrics({"epoch": epoch, "step": 10 * epoch, **measured, "train/loss": 1 / (epoch + 1)})
        run.checkpoints.mkdir(exist_ok=True)
        if epochs:
            torch.save({"hyper_parameters": {"class_names": class_names}}, run.checkpoint("last"))
        last = {"epoch": epochs - 1, "test/acc1": accuracy, "test/cross_entropy": 0.5}
        found = (
            {"results": {"last": last, "best": {**last, "epoch": 0, "test/acc1": accuracy + 0.01}}} if results else {}
        )
        finished = {"state": "finished", "headline": "acc1", "parameters": 78042, "seconds": 3723.4, **found}
        run.update_status(**{**finished, "git_commit": "0123456789abcdef-dirty", **status})
        return run

    return make


@pytest.fixture
def undrawn(monkeypatch):
    """The pictures are a pixel each: drawing is what takes time."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: Image.new("RGB", (1, 1)).save(file, "PNG"))


class Page(HTMLParser):
    """Its text, the addresses it names, and whether every element ends."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.addresses, self.tags = [], "", [], set()
        self.feed(page.read_text(encoding="utf-8"))
        assert not self.open
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        self.open += [tag] if tag not in VOID else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if not self.open or self.open[-1] != "style" else ""


def page_of(*runs, out):
    report([run.path for run in runs], out)
    return Page(out / "index.html")


def files_under(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def shown(run):
    return ShownRun(run.path, run.path.name, "#000000")


# ---- the page ------------------------------------------------------------------------------------------------------


def test_a_comparison_says_what_was_found_and_needs_no_other_file(make_run, tmp_path):
    base = make_run("base", accuracy=0.6, class_names=["<i>cat</i>", "dog", "$e$", "_hen"])
    names = ["<i>cat</i>", "dog", "$e$", "_hen"]
    teacher = {"val/acc1": 0.7625, "digest": "a"}
    weights = {"ce": 1.0, "nd": 24.4}
    taught = make_run(
        "kd$1$", accuracy=0.725, seed=1, kinds=TAUGHT, class_names=names, teacher=teacher, weights=weights
    )
    failed = make_run("failed", 2, seed=2, results=False, state="failed", error="<b>boom</b>")
    status, out, err = ndkd("report", base.path, taught.path, failed.path)
    folder = tmp_path / "report"
    assert (status, out, err) == (0, f"report: {folder / 'index.html'}\n", "")
    page = Page(folder / "index.html")
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not page.tags & {"script", "link", "iframe"}
    assert not re.search(r"https?://|url\(|@import", (folder / "index.html").read_text())
    assert len(page.addresses) == len(list(folder.glob("*.png"))) == 11
    assert "kd$1$ is 12.50 points better than the baseline on the test images after the last epoch (72.50" in page.text
    assert "failed did not finish, and is not judged; its state is failed: <b>boom</b>" in page.text
    assert not page.tags & {"h4"}
    assert "<i>cat</i> →" in page.text or "→ <i>cat</i>" in page.text
    assert "No angle: base and failed (neither a teacher nor a file of class means, or of another width)." in page.text
    assert "one seed: a difference between two runs is no proof" in page.text
    assert "1:02:03" in page.text
    assert "76.25 % validation" in page.text
    assert "01234567" in page.text
    assert "Weights of the loss terms: kd$1$ ce 1, nd 24.4." in page.text
    assert "78,042" in page.text


@pytest.mark.usefixtures("undrawn")
def test_right_and_wrong_images_are_counted(make_run, tmp_path):
    base, other = make_run("base", 1, seed=3), make_run("other", 1, seed=4)
    right = [
        np.equal(*(run.read_epoch("predictions", 0)[key] for key in ("target", "prediction"))) for run in (base, other)
    ]
    page = page_of(base, other, out=tmp_path / "page")
    gained, lost = np.sum(right[1] & ~right[0]), np.sum(right[0] & ~right[1])
    assert gained != lost
    assert f"it has {gained} right that the baseline has wrong, and {lost} wrong that the baseline" in page.text
    assert "is as good as the baseline on the test images" in page.text


@pytest.mark.usefixtures("undrawn")
def test_a_study_that_decided_gives_its_verdict(make_run, tmp_path):
    """Of these two configurations; runs of other folders, or of a study with fixed seeds, have none."""
    names = {"a": "a-seed0", "b": "b-seed0", "c": "c-seed0"}
    made = {name: make_run(folder, 1, seed=k) for k, (name, folder) in enumerate(names.items())}
    rows = [
        {"config": name, "seed": seed, "state": "finished", "metric": "test/acc1",
         "last": 70 + k + 0.1 * (seed * k % 3), "best": 70, "seconds": 9, "parameters": 7,
         "folder": f"{name}-seed{seed}"}
        for k, name in enumerate(names) for seed in range(6)
    ]  # fmt: skip
    write_tables([row | {"margin": 0.3, "error_rate": 0.05} for row in rows], tmp_path, "ndkd compare")
    decided = pd.read_csv(tmp_path / "results.csv").query("config == 'b'")["verdict"].iloc[0]
    assert decided.startswith("better, +1.")
    found = f"Over the seeds of the study that both belong to, ndkd compare found: {decided}."
    assert found in page_of(made["a"], made["b"], out=tmp_path / "page").text
    assert "Over the seeds" not in page_of(made["c"], made["b"], out=tmp_path / "page").text  # not compared there
    elsewhere = make_run("elsewhere/b-seed0", 1)
    assert "Over the seeds" not in page_of(made["a"], elsewhere, out=tmp_path / "page").text
    write_tables(rows, tmp_path, "ndkd compare")
    assert "Over the seeds" not in page_of(made["a"], made["b"], out=tmp_path / "page").text
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    assert "Over the seeds" not in page_of(made["a"], made["b"], out=tmp_path / "page").text


@pytest.mark.usefixtures("undrawn")
def test_one_run_shows_its_own_classes_in_its_folder(make_run):
    run = make_run("run", kinds=())
    (run.path / "features").mkdir(exist_ok=True)
    for file in (run.path / "features").iterdir():
        file.unlink()
    report([run.path])
    page = Page(run.path / "report" / "index.html")
    assert "Accuracy per class" in page.text
    assert "Confusions" not in page.text
    assert "Feature norm" not in page.text
    assert "difference" not in page.text
    assert "teacher" not in page.text


@pytest.mark.usefixtures("undrawn")
def test_other_images_are_left_out_and_named(make_run, tmp_path):
    base, other = make_run("base", 1), make_run("other", 1, images=36)
    page = page_of(base, other, out=tmp_path / "page")
    assert "other and base cannot be compared image by image: their validation images are not the same." in page.text
    assert "Which classes" not in page.text
    assert "Confusions that" not in page.text
    assert not list((tmp_path / "page").glob("classes*"))


@pytest.mark.usefixtures("undrawn")
def test_results_are_compared_on_images_that_both_have(make_run, tmp_path):
    base, other = make_run("base", 1, seed=3, results=False), make_run("other", 1, seed=4)
    page = page_of(base, other, out=tmp_path / "page")
    own, theirs = (100 * float(run.metrics()[0]["val/acc1"]) for run in (other, base))
    verdict = "better" if own > theirs else "worse"
    assert f"other is {abs(own - theirs):.2f} points {verdict} than the baseline on the validation images" in page.text


@pytest.mark.usefixtures("undrawn")
def test_validation_images_that_are_the_test_images_are_noticed(make_run, tmp_path):
    run = make_run("run", 2)
    assert "are the test images" not in page_of(run, out=tmp_path / "page").text
    row = run.metrics()[-1]
    last = {"epoch": 1, "test/acc1": float(row["val/acc1"]), "test/cross_entropy": float(row["val/cross_entropy"])}
    run.update_status(results={"last": last, "best": last})
    assert "Of run the validation images are the test images" in page_of(run, out=tmp_path / "page").text


@pytest.mark.usefixtures("undrawn")
def test_detectors_show_their_last_picture(tmp_path):
    run = Run(tmp_path / "detector")
    run.start("seed_everything: 0\n", 0)
    for epoch in range(2):
        run.add_metrics({"epoch": epoch, "step": epoch, "val/ap": 0.1 * epoch, "train/loss": 1})
        (run.path / "pictures").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (epoch, 0, 0)).save(run.path / "pictures" / f"{epoch:04d}.png")
    run.update_status(state="finished", headline="ap", results={})
    page = page_of(run, out=tmp_path / "page")
    assert "10.00 % AP on the validation images" in page.text
    made = files_under(tmp_path / "page")
    assert {file.name for file in made if file.suffix == ".png"} == {"ap.png", "loss.png", "detections-0.png"}
    assert (tmp_path / "page" / "detections-0.png").read_bytes() == (run.path / "pictures" / "0001.png").read_bytes()


# ---- its numbers ---------------------------------------------------------------------------------------------------


def test_change_per_class(make_run):
    runs = make_run("base", seed=3), make_run("other", seed=4)
    base, other = map(shown, runs)
    other.compare(base)
    for number in range(4):
        accuracies = []
        for run in runs:
            last = run.read_epoch("predictions", 2)
            accuracies.append(np.mean(last["prediction"][last["target"] == number] == number))
        assert other.class_change[number] == pytest.approx(100 * (accuracies[1] - accuracies[0]))


def test_of_many_classes_the_most_changed(make_run):
    values = pd.Series(np.random.default_rng(0).permutation(100) - 50.5)
    run = shown(make_run("run", 1, classes=100, images=100))
    bars = classes(run, values, "points").axes[0].patches
    assert sorted(bar.get_width() for bar in bars) == sorted([*values.nsmallest(12), *values.nlargest(12)])


def test_confusions():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 5, 400)
    tables, counts = [], []
    for _ in range(2):
        prediction = rng.integers(0, 5, 400)
        tables.append(pd.DataFrame({"target": target, "prediction": prediction, "right": target == prediction}))
        counts.append(np.zeros((5, 5), int))
        np.add.at(counts[-1], (target, prediction), 1)
    change = (counts[1] - counts[0]) * (1 - np.eye(5, dtype=int))
    found = confusion_changes(*tables)
    assert len(found) == 10
    assert found["change"].abs().tolist() == sorted(np.abs(change).ravel().tolist(), reverse=True)[:10]
    for pair in found.itertuples():
        place = pair.target, pair.prediction
        assert (pair.before, pair.after, pair.change) == (counts[0][place], counts[1][place], change[place])


def test_no_confusion_changes():
    table = pd.DataFrame({"target": [0, 1], "prediction": [0, 1], "right": [True, True]})
    assert confusion_changes(table, table).empty


def test_calibration_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 0.999, 500).astype(np.float16)
    right = rng.random(500) < 0.6
    bins = np.floor(confidence.astype(np.float32) * 15).astype(int)
    chosen = [bins == number for number in range(15)]
    expected = sum(abs(right[c].mean() - confidence[c].astype(float).mean()) * c.mean() for c in chosen if c.any())
    found = calibration_error(pd.DataFrame({"confidence": confidence, "right": right}))
    assert found == pytest.approx(100 * expected, rel=1e-4)


def test_quantiles_of_histograms_are_those_of_the_values():
    rng = np.random.default_rng(0)
    norms, angles = rng.lognormal(1, 0.5, 20_000), rng.normal(60, 9, 20_000)
    counted = {"student_norm": np.histogram(norms, NORM_EDGES)[0], "angle": np.histogram(angles, ANGLE_EDGES)[0]}
    table = quantiles_over_epochs({7: {"norm_edges": NORM_EDGES, "angle_edges": ANGLE_EDGES, **counted}})
    for kind, values, error in (("student_norm", norms, 0.03), ("angle", angles, 0.01)):
        found = table.loc[7, [f"{kind}_q05", kind, f"{kind}_q95"]].tolist()
        assert found == pytest.approx(np.quantile(values, [0.05, 0.5, 0.95]).tolist(), rel=error)


@pytest.mark.usefixtures("undrawn")
def test_names_are_what_tells_the_folders_apart(make_run, tmp_path):
    runs = make_run("runs/digits/seed0/kd", 1), make_run("runs/cifar/seed0/kd", 1)
    page = page_of(*runs, out=tmp_path / "page")
    assert "2 runs; the baseline is digits/seed0/kd." in page.text
    assert "cifar/seed0/kd is as good as the baseline" in page.text


@pytest.fixture
def drawn(monkeypatch):
    """The figures by their names; none is drawn."""
    made = {}

    def note(runs):
        made.update(report_figures.figures(runs))
        return iter(())

    monkeypatch.setattr("ndkd.commands.report.figures", note)
    return made


def test_accuracy_is_shown_against_angle_and_relative_norm(make_run, drawn, tmp_path):
    runs = [make_run(name, 2, accuracy=accuracy) for name, accuracy in (("a", 0.5), ("b", 0.75), ("old", 0.9))]
    for run, angle, norm in zip(runs, (40.0, 30.5), (0.5, 1.25), strict=False):
        last = run.metrics()[-1]
        run.add_metrics({**last, "epoch": 1, "features/angle_mean": angle, "features/relative_norm": norm})
    page_of(*runs, out=tmp_path / "page")
    panels = drawn["features"].axes
    points = [[dots.get_offsets()[0].tolist() for dots in axes.collections] for axes in panels]
    assert points == [[[40.0, 50.0], [30.5, 75.0]], [[0.5, 50.0], [1.25, 75.0]]]
    colours = [to_hex(dots.get_facecolor()[0]) for dots in panels[0].collections]
    assert colours == report_figures.COLOURS[:2]
    drawn.clear()
    page_of(runs[0], runs[2], out=tmp_path / "page")
    assert "features" not in drawn  # a single dot says nothing


# ---- what goes wrong -----------------------------------------------------------------------------------------------


def test_bad_input_is_one_line_and_writes_nothing(make_run, tmp_path):
    run, empty, damaged = make_run("run", 1), make_run("empty", 0), make_run("damaged", 1)
    (damaged.path / "predictions" / "0000.npz").write_bytes(b"no archive")
    empty.update_status(state="failed", error="no memory")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    before = files_under(tmp_path)
    for arguments, message in {
        (run.path, tmp_path / "rum"): f"run folder {tmp_path}/rum does not exist; did you mean ",
        (run.path, tmp_path / "notes" / ".." / "run"): f"{run.path}, {tmp_path}/notes/../run are one run folder; name",
        (empty.path,): f"run {empty.path} has no finished epoch to show (no memory); train it first",
        (damaged.path,): f"{damaged.path}/predictions/0000.npz is damaged: ",
        (run.path, "--out", tmp_path / "notes"): f"{tmp_path}/notes holds what is no report: mine.txt; choose another",
        (run.path, "--out", tmp_path): f"{tmp_path} holds what is no report: ",
        (run.path, "--out", run.config): f"{run.config} holds what is no report: config.yaml; choose another folder",
        (run.path, "--out", run.config / "deep"): f"folder {run.config} cannot be made: {run.config} is not a folder",
    }.items():
        status, out, err = ndkd("report", *arguments)
        assert (status, out) == (2, "")
        assert err.startswith(f"ndkd: {message}")
        assert err.count("\n") == 1
        assert files_under(tmp_path) == before


def test_runs_that_were_measured_in_different_ways_are_reported_apart(make_run, tmp_path):
    base = make_run("base", 1, class_names=["cat", "dog"])
    base.config.write_text("data: {class_path: ndkd.data.DigitsDataModule}")
    detector, other = make_run("det", 1, headline="ap", results=False), make_run("other", 1, class_names=["cat", "cow"])
    folder = make_run("folder", 1)
    folder.config.write_text("data: {class_path: ndkd.data.ImageFolderDataModule}")
    for run, message in (
        (detector, "det was measured by the metric ap, base by the metric acc1: report them apart"),
        (folder, "folder was measured on the data ImageFolderDataModule, base on the data DigitsDataModule: report"),
        (other, "other was measured on the classes cat, cow, base on the classes cat, dog: report them apart"),
    ):
        status, out, err = ndkd("report", base.path, run.path)
        assert (status, out) == (2, "")
        assert err.startswith(f"ndkd: {message}")
        assert err.count("\n") == 1
        assert not (tmp_path / "report").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_report_is_replaced_unless_there_is_something_else_in_it(make_run, tmp_path):
    run, folder = make_run("run", 1), tmp_path / "page"
    (folder).mkdir()
    page_of(run, out=folder)
    (folder / "old.png").touch()
    page_of(run, out=folder)
    assert not (folder / "old.png").exists()
    (folder / "notes.txt").touch()
    status, _, err = ndkd("report", run.path, "--out", folder)
    assert (status, err) == (
        2,
        f"ndkd: {folder} holds what is no report: notes.txt; choose another folder with --out DIR\n",
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
@pytest.mark.usefixtures("undrawn")
def test_broken_off_it_leaves_what_was_there(make_run, tmp_path, monkeypatch, error):
    run, folder = make_run("run", 1), tmp_path / "page"
    page_of(run, out=folder)
    before, beside = files_under(tmp_path), set(tmp_path.iterdir())
    saved = []

    def save(figure, file, **options):
        saved.append(file)
        file.write(b"half")
        if len(saved) == 3:
            raise error

    monkeypatch.setattr(Figure, "savefig", save)
    assert ndkd("report", run.path, "--out", folder)[0] in (2, 130)
    assert len(saved) == 3
    assert files_under(tmp_path) == before
    assert set(tmp_path.iterdir()) == beside
