"""Seeds that are added until a comparison is decided. Runs are written down at once instead of trained."""

import shlex
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ndkd.commands import compare
from ndkd.runs import Run
from tests.command import ndkd
from tests.commands.test_compare import KD, KDPP, STUDENT, folder, parsed_once, resolved, results, teacher  # noqa: F401

UNTIL = ["compare", "--until", "decided", "--out", "out"]
CONTROLLED = [*UNTIL, "--control", "nd", STUDENT, KDPP]
GAINS = {"student": 0.0, "kd++-nd0": 2.0, "kd++": 2.1}  # points


@pytest.fixture(autouse=True)
def trained(teacher, monkeypatch):  # noqa: F811
    """What is written instead of training: by gain, seed and noise; which runs there were, round by round."""
    made = {"gains": dict(GAINS), "rounds": [], "fails": set(), "noise": 0.06}

    def write(fits, jobs, logs):
        made["rounds"] += [[fit.run.path.name for fit in fits]] if fits else []
        for fit in fits:
            name, seed = fit.row["config"], fit.row["seed"]
            fit.error = "no memory" if f"{name}-seed{seed}" in made["fails"] else None
            fit.run.start(f"seed_everything: {seed}", 0)
            fit.run.update_status(state="failed" if fit.error else "running", error=fit.error)
            if fit.error:
                continue
            noise = np.random.default_rng(zlib.crc32(fit.run.path.name.encode())).normal(0, made["noise"])
            accuracy = (70 + seed + made["gains"].get(name, 0) + noise) / 100
            values = {kind: {"epoch": 1, "test/acc1": accuracy} for kind in ("last", "best")}
            fit.run.update_status(state="finished", seconds=9.0, headline="acc1", parameters=7, results=values)

    monkeypatch.setattr(compare, "run_fits", write)
    monkeypatch.setattr(compare, "pictures", lambda runs: ())
    monkeypatch.setattr(compare, "give_class_means", lambda *arguments: None)
    monkeypatch.setattr("ndkd.files._sync", lambda _: None)
    monkeypatch.setattr("ndkd.files.sync_folder", lambda _: None)
    return made


def seeds_of(rounds):
    """Which configurations each round has, by its seed; the first is of several seeds."""
    return {int(names[0].rpartition("-seed")[2]): {n.rpartition("-seed")[0] for n in names} for names in rounds[1:]}


def verdicts():
    return results().drop_duplicates("config").set_index("config")[["verdict", "control_verdict"]]


def test_seeds_follow_one_another_until_all_is_decided(trained):
    status, out, err = ndkd(*CONTROLLED)
    assert (status, err) == (0, "")
    first, *later = trained["rounds"]
    assert first == [f"{name}-seed{seed}" for seed in (0, 1, 2) for name in GAINS]
    assert list(seeds_of(trained["rounds"])) == list(range(3, 3 + len(later)))
    found = verdicts()
    assert found["verdict"]["kd++"].startswith("better, +")
    assert found["verdict"]["kd++-nd0"].startswith("better, +")
    assert found["control_verdict"]["kd++"].startswith("no difference above 0.3, +")
    assert found["control_verdict"]["kd++"].endswith(f" after {len(later) + 3} seeds")
    assert f"| {found['verdict']['kd++']} | {found['control_verdict']['kd++']} |" in out
    assert "3 comparisons, 1.67% each" in out


def test_what_is_decided_has_no_further_seeds_unless_another_needs_it(trained):
    """The student is decided soon; the control goes on with the configuration that it is the control of."""
    ndkd(*CONTROLLED)
    of_seed = seeds_of(trained["rounds"])
    last = max(of_seed)
    assert of_seed[3] == {"student", "kd++-nd0", "kd++"}
    assert of_seed[last] == {"kd++-nd0", "kd++"}
    assert "student" not in of_seed[last - 1]
    counts = results().groupby("config")["seed"].count()
    assert counts["student"] < counts["kd++"] == counts["kd++-nd0"] == last + 1


def test_each_round_says_why(trained):
    out = ndkd(*CONTROLLED)[1].splitlines()
    assert out[0] == "3 of 3 comparisons undecided: seed 3 of student, kd++-nd0, kd++"
    assert any(line.startswith("1 of 3 comparisons undecided: seed ") for line in out)


def test_the_first_seeds_may_be_given(trained):
    ndkd(*UNTIL, "--seeds", 7, 4, "--max-seeds", 5, "--margin", "0.001", STUDENT, KD)
    assert trained["rounds"][0] == ["student-seed7", "kd-seed7", "student-seed4", "kd-seed4"]
    assert list(seeds_of(trained["rounds"])) == [8, 9, 10]


def test_at_most_so_many_seeds(trained):
    trained["gains"]["kd"] = 0.3
    trained["noise"] = 3.0
    status, _, _ = ndkd(*UNTIL, "--max-seeds", 6, STUDENT, KD)
    assert status == 0
    assert sorted(set(results()["seed"])) == list(range(6))
    assert verdicts()["verdict"]["kd"].startswith("undecided, ")
    assert verdicts()["verdict"]["kd"].endswith(" after 6 seeds")


def test_a_finished_study_is_not_run_again_and_one_broken_off_goes_on(trained):
    ndkd(*CONTROLLED)
    before, rounds = results(), trained["rounds"].copy()
    trained["rounds"].clear()
    assert ndkd(*CONTROLLED)[0] == 0
    assert not trained["rounds"]
    pd.testing.assert_frame_equal(results(), before)
    Run("out/kd++-seed4").update_status(state="interrupted", results=None)
    assert ndkd(*CONTROLLED)[0] == 0
    assert trained["rounds"][0] == ["kd++-seed4"]
    pd.testing.assert_frame_equal(results(), before)
    assert len(rounds) > 3


def test_another_margin_decides_anew_and_runs_what_that_needs(trained):
    ndkd(*CONTROLLED)
    before = len(results())
    trained["rounds"].clear()
    ndkd(*CONTROLLED, "--margin", "0.8")
    assert not trained["rounds"]
    assert len(results()) == before  # what was run stays in the table
    wide = verdicts()["control_verdict"]["kd++"]
    assert wide.startswith("no difference above 0.8")
    ndkd(*CONTROLLED, "--margin", "0.2")
    assert len(results()) > before
    assert {name.rpartition("-")[0] for names in trained["rounds"] for name in names} == {"kd++-nd0", "kd++"}
    assert results()["margin"].unique() == [0.2]


def test_a_failed_run_leaves_its_seed_out_and_the_study_goes_on(trained):
    trained["fails"] = {"kd++-seed1"}
    status, out, err = ndkd(*CONTROLLED)
    assert status == 1
    assert err.endswith("runs failed: kd++-seed1; see out/NAME.log\n")
    assert verdicts()["verdict"]["kd++"].startswith("better")
    assert "| kd++, seed 1 | failed: no memory |" in out
    trained["fails"], trained["rounds"][:] = set(), []
    assert ndkd(*CONTROLLED)[0] == 0
    assert trained["rounds"][0] == ["kd++-seed1"]


def test_a_configuration_that_always_fails_is_given_up(trained):
    trained["fails"] = {f"kd++-seed{seed}" for seed in range(30)}
    status, _, err = ndkd(*CONTROLLED)
    assert status == 1
    assert "3 of " in err
    assert results().query("config == 'kd++'")["state"].tolist() == ["failed"] * 3
    assert verdicts()["verdict"]["kd++-nd0"].startswith("better")  # the others are decided
    assert verdicts()["verdict"]["kd++"] == "undecided after 0 seeds"


def test_printed_commands_are_those_of_the_next_round(trained):
    command = [*CONTROLLED, "--print-commands"]
    printed = [shlex.split(line)[-1] for line in ndkd(*command)[1].splitlines()]
    assert printed == [f"out/{name}-seed{seed}" for seed in (0, 1, 2) for name in GAINS]
    assert not trained["rounds"]
    ndkd(*CONTROLLED, "--max-seeds", 3)
    printed = [shlex.split(line) for line in ndkd(*command)[1].splitlines()]
    assert [words[-1] for words in printed] == [f"out/{name}-seed3" for name in GAINS]
    assert ["--teacher_cache" in words for words in printed] == [False, True, True]
    ndkd(*CONTROLLED)
    assert ndkd(*command)[1] == ""


def test_a_sweep_is_decided_weight_by_weight(trained):
    trained["gains"] |= {"kd++-nd0": 0.0, "kd++-nd1": 2.0, "kd++-nd2": -2.0}
    ndkd("compare", KDPP, *UNTIL[1:], "--sweep", "nd", 0, 1, 2)
    found = verdicts()["control_verdict"]
    assert found["kd++-nd1"].startswith("better")
    assert found["kd++-nd2"].startswith("worse")


BAD = {
    "a margin of 0": (["--margin", "0"], "margin: wanted a number of points above 0, got 0"),
    "a negative margin": (["--margin", "-0.3"], "margin: wanted a number of points above 0, got -0.3"),
    "no number": (["--margin", "nan"], "margin: wanted a number of points above 0, got nan"),
    "a word": (["--margin", "wide"], "argument --margin: invalid float value: 'wide'; see ndkd compare --help"),
    "one seed": (["--max-seeds", "1"], "max-seeds: wanted at least 3, since fewer decide nothing, got 1"),
    "fewer than named": (
        ["--max-seeds", "3", "--seeds", "0", "1", "2", "3"],
        "max-seeds: wanted at least 4, as many as --seeds has, got 3",
    ),
    "an error rate of 0": (["--error-rate", "0"], "error-rate: wanted a probability above 0 and at most 0.5, got 0"),
    "one of 0.6": (["--error-rate", "0.6"], "error-rate: wanted a probability above 0 and at most 0.5, got 0.6"),
    "an unknown word": (["--until", "done"], "argument --until: invalid choice: 'done'"),
    "nothing to compare": ([], "until: one configuration alone leaves nothing to decide; name another, or add --contr"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    options, message = BAD[case]
    until = [] if "--until" in options else ["--until", "decided"]
    status, out, err = ndkd("compare", KD, "--out", "out", *until, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"ndkd: {message}")
    assert not Path("out").exists()


@pytest.mark.parametrize("option", ["--margin", "--max-seeds", "--error-rate"])
def test_options_that_need_another(option):
    status, _, err = ndkd("compare", "--out", "out", option, "0.3" if option != "--max-seeds" else "9", STUDENT, KD)
    assert (status, err) == (
        2, f"ndkd: {option} says when to stop adding seeds: add --until decided, or leave it out\n"
    )  # fmt: skip
