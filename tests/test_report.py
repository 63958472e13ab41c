"""The report of runs: numbers against plain NumPy, a page that needs nothing else, and mistakes."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from command import ndkd
from PIL import Image

from ndkd import figures, report
from ndkd.callbacks.feature_statistics import ANGLE_EDGES, NORM_EDGES
from ndkd.runs import Run, write_atomically

NAMES = ["<cat>", "dog", "owl"]


def write_run(path, seed=0, epochs=2, classes=3, angle=True, targets=0, state="finished", **status):
    """A run's folder with random content."""
    random, run = np.random.default_rng(seed), Run(path)
    run.start(f"seed_everything: {seed}", 0)
    names = NAMES if classes == 3 else None
    target = np.random.default_rng(targets).permutation(np.arange(20 * classes) % classes).astype(np.int32)
    for epoch in range(epochs):
        values = {"train/loss": 2 - 0.1 * epoch, "val/acc1": 0.5 + 0.1 * epoch, "val/cross_entropy": 1.5}
        run.add_metrics({"epoch": epoch, "step": epoch, **values, "time/seconds": 60 * (epoch + 1)})
        wrong = random.random(len(target)) < 0.4
        prediction = np.where(wrong, random.integers(0, classes, len(target)), target).astype(np.int32)
        confidence = random.uniform(0.4, 1, len(target)).astype(np.float16)
        run.write_epoch("predictions", epoch, {"target": target, "prediction": prediction, "confidence": confidence})
        norms = {name: np.histogram(random.lognormal(1, 0.2, 60), NORM_EDGES)[0] for name in ("student_norm",)}
        if angle:
            norms["teacher_norm"] = norms["student_norm"][::-1]
            norms["angle"] = np.histogram(random.normal(60, 9, 60), ANGLE_EDGES)[0]
        run.write_epoch("features", epoch, {"norm_edges": NORM_EDGES, "angle_edges": ANGLE_EDGES, **norms})
    stored = {"hyper_parameters": {"class_names": names, "num_classes": classes}}
    write_atomically(run.checkpoint("last"), lambda file: torch.save(stored, file))
    results = {name: {"epoch": epochs - 1, "test/acc1": 0.6 + 0.05 * seed} for name in ("last", "best")}
    status = {"results": results, "headline": "acc1", "parameters": 1234} | status
    run.update_status(state=state, **status)
    return run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs, the first without a teacher, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_run("runs/student", angle=False), write_run("runs/kd++", seed=1, git_commit="abcdef0123456789")


class Page(HTMLParser):
    """What a page refers to, its text and its headings."""

    def __init__(self, file):
        super().__init__()
        self.addresses, self.text, self.open = [], "", []
        self.feed(Path(file).read_text())

    def handle_starttag(self, tag, attrs):
        self.open = tag
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        if self.open != "style":
            self.text += f" {' '.join(data.split())}"


# ---- the page --------------------------------------------------------------------------------------------------------


def test_page_of_two_runs(runs):
    status, out, err = ndkd("report", "runs/student", "runs/kd++")
    assert status == 0, err
    assert out == "report: runs/report/index.html\n" or out.endswith("/runs/report/index.html\n")
    names = {"curves", "classes", "calibration", "norms", "angles"}
    files = {file.name for file in Path("runs/report").iterdir()}
    assert files == {"index.html", *(f"{name}.png" for name in names)}
    page = Page("runs/report/index.html")
    assert len(page.addresses) == 5
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "kd++ is 5.00 points ahead of student: 65.00 and 60.00." in page.text
    assert re.search(r"kd\+\+ +finished +2 +65.00 +65.00 \(1\) +\+5.00 +\d+\.\d +1,234 +2.0 +1 +abcdef012", page.text)
    assert "Trained without class means, and therefore not shown: student." in page.text
    assert "<cat>" in page.text  # the class, not a tag


def test_page_of_one_run(runs):
    assert ndkd("report", "runs/kd++")[1] == "report: runs/kd++/report/index.html\n"
    page = Page("runs/kd++/report/index.html")
    assert "Accuracy of each class after the last epoch; of many" in page.text
    assert "Confused" not in page.text
    assert "points ahead" not in page.text


def test_a_failed_run_says_so_and_shows_its_validation(runs):
    write_run("runs/broken", epochs=1, state="failed", error="loss nd <became> nan", results=None)
    assert ndkd("report", "runs/kd++", "runs/broken", "--out", "page")[0] == 0
    page = Page("page/index.html")
    assert "loss nd <became> nan" in page.text
    assert "broken has no result to hold against kd++." in page.text
    assert re.search(r"broken +failed +1 +50.00 \(val/acc1\) +50.00 \(0\)", page.text)


def test_other_evaluation_images_are_not_compared(runs):
    write_run("runs/other", targets=1)
    assert ndkd("report", "runs/kd++", "runs/other", "--out", "page")[0] == 0
    text = Page("page/index.html").text
    assert "Not compared image by image, since the evaluation images are others than those of kd++: other." in text
    assert "Confused" not in text


def test_a_detector_shows_its_last_picture(runs):
    run = Run("runs/detector")
    run.start("seed_everything: 0", 0)
    run.add_metrics({"epoch": 0, "step": 1, "train/loss": 1.0, "val/ap": 0.2, "time/seconds": 5})
    stored = {"hyper_parameters": {"class_names": None, "num_classes": 6}}
    write_atomically(run.checkpoint("last"), lambda file: torch.save(stored, file))
    run.update_status(state="finished", results={}, headline="ap")
    (run.path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(run.path / "pictures" / "0000.png")
    assert ndkd("report", "runs/detector")[0] == 0
    page = Page("runs/detector/report/index.html")
    assert "Detections, detector" in page.text
    assert re.search(r"detector +finished +1 +20.00 +20.00 \(0\)", page.text)
    assert len(page.addresses) == 2
    assert "Class by class" not in page.text


def test_a_hundred_classes_and_many_runs(runs):
    for seed in range(3):
        write_run(f"runs/many{seed}", seed=seed, classes=100)
    assert ndkd("report", *(f"runs/many{seed}" for seed in range(3)), "--out", "page")[0] == 0
    assert "Class by class" in Page("page/index.html").text


def test_an_earlier_report_is_replaced(runs):
    for _ in range(2):
        assert ndkd("report", "runs/kd++", "--out", "page")[0] == 0
    Path("page/more.txt").touch()
    assert ndkd("report", "runs/student", "--out", "page")[0] == 0
    assert not Path("page/more.txt").exists()


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_confused_pairs_are_those_that_changed_most(runs):
    student, kdpp = (report.read(run, run.path.name) for run in runs)
    found = report.confused(student, kdpp)
    last = [run.read_epoch("predictions", 1) for run in runs]
    wanted = {}
    for k, name in enumerate(NAMES):
        for p, other in enumerate(NAMES):
            before, now = (int(np.sum((at["target"] == k) & (at["prediction"] == p))) for at in last)
            if k != p and before != now:
                wanted[name, other] = before, now
    assert {pair[:2]: pair[2:] for pair in found} == wanted
    changes = [abs(now - before) for *_, before, now in found]
    assert changes == sorted(changes, reverse=True)


def test_calibration_error_is_the_weighted_gap(runs):
    last = runs[0].read_epoch("predictions", 1)
    confidence, correct = last["confidence"].astype(float), last["target"] == last["prediction"]
    bins = np.ceil(confidence * 15).astype(int)
    wanted = sum(abs((confidence - correct)[bins == b].sum()) for b in set(bins)) / len(bins)
    assert report.read(runs[0], "").calibration_error() == pytest.approx(100 * wanted, abs=1e-3)


def test_accuracy_of_each_class(runs):
    seen = report.read(runs[0], "")
    seen.class_names = [*NAMES, "without images"]
    target, correct = seen.predictions["target"], seen.correct
    wanted = [100 * correct[target == k].mean() for k in range(3)]
    assert figures.per_class(seen)[:3] == pytest.approx(wanted)
    assert np.isnan(figures.per_class(seen)[3])


def test_only_the_classes_that_changed_most_are_drawn(runs):
    seen = [report.read(write_run(f"runs/many{seed}", seed, classes=100), str(seed)) for seed in range(2)]
    change = np.sort(figures.per_class(seen[1]) - figures.per_class(seen[0]))
    bars = figures.classes(seen[0], seen[1:]).axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([*change[:12], *change[-12:]])


def test_quantiles_of_a_histogram(runs):
    values = np.random.default_rng(0).lognormal(1, 0.5, 10_000)
    counts = np.histogram(values, NORM_EDGES)[0]
    assert figures.quantiles(counts, NORM_EDGES) == pytest.approx(np.quantile(values, [0.05, 0.5, 0.95]), rel=0.02)


def test_distributions_are_those_of_the_last_epoch(runs):
    seen = report.read(runs[1], "kd++")
    left, right = figures.angles([seen]).axes
    counts = runs[1].read_epoch("features", 1)["angle"]
    kept = np.flatnonzero(counts)
    drawn = left.patches[0].get_data()
    assert drawn.values == pytest.approx(counts[kept[0] : kept[-1] + 1] / 60)
    assert list(right.lines[0].get_xdata()) == [0, 1]


# ---- mistakes --------------------------------------------------------------------------------------------------------


BAD = {
    "unknown": (["runs/kd"], r"run folder runs/kd does not exist; did you mean .*runs/kd\+\+"),
    "no run": (["runs"], "run folder runs is no run folder: it has no config.yaml"),
    "twice": (["runs/kd++", "runs/../runs/kd++"], r"run runs/kd\+\+ is named twice"),
    "no epoch": (["runs/fresh"], "run runs/fresh has no finished epoch yet"),
    "other things": (["runs/kd++", "--out", "mine"], "folder mine holds something else than a report: choose another"),
    "a file": (["runs/kd++", "--out", "mine/notes.txt"], "folder mine/notes.txt cannot be made: .* --out DIR"),
    "none": ([], "the following arguments are required: RUN; see ndkd report --help"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(runs, case):
    arguments, message = BAD[case]
    Run("runs/fresh").start("seed_everything: 0", 0)
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    before = sorted(Path().rglob("*"))
    status, _, err = ndkd("report", *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert re.search(message, err), err
    assert sorted(Path().rglob("*")) == before


def test_nothing_is_left_of_a_page_broken_off(runs, monkeypatch):
    assert ndkd("report", "runs/kd++", "--out", "page")[0] == 0
    before = sorted(Path().rglob("*")), Path("page/index.html").read_text()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert ndkd("report", "runs/student", "--out", "page")[0] == 130
    assert (sorted(Path().rglob("*")), Path("page/index.html").read_text()) == before
