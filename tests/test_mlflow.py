"""MLflow in the run folder or elsewhere, with a stub in its place."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from ndkd.loggers import MLFlowLogger
from ndkd.runs import Run
from tests import stub_mlflow
from tests.command import SHORT, ndkd, refusal

FIT = ["fit", "--config", "configs/digits/kd++.yaml", "--config", "configs/loggers/mlflow.yaml", *SHORT]
FIT += ["--run_dir=watched"]


@pytest.fixture
def stores(monkeypatch):
    """The stub's stores by their addresses."""
    return stub_mlflow.install(monkeypatch)


@pytest.fixture(scope="module")
def watched(workplace):
    """A run that SIGTERM ends in its second epoch, and that is continued for longer: its folder, and MLflow's runs."""
    with pytest.MonkeyPatch.context() as patch:
        stores = stub_mlflow.install(patch)
        patch.setattr("ndkd.callbacks.run_recorder.git_commit", lambda: "5eed")
        assert ndkd(*FIT, "--trainer.callbacks+=tests.command.Terminated")[0] == 143
        status, _, err = ndkd(*FIT, "--ckpt_path", "last", "--trainer.max_epochs=3")
        assert status == 0, err
        return Run("watched"), dict(stores)


def test_a_continued_run_is_the_same_run_in_the_run_folder(watched):
    run, stores = watched
    here = run.path.absolute() / "mlflow"
    assert [address for address, store in stores.items() if store["runs"]] == [f"sqlite:///{here / 'mlflow.db'}"]
    store = stores[f"sqlite:///{here / 'mlflow.db'}"]
    (name, experiment), *others = store["experiments"].items()
    assert (name, experiment.artifact_location, others) == ("ndkd", (here / "artifacts").as_uri(), [])
    assert list(store["runs"]) == [(here / "run_id.txt").read_text()]


@pytest.fixture
def kept(watched):
    """What MLflow has of the run."""
    (kept,) = (kept for store in watched[1].values() for kept in store["runs"].values())
    return kept


def test_mlflow_has_what_metrics_csv_has(watched, kept):
    rows = watched[0].metrics()
    assert kept.data.tags == {"mlflow.runName": "watched"}
    for name in ("train/loss", "val/acc1", "features/angle_mean"):
        values = [value for _, value in kept.data.metrics[name]]
        assert values == pytest.approx([float(row[name]) for row in rows])
    assert rows[-1].keys() - {"step"} <= kept.data.metrics.keys()
    assert kept.info.status == "FINISHED"


def test_the_configuration_is_recorded_as_the_first_start_had_it(watched, kept):
    params = kept.data.params
    config = yaml.safe_load(watched[0].config.read_text())
    assert (config["trainer"]["max_epochs"], params["trainer.max_epochs"]) == (3, "2")
    assert params["model.init_args.losses.nd.weight"] == "1.0"
    assert (params["git_commit"], params["global_batch_size"]) == ("5eed", "32")


def test_last_and_best_are_tested_under_names_of_their_own(watched, kept):
    results = watched[0].status()["results"]
    for kind in ("last", "best"):
        ((_, value),) = kept.data.metrics[f"test/{kind}_acc1"]
        assert value == pytest.approx(results[kind]["test/acc1"])
    assert "test/acc1" not in kept.data.metrics
    table = kept.artifacts["test/results.json"]
    assert table["columns"][:3] == ["checkpoint", "epoch", "test/acc1"]
    assert [row[:2] for row in table["data"]] == [[kind, results[kind]["epoch"]] for kind in ("last", "best")]


def test_a_mistake_found_while_building_leaves_no_trace(workplace, stores):
    missing = "--model.init_args.teacher.checkpoint=missing.pth"
    status, _, err = ndkd(*FIT, missing, "--run_dir=mistaken")
    assert (status, "missing.pth does not exist" in err) == (2, True)
    assert not [store for store in stores.values() if store["experiments"]]
    assert not list(Path("mistaken").rglob("*mlflow*"))


def test_a_server_that_does_not_answer(workplace, stores):
    status, _, err = ndkd(*FIT, "--run_dir=away", "--trainer.logger.init_args.tracking_uri=http://away")
    said = "MLflow at http://away: MlflowException: no route to host; see the logger's tracking_uri"
    assert (status, err.splitlines()[-1]) == (2, f"ndkd: {said}")
    assert not list(Path("away").rglob("*mlflow*"))


def test_without_mlflow(workplace, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr("ndkd.loggers.find_spec", lambda name: None)
    status, _, err = ndkd(*FIT, "--run_dir=unseen")
    assert (status, err) == (2, "ndkd: MLflow is not installed: python -m pip install 'ndkd[mlflow]'\n")
    assert not Path("unseen").exists()


# ---- the logger by itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["option", "environment"])
def test_a_server_in_place_of_the_run_folder(stores, tmp_path, monkeypatch, given):
    if given == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://here")
    logger = MLFlowLogger(tmp_path / "digits" / "kd++", tracking_uri="http://here" if given == "option" else None)
    logger.log_metrics({"val/acc1": 0.5}, step=1)
    (run,) = stores["http://here"]["runs"].values()
    assert (run.data.metrics, run.data.tags) == ({"val/acc1": [(1, 0.5)]}, {"mlflow.runName": "digits/kd++"})
    assert stores["http://here"]["experiments"]["ndkd"].artifact_location is None
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["run_id.txt"]


def test_two_runs_make_one_experiment_at_the_same_time(stores, tmp_path, monkeypatch):
    monkeypatch.setattr(stub_mlflow.MlflowClient, "late", "shared")
    logger = MLFlowLogger(tmp_path, experiment_name="shared", tracking_uri="http://here")
    assert logger.experiment_id == stores["http://here"]["experiments"]["shared"].experiment_id
    assert len(stores["http://here"]["runs"]) == 1


def test_a_deleted_experiment_is_one_line(stores, tmp_path):
    logger = MLFlowLogger(tmp_path, tracking_uri="http://here")
    stub_mlflow.MlflowClient("http://here").create_experiment("ndkd")
    stores["http://here"]["experiments"]["ndkd"].lifecycle_stage = "deleted"
    said = refusal(lambda: logger.experiment)
    assert re.fullmatch(r"MLflow at http://here: MlflowException: Experiment\(name=ndkd\) already exists; see .*", said)


def test_entries_with_names_that_mlflow_does_not_take(stores, tmp_path):
    logger = MLFlowLogger(tmp_path, tracking_uri="http://here")
    logger.log_hyperparams({"losses": {"kd++": {"weight": 2.0}}, **{f"n{k}": k for k in range(150)}})
    (run,) = stores["http://here"]["runs"].values()
    assert run.data.params["losses.kd__.weight"] == "2.0"
    assert len(run.data.params) == 151
