"""Names of other packages that their makers call private, all in one table: each is there in the installed version.

They are why lightning and jsonargparse have upper bounds in requirements.txt. Whoever raises a bound runs this file.
"""

import ast
import importlib
import inspect

import pytest

from tests.command import REPOSITORY

# read, called, overridden or set: file below ndkd/, name, where it is defined, what for
USED = [
    ("cli.py", "_option_string_actions", "argparse:ArgumentParser", "the nearest of a tool's options"),
    ("callbacks/checkpoints.py", "_restarting", "lightning.pytorch.loops.loop:_Loop", "a finished epoch is over"),
    ("commands/diagnose.py", "_instantiate_trainer", "lightning.pytorch.cli:LightningCLI", "callbacks of a look"),
    ("commands/library_errors.py", "_dynamo", "torch", "the exceptions of torch.compile"),
    ("commands/training.py", "_instances", "tqdm:tqdm", "bars that an error leaves open"),
    ("commands/training_cli.py", "_actions", "argparse:ArgumentParser", "the options that there are"),
    ("commands/training_cli.py", "_instantiate_trainer", "lightning.pytorch.cli:LightningCLI", "callbacks of a run"),
    ("commands/training_cli.py", "_parse_ckpt_path", "lightning.pytorch.cli:LightningCLI", "configurations win"),
    ("commands/training_cli.py", "_parser", "lightning.pytorch.cli:LightningCLI", "the whole configuration"),
    ("commands/training_cli.py", "_prepare_subcommand_kwargs", "lightning.pytorch.cli:LightningCLI", "weights_only"),
    ("commands/training_cli.py", "_run_subcommand", "lightning.pytorch.cli:LightningCLI", "damaged checkpoints"),
    ("commands/training_cli.py", "_set_seed", "lightning.pytorch.cli:LightningCLI", "a wrong seed in one line"),
    ("commands/training_cli.py", "_signal_connector", "lightning.pytorch:Trainer", "SIGTERM is ours"),
    (
        "commands/training_cli.py",
        "_sigterm_notifier_fn",
        "lightning.pytorch.trainer.connectors.signal_connector:_SignalConnector",
        "SIGTERM is ours",
    ),
    ("data/disk_loader.py", "_iterator", "torch.utils.data:DataLoader", "whether workers are there already"),
    (
        "distillation/batches.py",
        "_on_before_batch_transfer",
        "lightning.pytorch:LightningModule",
        "a batch as a step gets it, by whoever overrides this",
    ),
    ("distillation/building.py", "_data_source", "lightning.pytorch.loops.fit_loop:_FitLoop", "foreign images"),
    ("distillation/building.py", "_inductor", "torch", "options of a mode of torch.compile"),
    ("distillation/building.py", "_trainer", "lightning.pytorch:LightningModule", "a module without a trainer"),
    ("distillation/constants.py", "_apply", "torch.nn:Module", "the teacher follows to a device and a precision"),
    ("distillation/constants.py", "_trainer", "lightning.pytorch:LightningModule", "a module without a trainer"),
    ("distillation/cuda_graph.py", "_call_impl", "torch.nn:Module", "a call, hooks and all"),
    ("distillation/cuda_graph.py", "_compiled_call_impl", "torch.nn:Module", "what a call is replaced by"),
    (
        "distillation/module_with_graph.py",
        "_apply",
        "torch.nn:Module",
        "what a graph reads is elsewhere",
    ),
    ("distillation/rehearsal.py", "_milestones", "torch.optim.lr_scheduler:SequentialLR", "schedules in schedules"),
    ("distillation/rehearsal.py", "_schedulers", "torch.optim.lr_scheduler:SequentialLR", "schedules in schedules"),
    (
        "loggers.py",
        "_artifact_location",
        "lightning.pytorch.loggers:MLFlowLogger",
        "whether its files are here",
    ),
    ("loggers.py", "_checkpoint_name", "lightning.pytorch.loggers:WandbLogger", "last and best are two artifacts"),
    ("loggers.py", "_experiment", "lightning.pytorch.loggers:WandbLogger", "whether there is a W&B run"),
    ("loggers.py", "_initialized", "lightning.pytorch.loggers:MLFlowLogger", "whether there is an MLflow run"),
    ("loggers.py", "_scan_and_log_checkpoints", "lightning.pytorch.loggers:WandbLogger", "last and best"),
    ("loggers.py", "_wandb_init", "lightning.pytorch.loggers:WandbLogger", "offline after a failed attempt"),
    ("models/teacher.py", "_forward_hooks", "torch.nn:Module", "what a hook sees is not folded away"),
    ("models/teacher.py", "_forward_pre_hooks", "torch.nn:Module", "what a hook sees is not folded away"),
]
# functions of other packages, known again in a traceback or on the stack: file, name, where it is defined
KNOWN_BY_NAME = [
    ("commands/build_errors.py", "_evaluation_step", "lightning.pytorch.loops.evaluation_loop:_EvaluationLoop"),
    ("commands/build_errors.py", "_predict_step", "lightning.pytorch.loops.prediction_loop:_PredictionLoop"),
    ("stopping.py", "_bootstrap", "importlib"),
    ("stopping.py", "_launch", "multiprocessing.popen_fork:Popen"),
    ("stopping.py", "_shutdown_workers", "torch.utils.data.dataloader:_MultiProcessingDataLoaderIter"),
]
OF_NAMEDTUPLES = {"_replace", "_asdict", "_fields", "_make"}  # public, whatever they look like


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name.strip("_") != ""


def imported(node):
    """The private names in an import, of modules and of what is in them."""
    if isinstance(node, ast.Import):
        parts = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        parts = [node.module or "", *(alias.name for alias in node.names)]
    else:
        return set()
    return {part for path in parts for part in path.split(".") if is_private(part)}


def own_names(tree):
    """Private names that a file itself defines: functions, classes, variables."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            found.add(node.attr)
    return found


def is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def foreign_names(tree, ours):
    """Private names of others in a file: whatever is read off anything but self, off self where nobody of ours has it,
    what is overridden of a class of theirs, and what is imported."""
    found = set()
    for node in ast.walk(tree):
        found |= imported(node)
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            is_own = is_self(node.value) and node.attr in ours
            found |= set() if is_own or node.attr in OF_NAMEDTUPLES else {node.attr}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1]
            found |= {name.value} if isinstance(name, ast.Constant) and is_private(str(name.value)) else set()
    return found


PACKAGE = REPOSITORY / "ndkd"
FILES = {file.relative_to(PACKAGE).as_posix(): ast.parse(file.read_text()) for file in sorted(PACKAGE.rglob("*.py"))}
OURS = set().union(*(own_names(tree) for tree in FILES.values()))  # of any file: classes inherit from each other


@pytest.mark.parametrize("file", FILES)
def test_every_private_name_is_in_the_table(file):
    listed = {name for where, name, *_ in USED if where == file}
    found = foreign_names(FILES[file], OURS)
    assert found - listed == set(), "add it to USED, or do without it"


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, name, *_ in USED + KNOWN_BY_NAME])
def test_every_name_in_the_table_is_used(file, name):
    assert name in (PACKAGE / file).read_text()


@pytest.mark.parametrize(("name", "where"), sorted({(entry[1], entry[2]) for entry in USED + KNOWN_BY_NAME}))
def test_every_name_is_there(name, where):
    module, _, owner = where.partition(":")
    if not owner:
        importlib.import_module(f"{module}.{name}")
        return
    holder = getattr(importlib.import_module(module), owner)
    sets_it = any(f"self.{name}" in inspect.getsource(kind) for kind in holder.__mro__ if kind is not object)
    assert hasattr(holder, name) or sets_it


def test_a_name_that_is_not_there_would_be_noticed():
    with pytest.raises(AssertionError):
        test_every_name_is_there("_no_such_name", "lightning.pytorch:Trainer")
    with pytest.raises(ImportError, match="_no_such_module"):
        test_every_name_is_there("_no_such_module", "torch")


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("trainer._loop.run()", {"_loop"}),
        ("self._own(); self._theirs", {"_theirs"}),
        ("super()._set_seed()", {"_set_seed"}),
        ("from torch._inductor import x", {"_inductor"}),
        ("getattr(x, '_schedulers', ())", {"_schedulers"}),
        ("x.__dict__, pair._replace(a=1), _, self.__class__", set()),
    ],
)
def test_scan(code, wanted):
    assert foreign_names(ast.parse(code), {"_own"}) == wanted
