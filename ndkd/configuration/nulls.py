"""Entries of a configuration that are null although they have to have a value: the parser lets them pass."""

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from jsonargparse import Namespace

from ndkd.errors import NdkdError


def check_nulls(config: Any, owners: dict[str, type]) -> None:
    """Raise ``NdkdError`` for the first entry that is null where its class has another default and allows no None.

    Args:
        config: the parsed one, a namespace; what has a ``class_path`` is of that class.
        owners: the classes of the blocks that have none, by their names.
    """
    for name, block in vars(config).items():
        for entry in _nulls(block, name, owners.get(name)):
            raise NdkdError(f"{entry}: wanted a value, got null; leave it out for its default")


def _nulls(value: Any, place: str, owner: type | None) -> Iterator[str]:
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _nulls(item, f"{place}.{number}", None)
    entries = _entries(value)
    if isinstance(entries.get("class_path"), str):
        owner, place = _class(entries["class_path"]), f"{place}.init_args"
        entries = _entries(entries.get("init_args"))
    wanted = _that_want_a_value(owner) if owner else ()
    for name, entry in entries.items():
        if entry is None and name in wanted:
            yield f"{place}.{name}"
        yield from _nulls(entry, f"{place}.{name}", None)


def _entries(value: Any) -> dict[str, Any]:
    """Of a block, a namespace or a dictionary; an object that was made from Python has none."""
    return value if isinstance(value, dict) else vars(value) if isinstance(value, Namespace) else {}


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name, None)


def _that_want_a_value(owner: type) -> set[str]:
    """The names of the parameters, its parents' too, whose default is not None and which are not said to take it."""
    found: dict[str, bool] = {}
    for kind in inspect.getmro(owner) if isinstance(owner, type) else (owner,):
        start = vars(kind).get("__init__") if isinstance(kind, type) else kind
        if not inspect.isfunction(start):
            continue
        for name, parameter in inspect.signature(start).parameters.items():
            says_none = any(word in str(parameter.annotation) for word in ("None", "Optional", "Any"))
            found.setdefault(name, parameter.default is not None and not says_none)
    return {name for name, wants_a_value in found.items() if wants_a_value}
