"""README and docs/: commands are real, examples run, links lead somewhere, the contract names what is asked for."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from ndkd.callbacks import base as for_loggers
from ndkd.data import base as for_data
from ndkd.distillation import DistillationModule
from ndkd.losses import base as for_losses
from ndkd.models import build_model
from ndkd.runs import Run
from tests.command import REPOSITORY, ndkd
from tests.configs.test_configs import CIFAR10_TEACHER, FOLDER_TEACHER, SMALL, with_cifar, with_images  # noqa: F401
from tests.pages import PAGES, blocks, commands, shipped, text

ORDER = ["README", *(page for page in PAGES if page != "README")]
WRITTEN = ["extending", "security"]  # the commands of these name what only their reader has


# ---- commands -----------------------------------------------------------------------------------------------------


def shortened(arguments):
    """A command's arguments, its training cut to one epoch of a few images; None where there is nothing to run."""
    made = (CIFAR10_TEACHER, FOLDER_TEACHER, ["fit", "--config", "configs/digits/teacher.yaml"])  # by the fixtures
    if shipped(arguments) in made or any("digits-table/" in word for word in arguments):
        return None
    if arguments[0] == "compare":  # test_compare.py trains
        return arguments if "--print-commands" in arguments else ["compare", "--print-commands", *arguments[1:]]
    if arguments[0] != "fit" or "--help" in arguments:
        return arguments
    if "imagefolder/kd++.yaml" in arguments:
        return [*arguments, *SMALL]
    epochs = 2 if "--ckpt_path" in arguments else 1
    size = 8 if any("shapes/" in word for word in arguments) else 40
    few = [f"--data.init_args.train_size={size}", "--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2"]
    return [*arguments, *few, f"--trainer.max_epochs={epochs}"]


@pytest.mark.usefixtures("with_cifar", "with_images")
def test_commands_run(monkeypatch):
    """In the pages' order, each once."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    found = [command for page in ORDER if page not in WRITTEN for command in commands(page, "bash")]
    assert "ndkd fit --config digits/kd++.yaml" in found
    assert len(found) > 20
    for command in dict.fromkeys(found):
        arguments = shortened(shlex.split(command)[1:])
        if arguments:
            status, _, err = ndkd(*arguments)
            assert status == 0, f"{command}: {err}"
    assert Run("runs/digits/kd++").is_used
    assert Run("runs/cifar10/kd++").is_used
    rows = Path("runs/imagefolder/kd++/predictions.csv").read_text().splitlines()
    assert rows[0] == "file,prediction,confidence,target"
    assert [row.split(",")[0] for row in rows[1:3]] == ["FOLDER/val/goldfish/0.jpg", "FOLDER/val/goldfish/1.jpg"]
    assert len(list(Path("runs/class_means").iterdir())) == 2  # of two teachers


def parsed():
    """Commands that are not run: those of blocks for other machines, and those within the text."""
    found = {}
    for page in ORDER:
        if page in WRITTEN:
            continue
        for command in commands(page, "sh"):
            found[command] = shlex.split(command.split("ndkd ", 1)[1])
        fenced = re.sub(r"^```.*?^```", "", text(page), flags=re.DOTALL | re.MULTILINE)
        for command in re.findall(r"`ndkd ((?:fit|test) [^`]*)`", fenced):
            if "--config" in command and "$" not in command and "…" not in command:  # the paper's rows: tests/configs
                found[command] = shlex.split(command)
    return {command: arguments for command, arguments in found.items() if "--config" in arguments}


@pytest.mark.parametrize("command", parsed())
def test_commands_are_understood(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the names of configurations are found from anywhere
    status, _, err = ndkd(*parsed()[command], "--print_config")
    assert status == 0, err


@pytest.mark.parametrize("page", ORDER)
def test_configurations_are_there(page):
    """Under their short names, those of overlays and of commands with variables too."""
    names = re.findall(
        r"(?<![\w/])((?:digits|cifar10|shapes|imagefolder|flowers|loggers|trainer)/[\w+./]*\.yaml)", text(page)
    )
    for name in names:
        assert (REPOSITORY / "configs" / name).is_file(), name
    assert not re.search(r"--(config|teacher)[ =]configs/(?!mine)", text(page))


@pytest.mark.parametrize(
    "options",
    [
        "--data CIFAR10DataModule --data.init_args.root data",
        "--data.init_args.image_size 32",
        "--model.init_args.teacher.compile default",
        "--model.init_args.student.compile default",
        "--trainer.precision bf16-mixed",
    ],
)
def test_options_are_accepted(options, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert f"`{options}" in text("small-images")
    status, _, err = ndkd("fit", "--config", "configs/cifar10/kd++.yaml", *options.split(), "--print_config")
    assert status == 0, err


# ---- examples -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in ORDER if page not in WRITTEN and blocks(page, "python")])
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exported = Path("exported/kd++/model.safetensors")  # by README's command
    exported.parent.mkdir(parents=True)
    save_file(build_model("cifar/resnet8", 10).state_dict(), exported)
    for block in blocks(page, "python"):
        exec(compile(block, PAGES[page], "exec"), {"__name__": "page"})


def test_readmes_yaml_is_the_shipped_one():
    shipped_one = yaml.safe_load((REPOSITORY / "configs/digits/kd++.yaml").read_text())["model"]["init_args"]
    shown = yaml.safe_load(blocks("README", "yaml")[0])["model"]["init_args"]
    assert shown == {name: shipped_one[name] for name in shown}


def test_the_pages_two_teachers_are_the_shipped_ones():
    shown = [yaml.safe_load(block) for block in blocks("models", "yaml") if "teachers:" in block]
    assert shown == [yaml.safe_load((REPOSITORY / "configs/digits/overlays/two_teachers.yaml").read_text())]


def test_the_overlay_does_what_the_page_says(tmp_path, monkeypatch):
    (overlay,) = [block for block in blocks("configurations", "yaml") if "null" in block]
    (tmp_path / "overlay.yaml").write_text(overlay)
    monkeypatch.chdir(REPOSITORY)
    given = "--config", "configs/digits/kd++.yaml", "--config", tmp_path / "overlay.yaml"
    _, out, err = ndkd("fit", *given, "--print_config")
    losses = yaml.safe_load(out)["model"]["init_args"]["losses"]
    assert {name: term["weight"] for name, term in losses.items()} == {"ce": 1, "nd": 0.5}, err


@pytest.fixture
def extension(tmp_path, monkeypatch):
    """A working folder with the files of docs/extending.md and a teacher."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("my_package.py").write_text("\n\n".join(blocks("extending", "python")))
    for block in blocks("extending", "yaml"):
        Path(block.splitlines()[0].removeprefix("# ")).write_text(block)
    import my_package

    torch.save(my_package.small_cnn(4, width=32).state_dict(), "teacher.pth")
    return my_package


def test_extensions_run(extension):
    for command in commands("extending", "sh"):
        status, out, err = ndkd(*shlex.split(command)[1:])
        assert status == 0, f"{command}: {err}"
    assert "test accuracy of the worst class: " in out
    assert Run("runs/mine,dicts").is_used
    assert isinstance(extension.SimilarityLoss(), for_losses.Loss)
    assert isinstance(extension.HintLoss(), for_losses.BuiltLoss)
    for name in ("HasClasses", "HasClassNames", "HasNormalisation", "HasImageShape", "HasBatchSize"):
        assert isinstance(extension.Stripes(), getattr(for_data, name))
    assert isinstance(extension.Stripes(), for_data.HasClassMeanLoader)
    assert not isinstance(extension.Stripes(), for_data.HasSizes)


# ---- the contract -------------------------------------------------------------------------------------------------


def members(module):
    """The names that a module's protocols ask for."""
    protocols = [value for value in vars(module).values() if getattr(value, "_is_runtime_protocol", False)]
    names = {name for protocol in protocols for name in (*vars(protocol), *protocol.__annotations__)}
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("module", [for_data, for_losses, for_loggers], ids=lambda m: m.__name__)
def test_the_page_names_what_the_protocols_ask_for(module):
    names = members(module)
    assert names
    assert not [name for name in names if not re.search(rf"`{name}\b", text("extending"))]


def asked(kind):
    """What ndkd asks a trainer's data or a logger for, in ``getattr`` and ``hasattr``."""
    sources = [file.read_text() for file in (REPOSITORY / "ndkd").rglob("*.py")]
    calls = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    calls = [call for call in calls if ast.unparse(call.func) in ("getattr", "hasattr") and len(call.args) > 1]
    return {ast.literal_eval(call.args[1]) for call in calls if re.fullmatch(kind, ast.unparse(call.args[0]))}


def test_data_is_asked_for_nothing_else():
    found = asked(r"data|(\w+\.)*datamodule|_data_of\(trainer\)")
    assert {"num_classes", "mean", "predict_files"} <= found
    assert found <= members(for_data)


def test_a_logger_is_asked_for_nothing_else():
    other = {"init_args", "experiment", "add_image"}  # of the parser, of Lightning, of TensorBoard
    assert asked(r"logger|logger\.experiment|experiment") <= members(for_loggers) | other


def test_the_page_names_what_a_task_overrides():
    source = (REPOSITORY / "ndkd/distillation/module.py").read_text()
    part = source.split("# ---- what a task overrides")[1].split("    # ---- ")[0]
    names = [*re.findall(r"def ([a-z]\w+)\(", part), "headline", "allows_empty_classes", "has_embeddings"]
    assert len(names) > 8
    for name in names:
        assert hasattr(DistillationModule, name)
        assert re.search(rf"`{name}\b", text("extending")), name


# ---- links --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ORDER)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\((?!http)([^)]*)\)", text(page)):
        file, _, heading = target.partition("#")
        linked = (PAGES[page].parent / file).resolve() if file else PAGES[page]
        assert linked.is_file(), target
        anchors = {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in headings(linked)}
        assert not heading or heading in anchors, target


def headings(file):
    return re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
