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
OTHER = 'Parser key "data":\n  something\n  else'


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (NESTED, "model.nd.weight: wanted float, got heavy"),
        (PATH, "data: there is no class Digits; known: A, B"),
        (OPTION, "data: there is no entry batch; see ndkd fit --print_config for those that exist"),
        (OTHER, 'data: Parser key "data": something else'),
        ("Unrecognized arguments:\n --x", "Unrecognized arguments: --x"),
    ],
)
def test_one_line(message, line):
    assert one_line(message, {"data": ["A", "B"], "weight": []}) == line


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
