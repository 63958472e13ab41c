"""The notebooks as they are in git, and executed: on runs that are trained for an epoch, and with few epochs."""

import re
from pathlib import Path

import nbformat
import pytest
from command import REPOSITORY, SHORT, ndkd
from nbclient import NotebookClient

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
QUICKSTART, NORMS = "quickstart", "feature_norms_and_angles"


def read(name):
    return nbformat.read(REPOSITORY / "notebooks" / f"{name}.ipynb", as_version=4)


def execute(notebook, folder, monkeypatch):
    """Run all cells in a folder; what they printed or showed, as text, and how many pictures."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("IPYTHONDIR", str(folder / ".ipython"))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


def test_there_are_two():
    assert [file.stem for file in NOTEBOOKS] == [NORMS, QUICKSTART]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_valid_and_holds_no_results(file):
    notebook = nbformat.read(file, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.metadata.kernelspec.name) == (4, "python3")
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)
    assert not re.search(r"/home/|/root/|/Users/|/tmp/|/work/|\\\\Users", file.read_text())


def test_the_quickstart_runs(tmp_path, monkeypatch):
    notebook = read(QUICKSTART)
    (first,) = [cell for cell in notebook.cells if "EPOCHS, SEEDS = " in cell.source]
    first.source = re.sub("(EPOCHS, SEEDS = ).*", r"\g<1>6, (0, 1)", first.source)
    text, pictures = execute(notebook, tmp_path, monkeypatch)
    assert re.search(r"teacher: \d+\.\d% of the test images", text)
    assert re.search(r"\nCE \+ KD \+ ND +\d", text)
    assert pictures == 1


def test_norms_and_angles_are_shown(runs, monkeypatch):
    text, pictures = execute(read(NORMS), runs / "notebooks", monkeypatch)
    assert re.search(r"\nKD\+\+ +1000\.0", text)
    assert pictures == 6


@pytest.mark.parametrize("below", ["", "notebooks"])
def test_paths_begin_at_the_repository(tmp_path, below, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / below)
    (cell,) = [cell for cell in read(NORMS).cells if "os.chdir" in cell.source]
    exec(cell.source.replace("%matplotlib inline", ""), {})
    assert Path.cwd() == tmp_path


@pytest.fixture(scope="module")
def runs(workplace):
    """The runs that the notebook names, each trained for an epoch."""
    for name in ("student", "kd", "kd++"):
        options = ["--config", f"configs/digits/{name}.yaml", "--run_dir", f"runs/digits-table/{name}-seed0"]
        assert ndkd("fit", *options, *SHORT, "--trainer.max_epochs=1", "--trainer.limit_val_batches=1")[0] == 0
    (workplace / "notebooks").mkdir()
    return workplace
