"""What a checkpoint knows of its student."""

import pytest

from ndkd.models.run_checkpoint import Known


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({}, None),
        ({"hyper_parameters": None}, None),
        ({"hyper_parameters": "text"}, None),
        ({"hyper_parameters": {}}, None),
        ({"hyper_parameters": {"class_names": None}}, None),
        ({"hyper_parameters": {"class_names": "a"}}, None),
        ({"hyper_parameters": {"class_names": ["a", 7]}}, ["a", "7"]),
        ({"hyper_parameters": {"class_names": ("a",)}}, ["a"]),
    ],
)
def test_names_in_a_checkpoint(content, names):
    assert Known.of(content).class_names == names


def test_what_is_written_is_read():
    known = Known(3, ["a", "b", "c"], {"name": "cifar/resnet8", "classifier": ["fc"]})
    assert Known.of({"hyper_parameters": known.hyper_parameters()}) == known
    assert "student" not in Known(3).hyper_parameters()  # it is not built yet


def test_nothing_is_known_of_a_foreign_checkpoint():
    assert Known.of({"hyper_parameters": "none", "model": {}}) == Known()
    assert Known.of({"hyper_parameters": {"student": "resnet", "class_names": 3, "lr": 0.1}}) == Known()
