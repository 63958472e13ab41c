"""What the pictures beside a table show."""

import numpy as np
import pytest

from ndkd.commands.compare_differences import half_interval
from ndkd.commands.compare_figures import pictures, sweep
from ndkd.commands.compare_tables import as_table
from ndkd.commands.report_figures import norm_and_angle


def swept(weights, seeds=3, base="kd++", **more):
    rng = np.random.default_rng(0)
    return [
        {"config": f"{base}-nd{weight:g}", "term": "nd", "weight": weight, "seed": seed, "state": "finished",
         "metric": "test/acc1", "last": 70 + weight + rng.random(), "seconds": 1.0, "parameters": 1, **more}
        for weight in weights for seed in range(seeds)
    ]  # fmt: skip


STUDENT = {**swept([0])[0], "config": "student", "term": None, "weight": None, "last": 60.0}


def test_a_sweep_is_a_line_with_intervals_over_the_weights():
    runs = as_table([*swept([4, 0, 0.5]), *swept([0, 0.5, 4], base="dkd"), STUDENT])  # in any order
    axes = sweep(runs.astype({"last": float})).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.5", "4"]
    assert axes.get_xlabel() == "weight of nd (not to scale)"
    lines = {bar.get_label(): bar for bar in axes.containers}
    assert list(lines) == ["kd++", "dkd"]
    line, _, (bars,) = lines["kd++"]
    found = runs[runs["config"].str.startswith("kd++")].groupby("weight")["last"]
    assert line.get_ydata() == pytest.approx(found.mean().astype(float).to_list())
    assert line.get_xdata() == pytest.approx([-0.06, 0.94, 1.94])
    heights = [(top - bottom) / 2 for (_, bottom), (_, top) in bars.get_segments()]
    assert heights == pytest.approx([half_interval(values) for _, values in found])
    reference = next(line for line in axes.lines if line.get_label() == "student")
    assert set(reference.get_ydata()) == {60.0}


def test_a_sweep_of_one_seed_has_no_interval():
    axes = sweep(as_table(swept([0, 1], seeds=1)).astype({"last": float})).axes[0]
    assert all(np.isfinite(segment).all() for segment in axes.containers[0][2][0].get_segments())


def test_norm_and_angle_are_a_dot_a_run_and_a_style_a_configuration():
    rows = [{**row, "angle": 40.0 + k, "relative_norm": 0.9} for k, row in enumerate(swept(range(10)))]
    points = as_table(rows).astype({"last": float})
    figure = norm_and_angle(points, "accuracy")
    angle, norm = figure.axes
    assert len(angle.collections) == len(norm.collections) == 10
    found = np.concatenate([dots.get_offsets() for dots in angle.collections])
    assert np.allclose(np.asarray(found), points[["angle", "last"]].to_numpy(float))
    styles = {(tuple(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.tobytes()) for dots in angle.collections}
    assert len(styles) == 10
    labels = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert labels == list(dict.fromkeys(points["config"]))


def test_there_are_pictures_of_what_is_known_alone():
    plain, measured = {"angle": None}, {"angle": 40.0, "relative_norm": 1.0}
    made = {name for name, _ in pictures(as_table([{**STUDENT, **plain}]))}
    assert made == {"results"}
    made = {name for name, _ in pictures(as_table([{**STUDENT, **measured}, *swept([0, 1], **plain)]))}
    assert made == {"results", "sweep", "features"}
    failed = [{**row, "state": "failed", "last": None} for row in swept([0, 1])]
    assert {name for name, _ in pictures(as_table(failed))} == {"results"}
