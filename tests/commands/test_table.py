"""The command that makes a table of results.csv files."""

import pandas as pd
import pytest

from ndkd.commands.compare_tables import as_table, markdown
from tests.command import ndkd


def runs(accuracy, protocol="DigitsDataModule, 60 epochs", metric="test/acc1", **more):
    return [
        {"config": name, "seed": seed, "control": "kd" if name == "kd++" else None, "state": "finished", "last": value,
         "best": value + 1, "metric": metric, "seconds": 60.0, "parameters": 1234, "protocol": protocol, **more}
        for name, values in accuracy.items() for seed, value in enumerate(values)
    ]  # fmt: skip


KD = runs({"student": [70.0, 72.0], "kd": [74.0, 75.0]})
KDPP = runs({"kd++": [75.0, 75.5]})


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write rows to a CSV file in the working directory; its name."""
    monkeypatch.chdir(tmp_path)

    def write(name, rows):
        as_table(rows).to_csv(name, index=False)
        return name

    return write


def test_the_table_is_that_of_compare(written):
    status, out, err = ndkd("table", written("results.csv", [*KD, *KDPP]))
    assert (status, err) == (0, "")
    assert out == markdown(as_table([*KD, *KDPP])) + "\n"
    last = [cell.strip() for cell in out.splitlines()[-1].split("|")[1:-1]]
    assert last[:3] == ["kd++", "0 1", "75.25 ± 0.35 [72.07, 78.43]"]
    assert last[4:6] == ["+4.25 ± 1.06 [-5.28, +13.78]", "+0.75 ± 0.35 [-2.43, +3.93]"]


def test_several_files_are_one_table(written):
    assert ndkd("table", written("a.csv", KD), written("b.csv", KDPP))[1] == markdown(as_table([*KD, *KDPP])) + "\n"


def test_runs_without_a_result_are_named(written):
    failed = {"config": "dkd", "seed": 0, "state": "failed", "error": "no memory"}
    _, out, _ = ndkd("table", written("results.csv", [*KD, failed]))
    assert "| dkd, seed 0 | failed: no memory |" in out
    _, out, _ = ndkd("table", written("results.csv", [*KD, {**failed, "state": "running", "error": None}]))
    assert "| dkd, seed 0 | running |" in out


def test_of_what_was_written_before_there_were_protocols(written):
    file = written("results.csv", KD)
    pd.read_csv(file).drop(columns=["protocol", "term", "weight", "date"]).to_csv(file, index=False)
    assert ndkd("table", file)[1] == markdown(as_table(KD)) + "\n"


LONGER, VALIDATED = (
    runs({"kd++": [1.0]}, protocol="DigitsDataModule, 90 epochs"),
    runs({"kd++": [1.0]}, metric="val/acc1"),
)
BAD = {
    "no file": (["nowhere.csv"], "nowhere.csv does not exist; give a results.csv of ndkd compare"),
    "another file": (["other.csv"], "other.csv has no column config, control, seed, state and 5 more; give a results"),
    "no text": (["binary.csv"], "binary.csv is not a CSV file: "),
    "nothing in it": (["empty.csv"], "empty.csv has no rows; give a results.csv of ndkd compare"),
    "words for numbers": (
        ["words.csv"],
        "words.csv: could not convert string to float: 'good'",
    ),
    "a run twice": (["a.csv", "again.csv"], "student, seed 0, student, seed 1, kd, seed 0, kd, seed 1: more than one"),
    "two lengths": (
        ["a.csv", "longer.csv"],
        "longer.csv has results of protocol DigitsDataModule, 90 epochs, a.csv of DigitsDataModule, 60 epochs: make a",
    ),
    "two lengths in one file": (
        ["both.csv"],
        "both.csv has results of protocol DigitsDataModule, 90 epochs, both.csv of",
    ),
    "two metrics": (
        ["a.csv", "val.csv"],
        "val.csv has results of metric val/acc1, a.csv of test/acc1: make a table of",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(written, tmp_path, case):
    files, message = BAD[case]
    written("a.csv", KD)
    written("again.csv", KD)
    written("longer.csv", LONGER)
    written("both.csv", [*KD, *LONGER])
    written("val.csv", VALIDATED)
    written("empty.csv", [])
    written("words.csv", [{**KD[0], "last": "good"}])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00,\x93")
    status, out, err = ndkd("table", *files)
    assert (status, out) == (2, "")
    assert err.startswith(f"ndkd: {message}")
    assert err.count("\n") == 1
