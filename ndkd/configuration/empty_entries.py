"""Entries without a value whose names nobody knows: the parser would pass over them without a word."""

from collections.abc import Collection, Mapping
from typing import Any

import yaml

from ndkd.configuration.checks import read_text
from ndkd.configuration.shipped import find_config
from ndkd.errors import NdkdError, suggestion

PARTS_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")


def check_blocks(names: Collection[str], options: Collection[str]) -> None:
    """Raise ``NdkdError`` for an empty block, or an empty entry of a block, that no option belongs to.

    Args:
        names: of configurations.
        options: that the parser knows, such as ``run_dir`` and ``trainer.max_epochs``.
    """
    of_classes = [f"{block}.{part}" for block in ("model", "data") for part in PARTS_OF_A_CLASS]
    for name in names:
        _check(_entries(name), [*options, *of_classes], f"config {name}", "")


def check_arguments(names: Collection[str], classes: Mapping[str, Any]) -> None:
    """Raise ``NdkdError`` for an empty argument that the class of a block does not have.

    Args:
        names: of configurations.
        classes: ``class_path`` and all ``init_args`` of ``model`` and of ``data``, when the whole is parsed.
    """
    for name in names:
        for block, made in classes.items():
            given = _entries(name).get(block)
            if not isinstance(given, dict) or not isinstance(given.get("init_args"), dict):
                continue
            path = str(given.get("class_path", made["class_path"]))
            if path.rpartition(".")[2] == made["class_path"].rpartition(".")[2]:  # no later one has put another there
                _check(given["init_args"], list(made["init_args"].keys()), f"config {name}", f"{block}.init_args.")


def _entries(name: str) -> dict[str, Any]:
    entries: dict[str, Any] = yaml.safe_load(read_text(find_config(name)))
    return entries


def _check(entries: Mapping[Any, Any], options: list[str], where: str, prefix: str) -> None:
    known = list(dict.fromkeys(option.partition(".")[0] for option in options))
    for key, value in entries.items():
        name = str(key)
        if (value is None or value == {}) and name not in known:
            raise NdkdError(f"{where}: there is no entry {prefix}{name}; {suggestion(name, known)}")
        inner = [option.removeprefix(f"{name}.") for option in options if option.startswith(f"{name}.")]
        if inner and isinstance(value, dict):
            _check(value, inner, where, f"{prefix}{name}.")
