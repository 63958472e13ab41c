"""Published figures in a table, and the words for other protocols."""

import copy

import pandas as pd
import pytest

from ndkd.commands.compare_plan import plan
from ndkd.commands.compare_published import in_a_cell, notes
from ndkd.commands.compare_tables import as_table, markdown, write_tables
from ndkd.configuration.published import Figure, ledger
from tests.command import ndkd

KEY = "cifar100/r56_r20/kd++"
CONFIG = {
    "trainer": {"max_epochs": 240, "devices": 1, "num_nodes": 1, "accelerator": "auto"},
    "model": {"init_args": {"optimizer": {"init_args": {"lr": 0.1}}}},
    "data": {"init_args": {"batch_size": 128}},
}


def rows(**published):
    return [
        {"config": name, "seed": seed, "state": "finished", "metric": "test/acc1", "last": 70.0 + seed, "best": 72,
         "seconds": 60, "parameters": 7, "published": published.get(name)}
        for name in ("kd++", "other") for seed in (0, 1)
    ]  # fmt: skip


def note(change=(), key=KEY):
    config = copy.deepcopy(CONFIG)
    for name, value in dict(change).items():
        config[name] |= value
    return notes({"kd++": config, "other": config}, as_table(rows(**{"kd++": key})))


def test_the_published_figure_stands_beside_ours_and_is_no_part_of_it(tmp_path):
    table = write_tables(rows(**{"kd++": KEY}), tmp_path, "ndkd compare")
    head, _, ours, other = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert head[2:5] == ["test/acc1, last epoch", "best epoch", "published"]
    assert (ours[4], other[4]) == ("72.53", "")
    plain = markdown(as_table(rows()))
    assert "published" not in plain
    without = [[cell for k, cell in enumerate(row) if k != 4] for row in (head, ours, other)]
    assert without == [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in plain.splitlines() if "---" not in line
    ]
    assert list(pd.read_csv(tmp_path / "results.csv")["published"].dropna()) == [KEY, KEY]
    assert ndkd("table", tmp_path / "results.csv")[1] == f"{table}\n"


def test_of_several_figures_it_is_said_whose_they_are():
    assert in_a_cell(ledger()["cifar100/r56_r20/dist"]) == (
        "71.78 (as the ND paper prints it), 71.75 (README of DIST's authors)"
    )
    assert in_a_cell(ledger()["imagenet/r50_r18/kd"]) == ""


def test_a_protocol_that_agrees_so_far_as_it_is_known():
    assert note() == [
        "kd++: published 72.53 (arXiv 2305.17007); no known difference of protocol; not said there: "
        "epoch of the result, number of runs"
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trainer": {"max_epochs": 2}}, "here epochs 2, there 240;"),
        ({"data": {"init_args": {"batch_size": 64}}}, "here batch size 64, there 128;"),
        ({"trainer": {"devices": [0, 1]}}, "here batch size 256, there 128;"),
        ({"trainer": {"devices": 2, "num_nodes": 3}}, "here batch size 768, there 128;"),
        ({"model": {"init_args": {"optimizer": {"init_args": {"lr": 0.05}}}}}, "here learning rate 0.05, there 0.1;"),
        (
            {"trainer": {"max_epochs": 2}, "data": {"init_args": {"batch_size": 64}}},
            "here epochs 2, there 240, batch size 64, there 128;",
        ),
    ],
)
def test_each_difference_is_named(change, words):
    (line,) = note(change)
    assert f"; {words} not said there: epoch of the result, number of runs" in line


def test_epoch_and_number_of_runs_where_the_source_says_them(monkeypatch):
    figure = Figure(KEY, 72.53, "copy", "A paper", "table 3", "best", 128, 0.1, 240, 5)
    monkeypatch.setitem(ledger(), KEY, [figure])
    assert note() == [
        "kd++: published 72.53 (A paper, table 3, as the ND paper prints it); here epoch of the result last, "
        "there best, number of runs 2, there 5"
    ]


def test_where_nothing_was_published():
    assert note(key="imagenet/r50_r18/kd") == ["kd++: no accuracy was published"]


def test_other_weights_are_not_what_was_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fits = plan(["cifar100/r56_r20/kd++.yaml,cifar100/overlays/alone.yaml"], [0], tmp_path / "a", None, None, [], None)
    assert [fit.row["published"] for fit in fits] == ["cifar100/r56_r20/student"]
    weights = tmp_path / "checkpoints/cifar_teachers/resnet56_vanilla/ckpt_epoch_240.pth"
    weights.parent.mkdir(parents=True)
    weights.touch()
    fits = plan(["cifar100/r56_r20/kd++.yaml"], [0], tmp_path / "b", "nd", None, [], None)
    assert {fit.row["config"]: fit.row["published"] for fit in fits} == {"kd++-nd0": None, "kd++": KEY}
    assert "--published null" in " ".join(fits[0].options)
    assert fits[0].config["published"] is None
