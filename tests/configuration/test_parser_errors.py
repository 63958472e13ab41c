"""The parser's long errors, cut to one line."""

import doctest

import pytest

from ndkd import errors
from ndkd.configuration import arguments, entries, overlays, parser_errors
from ndkd.configuration.parser_errors import one_line
from ndkd.errors import suggestion

NESTED = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'LightningModule'>]
  Errors:
    - Parser key "losses":
      - NestedArg(key='nd.weight', val='heavy')
        - Expected a <class 'float'>
  Given value: heavy"""


PATH = 'Parser key "data":\n  Expected a dot import path string: Digits'
OPTION = "Parser key \"data\":\n  Option 'batch' is not accepted"
MAPPING = "Parser key \"model.teachers\":\n  Expected a <class 'collections.abc.Mapping'>\n  Given value: a"
OTHER = 'Parser key "data":\n  something\n  else'


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (NESTED, "model.nd.weight: wanted float, got heavy"),
        (PATH, "data: there is no class Digits; known: A, B"),
        (OPTION, "data: there is no entry batch; see ndkd fit --print_config for those that exist"),
        (OTHER, "data: something; else"),
        (MAPPING, "model.teachers: wanted entries by name, got a"),
        ("Unrecognized arguments:\n --x", "there is no option --x; see ndkd fit --help-all"),
        ("unrecognized arguments: --run_di x", "there is no option --run_di; did you mean --run_dir?"),
        ("unrecognized arguments: x y", "unrecognized arguments: x y; options begin with --"),
        (
            "the following arguments are required: fit.data, fit.model",
            "data and model: missing; give a configuration that says them",
        ),
        ("argument --model: expected one argument", "an option that begins with --model has no value; give it one"),
    ],
)
def test_one_line(message, line):
    assert one_line(message, {"data": ["A", "B"], "weight": []}, {"": ["run_dir"]}).startswith(line)


class Loss:
    """A class of one's own, in a module that is loaded."""

    def __init__(self, temperature: float):
        pass


def of_a_loss(inner, given="{'mine': {'loss': 'own.Loss'}}"):
    """The parser's tree around what is wrong with a loss."""
    inner = "\n".join(f"{'':16}{line}" for line in inner.splitlines())
    return f"""Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'ndkd.distillation.module.DistillationModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'ndkd.distillation.DistillationModule':
        Parser key "losses":
          Does not validate against any of the Union subtypes
          Errors:
            - Problem with given class_path 'ndkd.distillation.LossTerm':
{inner}
            - Expected a <class 'NoneType'>
          Given value type: <class 'dict'>
          Given value: {given}
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {{'init_args': {{'losses': {given}}}}}"""


HERE = __name__
LOSS = 'Parser key "loss":\n\n'
IMPORT = (
    LOSS
    + "  - Expected a path but {0} either not accessible or invalid\n  - Problem with given class_path '{0}':\n    {1}"
)
CAUSES = {
    "misspelt": (
        IMPORT.format(f"{HERE}.Los", f"module '{HERE}' has no attribute 'Los'"),
        f"there is no class {HERE}.Los; did you mean {HERE}.Loss?",
    ),
    "no such module": (
        IMPORT.format("own.Loss", "No module named 'own'"),
        "there is no module own for own.Loss; is it installed, or in this folder?",
    ),
    "what it imports": (
        IMPORT.format("own.Loss", "No module named 'scipyy'"),
        "own.Loss cannot be imported: it wants the module scipyy, which is not there; install it",
    ),
    "another kind": (
        LOSS + "  - Import path own.Loss does not correspond to a subclass of Module",
        "wanted a Module, own.Loss is none; did you mean NDLoss, KDLoss?",
    ),
    "a number": (
        LOSS + "  Not a valid subclass of Module. Got value: 3",
        "wanted a Module, as class_path and init_args, got 3",
    ),
    "another option": (
        LOSS + f"  Problem with given class_path '{HERE}.Loss':\n    Option 'temprature' is not accepted",
        "there is no entry temprature; did you mean temperature?",
    ),
    "long": (LOSS + "  - " + "a very long cause " * 50, ("a very long cause " * 50).strip()),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_innermost_cause_is_said_and_never_cut(cause):
    inner, said = CAUSES[cause]
    line = one_line(of_a_loss(inner), {"loss": ["KDLoss", "NDLoss"]})
    assert line.endswith(f".loss: {said}"), line
    assert "Union" not in line


def test_the_term_is_named_where_its_class_tells_it():
    inner = IMPORT.format("own.Loss", "module 'own' has no attribute 'Loss'")
    line = one_line(of_a_loss(inner.replace("own.", f"{HERE}."), f"{{'mine': {{'loss': '{HERE}.Loss'}}}}"), {})
    assert line.startswith("model.losses.mine.loss: there is no class")


def test_a_list_where_a_tensor_is_wanted():
    inner = (
        LOSS + '  Parser key "weight":\n    Errors:\n      - Not a valid subclass of Tensor\n    Given value: [1, 2]'
    )
    line = one_line(of_a_loss(inner), {})
    assert line.startswith("model.losses.loss.weight: wanted a tensor, got [1, 2]; YAML has no tensors")


def test_a_loss_that_fails_when_it_is_made():
    message = "Subtypes: [Mapping[str, ndkd.distillation.objective.LossTerm]]\n  Errors:\n    - scale is too small"
    assert one_line(message, {}) == "losses: scale is too small"


def test_the_term_that_fails_is_the_first_that_is_not_made():
    terms = "{'ce': LossTerm(loss=CrossEntropyLoss(), weight=1.0), 'kd': Namespace(loss=Namespace(class_path='a.B')), "
    terms += "'nd': Namespace(loss=Namespace(class_path='a.C'))}"
    message = f"Subtypes: [Mapping[str, ndkd.distillation.objective.LossTerm]]\nErrors:\n  - %s\nGiven value: {terms}"
    assert one_line(message % "scale is too small", {}) == "loss kd: scale is too small"
    assert one_line(message % "scale: wanted more, got 0", {}) == "loss kd: scale: wanted more, got 0"


def test_the_option_without_a_value_is_named():
    words = ["fit", "--model.init_args.student.name", "--model.init_args.decay=all", "--trainer.max_epochs", "3"]
    message = "argument {}: expected one argument"
    assert one_line(message.format("--model"), {}, words=words).startswith(
        "--model.init_args.student.name has no value"
    )
    assert one_line(message.format("--trainer"), {}, words=words).startswith("an option that begins with --trainer")


def test_no_names_to_suggest():
    assert suggestion("a", []) == "correct it, or leave it out"


def test_nearest_names_else_some_of_them():
    assert suggestion("resnet21", ["vgg8", "resnet20", "resnet110"]) == "did you mean resnet20, resnet110?"
    assert suggestion("Digit", ["A", "DigitsDataModule"]) == "did you mean DigitsDataModule?"
    assert suggestion("zzz", ["a", "b"]) == "known: a, b"
    assert suggestion("zzz", [str(n) for n in range(30)], most=2) == "known: 0, 1, 2, 3, 4, 5, 6, 7, …"


@pytest.mark.parametrize("module", [arguments, entries, errors, overlays, parser_errors])
def test_examples(module):
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed
