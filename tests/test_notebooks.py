"""The notebooks are kept without outputs, and run."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests.command import REPOSITORY, SHORT, ndkd

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def read(name):
    return nbformat.read(REPOSITORY / "notebooks" / name, as_version=nbformat.NO_CONVERT)


def execute(notebook, folder):
    """Run all cells; the outputs of all."""
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(folder)}}).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type != "stream"]


def pictures(outputs):
    return sum("image/png" in output.data for output in outputs)


def test_both_notebooks_are_there():
    assert [path.name for path in NOTEBOOKS] == ["feature_norms_and_angles.ipynb", "quickstart.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_stripped_and_of_no_machine(path):
    notebook = read(path.name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.metadata.kernelspec.name) == (4, "python3")
    assert all(cell.id for cell in notebook.cells)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert not re.search(r"/(home|root|tmp|work|Users)/|[A-Z]:\\\\", path.read_text())


def test_norms_and_angles_run_on_the_runs_that_the_first_cell_names(workplace):
    notebook = read("feature_norms_and_angles.ipynb")
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    folders = re.findall(r'"(runs/\S+)/(\S+)-seed0"', first)
    assert [config for _, config in folders] == ["student", "kd", "kd++"]
    for folder, config in folders:
        options = [*SHORT, "--trainer.max_epochs=1", "--trainer.limit_test_batches=0", "--trainer.limit_val_batches=1"]
        options += [f"--run_dir={folder}/{config}-seed0"]
        assert ndkd("fit", "--config", f"configs/digits/{config}.yaml", *options)[0] == 0
    (workplace / "notebooks").mkdir()
    outputs = execute(notebook, workplace / "notebooks")
    assert pictures(outputs) == 3


def test_quickstart_runs(tmp_path):
    notebook = read("quickstart.ipynb")
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    short = first.source.replace("EPOCHS, SEEDS = 300", "EPOCHS, SEEDS = 3")
    assert short != first.source
    first.source = short
    outputs = execute(notebook, tmp_path)
    assert pictures(outputs) == 1
    results = next(output.data["text/plain"] for output in outputs if "minus CE + KD" in output.data["text/plain"])
    assert all(f"\n{method} " in results for method in ("CE", "CE + KD", "CE + KD + ND"))
