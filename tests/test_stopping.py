"""Signals to stop, killed workers, parents that end, locks, folders that vanish: one line, one status, nothing left."""

import gc
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from ndkd.data import DigitsDataModule
from ndkd.data.disk_loader import ImageLoader
from ndkd.distillation.module import DistillationModule
from ndkd.lock import Lock, locked
from ndkd.runs import Run
from ndkd.stopping import Stopped, as_worker, is_alive, stop, stoppable
from tests.command import REPOSITORY, SHORT, gone, ndkd

TEACHER = ["fit", "--config", "configs/digits/teacher.yaml", *SHORT, "--trainer.accelerator=cpu"]
KDPP = ["fit", "--config", "configs/digits/kd++.yaml", *SHORT, "--trainer.accelerator=cpu"]
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
GOES_ON = "ndkd: stopped; --ckpt_path last continues from the last finished epoch\n"
NOTHING = "ndkd: stopped; no epoch was finished\n"


@pytest.fixture(autouse=True)
def heard():
    """Tests in the background would ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number):
    os.kill(os.getpid(), number)


def last_line(text):
    return text.splitlines()[-1] + "\n"


# ---- signals to a run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_stops_training_and_the_run_goes_on(workplace, number):
    folder = f"stopped-{number}"
    broken = ["--trainer.callbacks=tests.command.BrokenOff", f"--trainer.callbacks.number={int(number)}"]
    status, _, err = ndkd(*TEACHER, "--run_dir", folder, *broken, "--trainer.callbacks.epoch=1")
    assert (status, last_line(err)) == (STATUS[number], GOES_ON)
    assert "Traceback" not in err
    assert Run(folder).status()["state"] == "interrupted"
    assert not (Run(folder).path / "lock").exists()
    assert ndkd(*TEACHER, "--run_dir", folder, "--ckpt_path=last")[0] == 0
    assert Run(folder).status()["state"] == "finished"
    assert Run(folder).status().get("error") is None


@pytest.mark.parametrize("hook", ["on_validation_batch_end", "on_train_epoch_end", "on_fit_end", "on_test_batch_end"])
def test_a_signal_is_heard_at_any_time(workplace, hook):
    folder = f"heard-{hook}"
    callback = ["--trainer.callbacks=tests.command.BrokenOff", f"--trainer.callbacks.number={int(signal.SIGTERM)}"]
    status, out, err = ndkd(*TEACHER, "--run_dir", folder, *callback, f"--trainer.callbacks.hook={hook}",
                            "--trainer.callbacks.epoch=1")  # fmt: skip
    assert (status, last_line(err)) == (143, GOES_ON)
    assert "test accuracy" not in out
    assert Run(folder).status()["state"] == "interrupted"
    status, out, err = ndkd(*TEACHER, "--run_dir", folder, "--ckpt_path=last")
    assert status == 0, err
    assert "test accuracy" in out
    found = Run(folder).status()
    assert found["state"] == "finished"
    assert {"results", "seconds", "parameters", "headline"} <= found.keys()


@pytest.mark.parametrize("where", [(DistillationModule, "teacher_embeddings"), (DigitsDataModule, "setup")])
def test_a_signal_before_training_leaves_nothing(workplace, monkeypatch, where):
    original = getattr(*where)

    def stopped(*args, **options):
        send(signal.SIGTERM)
        return original(*args, **options)

    monkeypatch.setattr(*where, stopped)
    status, _, err = ndkd(*KDPP, "--run_dir", "unstarted")
    assert (status, last_line(err)) == (143, NOTHING)
    assert not Path("unstarted").exists()


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("test", signal.SIGTERM),
        ("validate", signal.SIGINT),
        ("predict", signal.SIGHUP),
        ("export", signal.SIGTERM),
        ("report", signal.SIGTERM),
    ],
)
def test_a_signal_to_any_other_command(workplace, monkeypatch, command, number):
    last = Run("runs/digits/teacher").checkpoint("last")
    options = {
        "export": ["export", last, "--out=new/model.pt", "--format=torch"],
        "report": ["report", last.parent.parent],
    }
    where = {"export": "ndkd.commands.export_card.median_ms", "report": "ndkd.runs.Run.read_epoch"}
    hooks = {"test": "on_test_start", "validate": "on_validation_start", "predict": "on_predict_start"}
    before = sorted(Path().rglob("*"))
    if command in hooks:
        monkeypatch.setattr(DistillationModule, hooks[command], lambda *_: send(number))
    else:
        monkeypatch.setattr(where[command], lambda *_, **__: send(number))
    status, _, err = ndkd(*options.get(command, [command, "--ckpt_path", last]))
    assert (status, err.splitlines()[-1]) == (STATUS[number], "ndkd: stopped")
    assert sorted(Path().rglob("*")) == before


def test_a_run_that_was_killed_is_not_running_after_a_stop_at_its_start(workplace, monkeypatch):
    Run("was-killed").start("{}", 0)
    Run("was-killed").update_status(state="running")
    monkeypatch.setattr(DigitsDataModule, "setup", lambda *_, **__: send(signal.SIGTERM))
    assert ndkd(*TEACHER, "--run_dir=was-killed")[0] == 143
    assert Run("was-killed").status()["state"] == "interrupted"


def test_a_worker_that_ends_during_a_stop_is_no_news(capfd):
    def work():
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGCHLD)

    with stoppable():
        signal.signal(signal.SIGCHLD, lambda *_: pytest.fail("heard"))
        pytest.raises(Stopped, work)
    assert capfd.readouterr().err == ""


def test_nor_is_one_that_ends_where_a_stop_has_to_wait():
    heard = []

    class Loader:
        def __del__(self):
            send(signal.SIGTERM)
            send(signal.SIGCHLD)

    def work():
        Loader()
        time.sleep(2)

    with stoppable():
        signal.signal(signal.SIGCHLD, lambda *_: heard.append(True))
        pytest.raises(Stopped, work)
    assert not heard


@pytest.mark.parametrize(("error", "is_said"), [(ConnectionResetError, False), (EOFError, False), (ValueError, True)])
def test_what_a_worker_says_when_nobody_listens(error, is_said, capfd, monkeypatch):
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    monkeypatch.setattr("ndkd.stopping.at_end_of", lambda *_: None)
    monkeypatch.setattr("multiprocessing.parent_process", multiprocessing.current_process)
    handlers = {number: signal.getsignal(number) for number in STATUS}
    as_worker(0)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    sys.excepthook(error, error("gone"), None)
    assert ("gone" in capfd.readouterr().err) == is_said


def test_a_second_signal_does_not_break_off_what_the_first_began():
    done = []

    def work():
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGTERM)
            send(signal.SIGINT)
            done.append(stop.number)

    with stoppable():
        pytest.raises(Stopped, work)
    assert done == [signal.SIGTERM]


class Slow:
    """Where an exception would be printed and forgotten."""

    def __del__(self):
        send(signal.SIGTERM)
        time.sleep(0.01)


def taken_down():
    Slow()


class Key:
    """Of a weak dictionary, which looks for it when its value is gone."""

    is_kept = False

    def __hash__(self):
        if self.is_kept:
            send(signal.SIGTERM)
        return 0


def forgotten():
    key, value = Key(), set()
    values = weakref.WeakValueDictionary({key: value})
    key.is_kept = True
    del value
    assert not values


def forked():
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(0.1,)).start()


def loaded():
    iter(DataLoader(Foreign(), num_workers=2))


def imported():
    lock = importlib._bootstrap._get_module_lock("ndkd.nowhere")
    callback = importlib._bootstrap._module_locks["ndkd.nowhere"].__callback__
    original = importlib._bootstrap._imp
    try:
        importlib._bootstrap._imp = SimpleNamespace(
            acquire_lock=lambda: (original.acquire_lock(), send(signal.SIGTERM)), release_lock=original.release_lock
        )
        del lock  # calls it back
    finally:
        importlib._bootstrap._imp = original
    assert callback


@pytest.mark.parametrize("work", [taken_down, forgotten, forked, loaded, imported])
def test_a_signal_is_not_lost_where_an_exception_would_be(work, monkeypatch, capfd):
    if work in (forked, loaded):
        original = os.fork

        def fork():
            send(signal.SIGTERM)
            return original()

        monkeypatch.setattr("os.fork", fork)

    def going_on():
        work()
        time.sleep(2)

    with stoppable():
        pytest.raises(Stopped, going_on)
    assert stop.number == signal.SIGTERM
    gc.collect()
    assert "Exception ignored" not in capfd.readouterr().err


def test_a_signal_to_work_that_is_done_by_then_is_too_late():
    with stoppable():
        Slow()
    time.sleep(0.1)
    assert stop.number == signal.SIGTERM


def test_signals_that_were_ignored_stay_ignored():  # nohup
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            send(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- workers ---------------------------------------------------------------------------------------------------------

FOLDER = """
model:
  class_path: DistillationModule
  init_args:
    student: {name: cifar/resnet8}
    losses: {ce: {loss: torch.nn.CrossEntropyLoss, inputs: [student.logits, target]}}
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}
data: {class_path: ImageFolderDataModule, init_args: {root: images, batch_size: 2, image_size: 32, num_workers: 2}}
trainer: {max_epochs: 2, accelerator: cpu, enable_progress_bar: false}
"""


class Workers(L.Callback):
    """A signal to the first of the DataLoader's workers, or to all processes of the group, in the second epoch."""

    def __init__(self, number: int, group: bool = False):
        self.number, self.group = number, group

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1:
            workers = [worker.pid for worker in trainer.train_dataloader._iterator._workers]
            for process in [*workers, os.getpid()] if self.group else workers[:1]:
                os.kill(process, self.number)
            time.sleep(0.3)


@pytest.fixture(scope="module")
def images(workplace):
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(8):
            file = Path("images", split, f"class{number % 2}", f"{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(file)
    Path("folder.yaml").write_text(FOLDER)
    return ["fit", "--config", "folder.yaml", "--trainer.callbacks=tests.test_stopping.Workers"]


def test_a_worker_that_is_killed_is_one_line(images):
    status, _, err = ndkd(*images, "--trainer.callbacks.number=9", "--run_dir=killed-worker")
    assert status == 2
    assert err.startswith("ndkd: a process that reads images was killed, as happens when memory runs out (")
    assert err.endswith("): lower data.init_args.num_workers or batch_size\n")
    assert err.count("\n") == 1
    found = Run("killed-worker").status()
    assert found["state"] == "failed"
    assert found["error"].startswith("a process that reads images was killed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group(images, number):
    folder = f"group-{number}"
    options = [f"--trainer.callbacks.number={int(number)}", "--trainer.callbacks.group=true", "--run_dir", folder]
    status, _, err = ndkd(*images, *options)
    assert (status, err) == (STATUS[number], GOES_ON)
    assert Run(folder).status()["state"] == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_group_of_real_processes(images, number):
    """As a scheduler, ``timeout`` and Ctrl-C in a terminal send it."""
    folder = f"real-group-{number}"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ndkd", *images[:-1], "--trainer.max_epochs=999", "--run_dir", folder]
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not Run(folder).is_used and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    assert process.communicate(timeout=30)[1] == GOES_ON
    assert process.returncode == STATUS[number]
    assert Run(folder).status()["state"] == "interrupted"


def test_a_signal_finds_no_worker_unprepared(monkeypatch):
    """Torch gives its workers handlers that end them, just before ours would keep them."""
    original = signal_handling._set_worker_signal_handlers

    def prepared():
        original()
        for number in STATUS:
            send(number)

    monkeypatch.setattr(signal_handling, "_set_worker_signal_handlers", prepared)
    loader = ImageLoader(Foreign(), batch_size=4, num_workers=2, worker_init_fn=as_worker, persistent_workers=True)
    for _ in range(2):
        assert [len(batch) for batch in loader] == [4, 4]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
    loader._iterator._shutdown_workers()


def test_a_killed_run_with_workers_continues_to_the_same_weights(images):
    broken = [
        "--trainer.callbacks=tests.command.BrokenOff",
        "--trainer.callbacks.number=9",
        "--trainer.callbacks.epoch=2",
    ]
    options = [*images[:-1], "--trainer.max_epochs=4"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ndkd", *options, *broken, "--run_dir=killed"]
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    assert len(Run("killed").metrics()) == 2
    assert ndkd(*options, "--run_dir=killed", "--ckpt_path=last")[0] == 0
    assert ndkd(*options, "--run_dir=unbroken")[0] == 0
    for name in ("last", "best"):
        states = (
            torch.load(Run(run).checkpoint(name), weights_only=True)["state_dict"] for run in ("killed", "unbroken")
        )
        killed, unbroken = states
        assert all(torch.equal(killed[key], unbroken[key]) for key in unbroken)
    assert sorted(file.name for file in Path("killed").iterdir()) == sorted(
        file.name for file in Path("unbroken").iterdir()
    )


def test_a_signal_to_all_ranks_is_one_line(workplace):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    options = [
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--run_dir=ranks",
        "--trainer.enable_progress_bar=false",
    ]
    options += [
        "--trainer.callbacks=tests.command.BrokenOff",
        "--trainer.callbacks.number=15",
        "--trainer.callbacks.epoch=1",
    ]
    command = [sys.executable, "-m", "ndkd", *TEACHER, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, last_line(done.stderr)) == (143, GOES_ON)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("ndkd: ") == 1
    assert Run("ranks").status()["state"] == "interrupted"


class Foreign(Dataset):
    """Whose workers know nothing of us."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.zeros(1)


def test_workers_of_other_data_that_die_of_the_signal_are_no_error():
    def work():
        loader = iter(DataLoader(Foreign(), num_workers=2))
        next(loader)
        try:
            send(signal.SIGTERM)
        finally:
            for worker in loader._workers:
                worker.terminate()
            time.sleep(0.3)

    with stoppable():
        pytest.raises(Stopped, work)


def hangs():
    as_worker(0)
    time.sleep(60)


def test_a_worker_that_hangs_is_not_waited_for():
    worker = multiprocessing.get_context("fork").Process(target=hangs, daemon=True)

    def work():
        worker.start()
        time.sleep(0.2)
        worker.terminate()
        assert worker.is_alive()  # a signal to stop is not for it
        send(signal.SIGTERM)

    with pytest.raises(Stopped), stoppable():
        work()
    worker.join(5)
    assert worker.exitcode == -signal.SIGKILL


def test_workers_end_with_their_parent():
    code = "import multiprocessing as m, os, time; from tests.test_stopping import hangs; "
    code += "p = m.get_context('fork').Process(target=hangs); p.start(); print(p.pid, flush=True); time.sleep(60)"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(worker)


# ---- parents ---------------------------------------------------------------------------------------------------------

SLEEPS = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"
CHILD = f"from ndkd.stopping import end_with_parent; end_with_parent(); {SLEEPS}"
OTHER = f"import sys; sys.platform = 'other'; {CHILD}"  # where there is no PR_SET_PDEATHSIG
PARENT = """
import os, subprocess, sys, time
from ndkd.stopping import parent_of
subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=os.environ | parent_of(15))
time.sleep(60)
"""


def test_a_child_whose_parent_is_no_more_ends_at_once():
    dead = subprocess.Popen(["true"])
    dead.wait()
    done = subprocess.run([sys.executable, "-c", CHILD], env=os.environ | {"NDKD_PARENT": f"{dead.pid} 15"}, timeout=30)
    assert done.returncode == -signal.SIGTERM


@pytest.mark.parametrize("code", [CHILD, OTHER])
def test_a_child_ends_with_its_parent(code):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(child)


def test_a_child_of_another_does_not_end_with_us(monkeypatch):
    monkeypatch.setenv("NDKD_PARENT", f"{os.getpid()} 9")  # handed on by something between
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"
    between = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(between.stdout.readline())
    between.kill()
    between.wait()
    between.stdout.close()
    assert is_alive(child)
    os.kill(child, signal.SIGKILL)


# ---- locks -----------------------------------------------------------------------------------------------------------

HOLDS = """
import sys, time
from pathlib import Path
from ndkd.lock import Lock
print(Lock(Path(sys.argv[1])).take(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Another process that holds the lock of a folder."""
    monkeypatch.setattr("ndkd.lock.PATIENCE", 0.2)
    folder = tmp_path / "held"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "None\n"
    yield folder, process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_that_another_process_has_is_refused(workplace, holder):
    folder, process = holder
    status, _, err = ndkd(*TEACHER, "--run_dir", folder)
    assert status == 2
    assert err == (
        f"ndkd: run folder {folder} is in use by process {process.pid} on {os.uname().nodename}: wait for it, stop it, "
        "or choose another with --run_dir DIR\n"
    )
    assert [file.name for file in folder.iterdir()] == ["lock"]
    status, _, err = ndkd("compare", "configs/digits/student.yaml", "--out", folder)
    assert status == 2
    assert err.startswith(f"ndkd: out {folder} is in use by process {process.pid} on ")


def test_the_lock_of_a_killed_process_is_free(holder):
    folder, process = holder
    process.kill()
    process.wait()
    assert (folder / "lock").exists()
    with locked(folder, "folder", "go"):
        assert (folder / "lock").read_text() == f"{os.getpid()} on {os.uname().nodename}\n"
    assert not (folder / "lock").exists()


@pytest.mark.parametrize(
    ("said", "is_free"),
    [("", True), ("{dead} on {here}", True), ("{own} on {here}", False), ("{dead} on elsewhere", False), ("?", False)],
)
def test_where_the_file_system_has_no_locks_the_file_counts(tmp_path, monkeypatch, said, is_free):
    monkeypatch.setattr("fcntl.lockf", lambda *_: (_ for _ in ()).throw(OSError(37, "No locks available")))
    dead = subprocess.Popen(["true"])
    dead.wait()
    said = said.format(dead=dead.pid, own=os.getpid(), here=os.uname().nodename)
    (tmp_path / "lock").write_text(said)
    lock = Lock(tmp_path)
    assert lock.take() == (None if is_free else said)
    if is_free:
        lock.release()


def test_workers_do_not_hold_the_lock(tmp_path):
    with locked(tmp_path, "folder", "go"):
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
    try:
        take = "import sys; from pathlib import Path; from ndkd.lock import Lock; print(Lock(Path(sys.argv[1])).take())"
        done = subprocess.run([sys.executable, "-c", take, tmp_path], capture_output=True, text=True, check=True)
        assert done.stdout == "None\n"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# ---- folders that vanish ---------------------------------------------------------------------------------------------


class Vanish(L.Callback):
    """Something happens to the run folder."""

    def __init__(self, how: str, hook: str = "on_train_batch_end"):
        self.how = how
        setattr(self, hook, self.act)

    def act(self, trainer, *args, **kwargs):
        folder = Path(trainer.default_root_dir)
        if folder.exists() and trainer.current_epoch >= 1:
            shutil.rmtree(folder) if self.how == "removed" else folder.rename("elsewhere")
            if self.how == "replaced":
                shutil.copytree("elsewhere", folder)
            self.act = lambda *_: None


@pytest.mark.parametrize(
    ("how", "hook"),
    [
        ("removed", "on_train_batch_end"),
        ("moved", "on_train_batch_end"),
        ("replaced", "on_train_batch_end"),
        ("removed", "on_test_start"),
        ("replaced", "on_test_end"),
    ],
)
def test_a_run_folder_that_vanishes_is_an_error(workplace, how, hook):
    shutil.rmtree("elsewhere", ignore_errors=True)
    folder = f"vanishing-{how}-{hook}"
    options = ["--trainer.callbacks=tests.test_stopping.Vanish", "--trainer.callbacks.how", how]
    status, _, err = ndkd(*TEACHER, "--run_dir", folder, *options, "--trainer.callbacks.hook", hook)
    assert status == 2
    assert err.splitlines()[-1].startswith("ndkd: ")
    if hook == "on_train_batch_end":
        assert last_line(err).startswith(f"ndkd: run folder {folder} was removed, moved or replaced while the run was ")
    assert "Traceback" not in err
