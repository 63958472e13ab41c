"""What Lightning's logger and ours use of MLflow, which is a large package; its stores are dictionaries."""

import sys
from collections import defaultdict
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

STORES = defaultdict(lambda: {"experiments": {}, "runs": {}})


class MlflowException(Exception):
    def __init__(self, message, error_code="INTERNAL_ERROR"):
        super().__init__(message)
        self.error_code = error_code


class Param:
    def __init__(self, key, value):
        self.key, self.value = key, value


class Metric:
    def __init__(self, key, value, timestamp, step):
        self.key, self.value, self.timestamp, self.step = key, value, timestamp, step


class MlflowClient:
    """With the rules that matter here: parameters are written once, and an experiment's name is taken once."""

    late = None
    """The name of an experiment that another process is making."""

    def __init__(self, tracking_uri=None, registry_uri=None):
        self.uri, self.store = tracking_uri, STORES[tracking_uri]

    def get_experiment_by_name(self, name):
        if self.uri == "http://away":
            raise MlflowException("no route\nto host")
        return self.store["experiments"].get(name)

    def create_experiment(self, name, artifact_location=None, tags=None):
        identity, place = str(len(name)), artifact_location
        here = SimpleNamespace(experiment_id=identity, artifact_location=place, lifecycle_stage="active")
        taken = name in self.store["experiments"]
        self.store["experiments"].setdefault(name, here)
        if taken or name == MlflowClient.late:
            raise MlflowException(f"Experiment(name={name}) already exists", "RESOURCE_ALREADY_EXISTS")
        return here.experiment_id

    def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
        run_id = f"run{len(self.store['runs'])}"
        info = SimpleNamespace(run_id=run_id, experiment_id=experiment_id, status="RUNNING")
        data = SimpleNamespace(params={}, metrics=defaultdict(list), tags=tags or {})
        self.store["runs"][run_id] = SimpleNamespace(info=info, data=data, artifacts={})
        return self.store["runs"][run_id]

    def get_run(self, run_id):
        return self.store["runs"][run_id]

    def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
        assert len(params) <= 100
        data = self.get_run(run_id).data
        for param in params:
            if not set(param.key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-. /"):
                raise MlflowException(f"Invalid value {param.key!r} for parameter")
            if data.params.setdefault(param.key, param.value) != param.value:
                raise MlflowException("Changing param values is not allowed")
        for metric in metrics:
            data.metrics[metric.key].append((metric.step, metric.value))

    def log_dict(self, run_id, dictionary, artifact_file):
        self.get_run(run_id).artifacts[artifact_file] = dictionary

    def set_terminated(self, run_id, status=None, end_time=None):
        self.get_run(run_id).info.status = status


def install(patch):
    """In the place of the package, for as long as the patch lasts; its stores by their addresses."""
    contents = {
        "": {"MlflowClient": MlflowClient, "set_tracking_uri": lambda uri: None},
        ".entities": {"Param": Param, "Metric": Metric},
        ".exceptions": {"MlflowException": MlflowException},
        ".tracking": {"MlflowClient": MlflowClient},
        ".tracking.context": {},
        ".tracking.context.registry": {"resolve_tags": lambda tags: tags},
        ".utils": {},
        ".utils.mlflow_tags": {"MLFLOW_RUN_NAME": "mlflow.runName"},
    }
    modules = {f"mlflow{name}": ModuleType(f"mlflow{name}") for name in contents}
    for (name, module), held in zip(modules.items(), contents.values(), strict=True):
        module.__dict__.update(held, __spec__=ModuleSpec(name, None), __path__=[])
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(modules[parent], last, module)
        patch.setitem(sys.modules, name, module)
    patch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", True)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    STORES.clear()
    return STORES
