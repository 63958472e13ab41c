"""The tables of README and docs/ are those of the files in results/, by the command that the page names."""

import pandas as pd
import pytest
import yaml

from tests.command import REPOSITORY, ndkd
from tests.pages import PAGES, text

RESULTS = sorted((REPOSITORY / "results").glob("*.csv"))


def test_there_are_results():
    assert RESULTS


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_one_page_has_the_table(file):
    status, table, err = ndkd("table", file)
    assert status == 0, err
    assert [page for page in PAGES if table.strip() in text(page)] == [
        page for page in PAGES if f"`ndkd table results/{file.name}`" in text(page)
    ]
    assert sum(table.strip() in text(page) for page in PAGES) == 1


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_every_row_is_of_a_finished_run_and_says_where_it_is_from(file):
    rows = pd.read_csv(file)
    assert set(rows["state"]) == {"finished"}
    assert rows[["date", "commit", "machine", "torch", "protocol", "precision"]].notna().all(axis=None)
    assert not rows.duplicated(["config", "seed"]).any()
    assert rows.groupby("config")["seed"].apply(tuple).nunique() == 1, "the seeds are paired"


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_the_resolved_configuration_of_each_row_lies_beside_it(file):
    for name in pd.read_csv(file)["config"].unique():
        config = yaml.safe_load((file.parent / file.stem / f"{name}.yaml").read_text())
        assert config["model"]["init_args"]["losses"]
