"""Two gloo processes against one on the same global batch; accumulation, clipping and bfloat16 in one process."""

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ndkd.callbacks import AutoWeights, ClassMeans, TeacherAccuracy, TermGradients, in_order
from ndkd.distillation.module import DistillationModule
from ndkd.distillation.objective import LossTerm, Objective
from ndkd.errors import NdkdError
from ndkd.losses import DKDLoss, KDLoss, NDLoss, NKDLoss, ReviewKDLoss, RLDLoss, TTMLoss, WTTMLoss
from ndkd.models import ModelConfig
from ndkd.runs import Run
from tests.command import SHORT, ndkd
from tests.tiny_data import TAPS, TinyData

STUDENT = ["--config", "configs/digits/student.yaml", "--trainer.accelerator=cpu"]
TIMEOUT = 60  # seconds until a hang is a failure
TERMS = {
    "ce": (nn.CrossEntropyLoss, ["student.logits", "target"]),
    "kd": (KDLoss, None),
    "nd": (NDLoss, None),
    "dkd": (DKDLoss, None),
    "nkd": (NKDLoss, None),
    "ttm": (TTMLoss, None),
    "wttm": (WTTMLoss, None),
    "rld": (RLDLoss, None),
    "review": (ReviewKDLoss, None),
}
SAMPLE_MEANS = ["ce", "kd", "nd", "dkd", "nkd", "ttm", "wttm", "rld"]


class Plain(nn.Module):
    """A student without BatchNorm, as wide as the teacher."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 64, 3), nn.Linear(64, 10)

    def forward(self, images):
        return self.fc(self.conv(images).relu().mean((2, 3)))


def plain(seed=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Plain()


def narrow():
    return ModelConfig("cifar/resnet8", taps=TAPS, kwargs={"widths": [8, 8, 8, 16]})


class Watch(L.Callback):
    """Keeps the gradients as the optimizer meets them and, under DDP, what it synchronises."""

    def __init__(self):
        self.gradients, self.clipped, self.ddp = [], [], None

    def on_train_start(self, trainer, pl_module):
        self.teacher = pl_module.teacher and copied(pl_module.teacher)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append({name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.clipped.append(nn.utils.get_total_norm([p.grad for p in pl_module.parameters() if p.grad is not None]))

    def on_train_end(self, trainer, pl_module):
        self.teacher_kept = not self.teacher or all(map(torch.equal, *map(values, (self.teacher, pl_module.teacher))))
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            self.ddp = synchronised(trainer.strategy.model, pl_module)


def copied(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def values(module_or_state):
    state = module_or_state if isinstance(module_or_state, dict) else module_or_state.state_dict()
    return list(state.values())


def synchronised(wrapper, module):
    """Names of what DDP reduces and broadcasts, and how many numbers the reducer's buckets hold."""
    names = {id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    buckets = wrapper.reducer._get_zeros_like_grad_buckets()
    return {
        "parameters": {names[id(parameter)] for parameter in wrapper._module_parameters},
        "in buckets": {names[id(parameter)] for bucket in buckets for parameter in bucket.parameters()},
        "numbers": sum(bucket.buffer().numel() for bucket in buckets),
        "buffers": {names[id(buffer)] for buffer in wrapper.modules_buffers},
    }


def trained(
    teacher, terms=SAMPLE_MEANS, world_size=1, student=None, batch_size=8, others=None, callbacks=(), **options
):
    """Train with a global batch of 8, then validate, test and predict; everything worth comparing."""
    L.seed_everything(0, verbose=False)
    watch, accuracy, data = (
        Watch(),
        TeacherAccuracy(Run("of this fit")),
        TinyData(size=20, val_size=9, batch_size=batch_size // world_size),
    )
    if world_size > 1:
        unused = terms == ["nd"]  # the classifier
        strategy = DDPStrategy(cluster_environment=TorchElasticEnvironment(), find_unused_parameters=unused)
        options |= {"strategy": strategy, "devices": world_size}
    trainer = L.Trainer(
        **{"accelerator": "cpu", "devices": 1, "max_epochs": 1, "num_sanity_val_steps": 0, "logger": False} | options,
        callbacks=[ClassMeans(), *callbacks, watch, accuracy],
        enable_checkpointing=True,  # not one is written
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    losses = {name: LossTerm(TERMS[name][0](), inputs=TERMS[name][1]) for name in terms} | (others or {})
    resnet = ModelConfig("cifar/resnet8", checkpoint=teacher, taps=TAPS)
    several = any(term.teacher for term in losses.values())
    teachers = {"teachers": {"a": resnet, "b": plain(4)}} if several else {"teacher": resnet}
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    module = DistillationModule(student or plain(), losses, optimizer=optimizer, **teachers)
    with TemporaryDirectory() as folder:
        accuracy.run = Run(folder)
        trainer.fit(module, datamodule=data)
    found = {name: getattr(watch, name) for name in ("gradients", "clipped", "ddp", "teacher_kept")}
    found |= {"logged": dict(trainer.callback_metrics), "class means": module.class_means, "measured": accuracy.found}
    found["weights"] = {name: term.weight for name, term in module.objective.terms.items()}
    found["tested"] = trainer.test(module, datamodule=data, verbose=False)[0]
    found["batches"] = len(data.val_dataloader())
    rows = trainer.predict(module, datamodule=data)
    found["predicted"] = in_order(trainer, [row for batch in rows for row in batch])
    found |= {"state": module.state_dict(), "trained": {n for n, p in module.named_parameters() if p.requires_grad}}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        module.on_load_checkpoint({"hyper_parameters": {"num_classes": 9}, "state_dict": module.state_dict()})
    return found | {"said": said.getvalue()}


def two_teachers():
    """The mean of both teachers' logits, and class means of each."""
    each = {f"of_{name}": LossTerm(NDLoss(), teacher=name) for name in "ab"}
    return {"both": LossTerm(KDLoss()), **each}


def refused(teacher):
    """The second image has no class: the second process's."""
    data = TinyData(batch_size=4)
    data.train_target[1] = 17
    module = DistillationModule(
        plain(), {"nd": LossTerm(NDLoss())}, ModelConfig("cifar/resnet8", teacher), num_classes=10
    )
    strategy = DDPStrategy(cluster_environment=TorchElasticEnvironment())
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, callbacks=[ClassMeans()])
    try:
        trainer.fit(module, datamodule=data)
    except NdkdError as error:
        return str(error)


def be_rank(rank):
    """Of two processes."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": "2"}


def in_two_processes(function, *arguments):
    """Call it with the rank and the arguments in each of two forks, and wait until both end."""
    context = torch.multiprocessing.start_processes(function, arguments, nprocs=2, join=False, start_method="fork")
    ends = time.monotonic() + TIMEOUT
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < ends, "the processes wait for each other"
    finally:
        for process in context.processes:
            process.kill()


def work(rank, teacher, folder):
    """All that needs two processes, in one start of them."""
    be_rank(rank)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meet", timedelta(seconds=TIMEOUT), world_size=2, rank=rank
    )
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        found = {name: trained(teacher, [name], 2) for name in SAMPLE_MEANS}
        found["all"] = trained(teacher, world_size=2, max_epochs=2)
        found["accumulated"] = trained(
            teacher, ["ce"], 2, batch_size=4, accumulate_grad_batches=2, limit_train_batches=4
        )
        found["batchnorm"] = trained(teacher, ["ce", "nd", "review"], 2, narrow(), max_epochs=2)
        found["two teachers"] = trained(teacher, ["ce"], 2, others=two_teachers(), callbacks=[TermGradients(1)])
        shares = {"kd": LossTerm(KDLoss(), {"auto": 0.3}), "nd": LossTerm(NDLoss(), {"auto": 0.2})}
        found["shares"] = trained(teacher, ["ce"], 2, others=shares, callbacks=[AutoWeights()])
        found["refused"] = refused(teacher)
        with pytest.raises(RuntimeError) as error:
            trained(teacher, ["nd", "nd"], 2)
        found["unused"] = str(error.value)
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(teacher_checkpoint, tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    in_two_processes(work, teacher_checkpoint, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture
def alone(teacher_checkpoint, monkeypatch):
    """The same in this process."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    return partial(trained, teacher_checkpoint)


def assert_close(found, wanted, tolerance=1e-5):
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def losses_of(found):
    return {name: value for name, value in found["logged"].items() if name.startswith("train/") and name != "train/lr"}


# ---- two processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SAMPLE_MEANS, "all"])
def test_losses_and_gradients_are_those_of_the_global_batch(ranks, alone, name):
    wanted = alone(max_epochs=2) if name == "all" else alone([name])
    assert len(wanted["gradients"]) == (6 if name == "all" else 3)
    for found in (rank[name] for rank in ranks):
        assert_close(found["gradients"], wanted["gradients"])
    found = losses_of(ranks[0][name])  # rank 0 logs
    assert found.keys() == {"train/loss", *(f"train/{term}" for term in (SAMPLE_MEANS if name == "all" else [name]))}
    assert_close(found, losses_of(wanted))
    assert max(gradient.abs().max() for gradient in wanted["gradients"][0].values()) > 1e-3


def test_class_means_are_the_same(ranks, alone):
    wanted = alone(["nd"], limit_train_batches=1)["class means"]
    first, second = (rank["nd"]["class means"] for rank in ranks)
    assert torch.equal(first, second)
    assert_close(first, wanted, 1e-6)


def test_several_teachers(ranks, alone):
    """Measuring the gradients of the terms changes nothing."""
    wanted = alone(["ce"], others=two_teachers())
    assert wanted["class means"].keys() == {"a", "b"}
    for found in (rank["two teachers"] for rank in ranks):
        assert_close(found["gradients"], wanted["gradients"])
        assert_close(found["class means"], wanted["class means"], 1e-6)
    assert_close(losses_of(ranks[0]["two teachers"]), losses_of(wanted))
    measured = [{name for name in rank["two teachers"]["logged"] if name.startswith("grad/")} for rank in ranks]
    terms = ("ce", *two_teachers())
    assert measured == [{f"grad/{name}/{kind}" for name in terms for kind in ("norm", "cosine_to_ce")}, set()]


def test_weights_by_shares_are_the_same(ranks):
    first, second = (rank["shares"] for rank in ranks)
    assert first["weights"] == second["weights"]
    assert first["weights"]["ce"] == 1
    assert min(first["weights"].values()) > 0
    assert_close(first["gradients"], second["gradients"])
    assert losses_of(first).keys() == {"train/loss", "train/ce", "train/kd", "train/nd"}


def test_evaluation_with_a_batch_fewer_on_one_rank(ranks, alone):
    wanted = alone(max_epochs=2)
    assert [rank["all"]["batches"] for rank in ranks] == [2, 1]
    for rank in ranks:
        found = rank["all"]
        assert_close(*({k: v for k, v in of["logged"].items() if k[:4] == "val/"} for of in (found, wanted)))
        assert found["tested"] == pytest.approx(wanted["tested"], abs=1e-5)
        assert [row["target"] for row in found["predicted"]] == [f"class {k}" for k in range(9)]
        for row, other in zip(found["predicted"], wanted["predicted"], strict=True):
            assert row == other | {"confidence": pytest.approx(other["confidence"], abs=2e-5)}


def test_the_teachers_accuracy_is_that_of_all_images(ranks, alone):
    wanted = alone(["kd"], limit_train_batches=1)["measured"]
    for found in (rank["kd"]["measured"] for rank in ranks):
        assert {**found, "digest": ""} == pytest.approx({**wanted, "digest": ""}, abs=1e-6)


def test_evaluation_of_batchnorm_is_that_of_the_weights_that_are_kept(ranks, make_trainer):
    first, second = (rank["batchnorm"] for rank in ranks)
    module = DistillationModule(narrow(), num_classes=10)
    trainer, data = make_trainer(), TinyData(val_size=9)
    trainer.validate(module, datamodule=data, verbose=False)  # builds it
    student = {name: tensor for name, tensor in first["state"].items() if name.startswith("student.")}
    module.load_state_dict(student)
    wanted = trainer.validate(module, datamodule=data, verbose=False)[0]
    for found in (first, second):
        assert {name: found["logged"][name].item() for name in wanted} == pytest.approx(wanted, abs=1e-5)


def test_the_teacher_is_in_no_bucket_and_all_that_is_trained_is(ranks):
    for found in (rank["batchnorm"] for rank in ranks):
        assert found["teacher_kept"]
        assert {name.split(".")[0] for name in found["trained"]} == {"student", "projector", "objective"}
        assert found["ddp"]["parameters"] == found["ddp"]["in buckets"] == found["trained"]
        assert found["ddp"]["numbers"] == sum(found["state"][name].numel() for name in found["trained"])
        assert not [name for name in found["ddp"]["buffers"] if name.startswith(("teacher.", "class_means"))]
        assert "student.model.bn1.running_mean" in found["ddp"]["buffers"]
    first, second = (rank["batchnorm"]["state"] for rank in ranks)
    assert not [name for name in ranks[0]["batchnorm"]["trained"] if not torch.equal(first[name], second[name])]


def test_one_rank_says_how_a_checkpoint_differs(ranks):
    line = "ndkd: num_classes is 10 in the configuration, 9 in the checkpoint\n"
    assert [rank["all"]["said"] for rank in ranks] == [line, ""]


def test_a_wrong_label_on_one_rank_stops_every_rank_with_the_same_words(ranks):
    assert {rank["refused"] for rank in ranks} == {"wanted labels from 0 to 9, the data has 0 to 17"}


# ---- accumulation, clipping, precision ------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
def test_accumulated_half_batches_are_the_whole_batch(ranks, alone, processes):
    whole = alone(["ce"] if processes == 2 else SAMPLE_MEANS, limit_train_batches=2)
    if processes == 1:
        halves = alone(batch_size=4, accumulate_grad_batches=2, limit_train_batches=4)
    else:
        halves = ranks[0]["accumulated"]
    assert len(halves["gradients"]) == 2
    assert_close(halves["gradients"], whole["gradients"])
    assert_close(losses_of(halves), losses_of(whole))


def test_gradients_are_clipped_to_the_limit(alone):
    found = alone(gradient_clip_val=0.01)
    before = [nn.utils.get_total_norm(list(gradients.values())) for gradients in found["gradients"]]
    assert min(before) > 0.1
    assert_close(found["clipped"], [torch.tensor(0.01)] * 3, 1e-6)


def test_bfloat16_keeps_losses_parameters_and_class_means_in_float32(alone, monkeypatch):
    dtypes = {}

    def keep(name, original):
        def value(module, term_name, term, output):
            found = original(module, term_name, term, output)
            dtypes[term_name] = output.student.logits.dtype, found.dtype
            return found

        return value

    monkeypatch.setattr(Objective, "_value", keep("_value", Objective._value))
    found = alone(precision="bf16-mixed")
    assert dtypes == dict.fromkeys(SAMPLE_MEANS, (torch.bfloat16, torch.float32))
    assert all(value.isfinite() for value in found["logged"].values())
    assert {tensor.dtype for tensor in found["state"].values() if tensor.is_floating_point()} == {torch.float32}
    wanted = alone()
    assert_close(found["class means"], wanted["class means"], 2**-8 * wanted["class means"].abs().max().item())
    torch.testing.assert_close(losses_of(found), losses_of(wanted), rtol=0.02, atol=0)


# ---- the program ----------------------------------------------------------------------------------------------------


def torchrun(*arguments):
    """``torchrun`` with two processes: exit status, standard output, standard error."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "ndkd"]
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        return (*process.communicate(timeout=TIMEOUT), process.returncode)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def replay(rank, arguments):
    """What torchrun's second start would do, in a process that has imported all it needs."""
    be_rank(rank)
    os.environ |= {"TORCHELASTIC_RUN_ID": "2", "LOCAL_WORLD_SIZE": "2"}
    rank_zero_only.rank = rank  # as on import
    status, out, err = ndkd(*arguments)
    assert status == 0, err
    Path(f"replay-{rank}.txt").write_text(out)


def test_torchrun_with_the_shipped_overlay_and_a_recording(workplace):
    """Each process records what its teacher says, and reads it in the next run."""
    run = ["fit", "--config", "configs/digits/kd++.yaml", "--config", "configs/trainer/ddp.yaml", *SHORT,
           "--trainer.accelerator=cpu", "--trainer.devices=2", "--teacher_cache=runs/of_two"]  # fmt: skip
    out, err, status = torchrun(*run)
    assert status == 0, err
    first = Run("runs/digits/kd++")
    assert len(re.findall("^test accuracy: ", out, re.MULTILINE)) == 1
    assert len(re.findall(f"^run folder: {re.escape(str(first.path))}$", out, re.MULTILINE)) == 1
    assert [row["step"] for row in first.metrics()] == ["1", "2"]  # 40 images, 2 × 32 a step
    assert first.status()["state"] == "finished"
    assert len(first.read_epoch("predictions", 1)["target"]) == 200
    files = [file.name for file in Path("runs/of_two").glob("*/epoch-*")]
    assert sorted(files) == [f"epoch-000{epoch}-rank-{rank}.rows" for epoch in (0, 1) for rank in (0, 1)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in meeting.items():
            patch.setenv(name, value)
        in_two_processes(replay, [*run, "--run_dir=runs/replayed"])
    said = Path("replay-0.txt").read_text()
    assert re.search(r"^teacher: read from runs/of_two/\w+, all 2 epochs, and not loaded$", said, re.MULTILINE)
    states = [
        torch.load(path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for path in (first.path, Path("runs/replayed"))
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed", "ddp_spawn", "ddp_fork", "FSDPStrategy"])
def test_other_strategies(workplace, strategy):
    if strategy == "FSDPStrategy":
        strategy = "{class_path: lightning.pytorch.strategies.FSDPStrategy}"
    status, _, err = ndkd("fit", *STUDENT, "--trainer.strategy", strategy)
    wanted = "wanted auto, single_device, ddp or ddp_find_unused_parameters_true, got "
    assert (status, err) == (2, f"ndkd: trainer.strategy: {wanted}{strategy.split('.')[-1].rstrip('}')}\n")


def test_synchronised_batchnorm_on_a_cpu(workplace):
    status, _, err = ndkd("fit", *STUDENT, "--trainer.sync_batchnorm=true", "--run_dir", "synchronised")
    assert (status, err) == (2, "ndkd: trainer.sync_batchnorm: exists on GPUs only; leave it out\n")


SLURM = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "0",
}


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        (SLURM | {"SLURM_PROCID": "1"}, ["--trainer.devices=3", "--trainer.strategy=ddp"],
         "You set `devices=3` in Lightning, but the number of tasks per node configured in SLURM "),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, [], "You set `--ntasks=2` in your SLURM bash script, but "),
        (TORCHRUN | {"RANK": "1"}, ["--trainer.devices=1"],
         "You set `devices=1` and `num_nodes=1` in Lightning, but the product (1 * 1) does not match "),
    ],
)  # fmt: skip
def test_another_number_of_processes_than_devices(workplace, monkeypatch, environment, options, message):
    monkeypatch.setattr("lightning.pytorch.utilities.rank_zero.rank_zero_only.rank", 1)  # given back after the test
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    status, _, err = ndkd("fit", *STUDENT, *options, "--run_dir", "mismatch")
    assert status == 2
    assert err.startswith(f"ndkd: rank 1: trainer: {message}")
    assert err.count("\n") == 1
    assert not Path("mismatch").exists()


def test_a_used_run_folder_stops_every_rank(workplace, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.utilities.rank_zero.rank_zero_only.rank", 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    status, _, err = ndkd("fit", "--config", "configs/digits/teacher.yaml", *SHORT)
    assert status == 2
    assert err.startswith("ndkd: rank 1: run folder runs/digits/teacher holds a run: ")


def test_parameters_that_no_loss_reaches(ranks, workplace, monkeypatch):
    def step(*args):
        raise RuntimeError(ranks[0]["unused"])

    monkeypatch.setattr(DistillationModule, "training_step", step)
    status, _, err = ndkd("fit", *STUDENT, "--run_dir", "unused")
    assert status == 2
    assert err.startswith("ndkd: no loss reaches some of the student's parameters: ")
