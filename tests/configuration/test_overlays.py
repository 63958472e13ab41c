"""Loss terms of several configurations."""

import re

import pytest
import yaml

from ndkd.configuration.overlays import merged_terms, with_merged_losses
from ndkd.errors import NdkdError
from tests.command import ndkd

CE = {"loss": "torch.nn.CrossEntropyLoss", "inputs": ["student.logits", "target"]}
KD = {"loss": {"class_path": "KDLoss", "init_args": {"temperature": 4}}, "warmup_epochs": 10}
KDPP = {"ce": CE, "kd": KD, "nd": {"loss": "NDLoss", "weight": 1}}


@pytest.mark.parametrize(
    ("changes", "merged"),
    [
        ({"nd": {"weight": 2}}, KDPP | {"nd": {"loss": "NDLoss", "weight": 2}}),
        ({"kd": None}, {"ce": CE, "nd": KDPP["nd"]}),
        (dict.fromkeys(KDPP), {}),  # a detector has losses of its own
        ({"kd": None, "nd": {"weight": 2}}, {"ce": CE, "nd": {"loss": "NDLoss", "weight": 2}}),
        ({"dist": {"loss": "DISTLoss"}}, {"dist": {"loss": "DISTLoss"}}),  # a set of its own
        ({"dist": {"loss": "DISTLoss"}, "kd": None}, {"ce": CE, "nd": KDPP["nd"], "dist": {"loss": "DISTLoss"}}),
        ({"nd": {"loss": {"init_args": {"eps": 1}}}},
         KDPP | {"nd": {"loss": {"class_path": "NDLoss", "init_args": {"eps": 1}}, "weight": 1}}),
        ({"kd": {"loss": {"init_args": {"temperature": 2}}, "weight": 3}},
         KDPP | {"kd": {"loss": {"class_path": "KDLoss", "init_args": {"temperature": 2}}, "warmup_epochs": 10,
                        "weight": 3}}),
    ],
)  # fmt: skip
def test_terms_after_an_overlay(changes, merged):
    before = yaml.safe_load(yaml.safe_dump(KDPP))
    assert merged_terms(before, changes, "mine.yaml") == merged
    assert before == KDPP


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nb": {"weight": 2}}, "mine.yaml changes the loss term nb, which is not there; known: ce, kd, nd"),
        ({"dkd": None}, "mine.yaml removes the loss term dkd, which is not there; did you mean kd"),
    ],
)
def test_an_overlay_that_changes_nothing_of_what_is_there(changes, message):
    with pytest.raises(NdkdError, match=re.escape(message)):
        merged_terms(KDPP, changes, "mine.yaml")


@pytest.fixture
def write(tmp_path):
    def file(name, losses, **entries):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({"model": {"init_args": {"losses": losses, **entries}}}))
        return str(path)

    return file


def losses_of(arguments):
    """The terms that the parser will read: those of the one configuration that has any."""
    texts = [value for name, value in zip(arguments, arguments[1:], strict=False) if name == "--config"]
    found = [yaml.safe_load(text)["model"]["init_args"] for text in texts if "\n" in text or text.startswith("{")]
    (losses,) = [entries["losses"] for entries in found if "losses" in entries]
    return losses


@pytest.mark.parametrize("arguments", [["fit"], ["fit", "--config", "{}"], ["fit", "--config", "{}", "--print_config"]])
def test_a_single_configuration_is_left_alone(write, arguments):
    arguments = [argument.replace("{}", write("kd++.yaml", KDPP)) for argument in arguments]
    assert with_merged_losses(arguments) == arguments


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"], ["-c", "{}"]])
def test_every_way_to_name_a_file(write, form):
    second = [part.replace("{}", write("half.yaml", {"nd": {"weight": 0.5}})) for part in form]
    found = with_merged_losses(["fit", "--config", write("kd++.yaml", KDPP), *second])
    assert losses_of(found) == KDPP | {"nd": {"loss": "NDLoss", "weight": 0.5}}


def test_options_of_the_command_line_hold_in_their_order(write):
    base, half = write("kd++.yaml", KDPP), write("half.yaml", {"nd": {"weight": 0.5}})
    option = ["--model.init_args.losses.kd.weight", "3"]
    assert losses_of(with_merged_losses(["fit", "--config", base, *option, "--config", half]))["kd"]["weight"] == 3
    after = with_merged_losses(["fit", "--config", base, "--config", half, *option])
    assert after[-2:] == option
    whole = ["--model.init_args.losses", "{nd: {weight: 2}}"]
    assert losses_of(with_merged_losses(["fit", "--config", base, *whole])) == KDPP | {
        "nd": {"loss": "NDLoss", "weight": 2}
    }


def test_files_beside_a_file_are_found_from_anywhere(write, tmp_path):
    base = write("base/kd++.yaml", KDPP, optimizer="sgd.yaml", lr_scheduler="nowhere.yaml")
    (tmp_path / "base" / "sgd.yaml").write_text("{class_path: torch.optim.SGD, init_args: {lr: 0.1}}")
    found = with_merged_losses(["fit", "--config", base, "--config", write("half.yaml", {"nd": {"weight": 0.5}})])
    entries = yaml.safe_load(found[2])["model"]["init_args"]
    assert entries == {"optimizer": str(tmp_path / "base" / "sgd.yaml"), "lr_scheduler": "nowhere.yaml"}


def test_a_weight_alone_changes_the_weight_alone(workplace, tmp_path):
    """As typed: what was once a training on ND alone, at chance."""
    half = tmp_path / "half.yaml"
    half.write_text("model: {init_args: {losses: {nd: {weight: 2}}}}")
    status, out, err = ndkd("fit", "--config", "configs/digits/kd++.yaml", "--config", half, "--print_config")
    assert status == 0, err
    losses = yaml.safe_load(out)["model"]["init_args"]["losses"]
    assert {name: term["weight"] for name, term in losses.items()} == {"ce": 1, "kd": 1, "nd": 2}
    assert (losses["kd"]["warmup_epochs"], losses["ce"]["inputs"]) == (10, ["student.logits", "target"])


def test_a_set_of_its_own_keeps_nothing_of_the_one_before(workplace, tmp_path):
    """Nor the options of a term that has the same name."""
    other = tmp_path / "other.yaml"
    other.write_text("model: {init_args: {losses: {kd: {loss: KDLoss}}}}")
    status, out, err = ndkd("fit", "--config", "configs/digits/kd++.yaml", "--config", other, "--print_config")
    assert status == 0, err
    losses = yaml.safe_load(out)["model"]["init_args"]["losses"]
    assert losses["kd"]["warmup_epochs"] == 0
    assert list(losses) == ["kd"]


def test_a_misspelt_term_is_refused(workplace, tmp_path):
    half = tmp_path / "half.yaml"
    half.write_text("model: {init_args: {losses: {nb: {weight: 2}}}}")
    status, _, err = ndkd("fit", "--config", "configs/digits/kd++.yaml", "--config", half, "--print_config")
    assert status == 2
    assert err == f"ndkd: config {half} changes the loss term nb, which is not there; known: ce, kd, nd\n"


@pytest.mark.parametrize("term", [{"weight": 2}, None])
def test_an_overlay_alone_says_that_it_is_one(write, term):
    half = write("half.yaml", {"nd": term})
    for others in ([], ["--config", write("kd++.yaml", KDPP)]):
        with pytest.raises(
            NdkdError, match=f"config {half} .* the loss term nd, but no configuration before it has one"
        ):
            with_merged_losses(["fit", "--config", half, *others])
