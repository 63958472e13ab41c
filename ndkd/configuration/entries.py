"""Entries of nested dictionaries."""

from collections.abc import Mapping
from typing import Any


def entry(config: Any, name: str) -> Any:
    """An entry of nested dictionaries, None where they do not have it.

    >>> entry({"model": {"init_args": None}}, "model.init_args.losses")
    """
    for key in name.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config


def differences(now: dict[str, Any], before: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Entries of nested dictionaries that both have, with other values.

    >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 0, "c": 2}, "d": 3})
    {'a.b': (1, 0)}
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in now.keys() & before.keys():
        values = now[key], before[key]
        if all(isinstance(value, dict) for value in values):
            found |= differences(*values, prefix=f"{prefix}{key}.")
        elif values[0] != values[1]:
            found[f"{prefix}{key}"] = values
    return dict(sorted(found.items()))


def flattened(entries: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The entries of nested dictionaries under the names that they have as options.

    >>> flattened({"a": {"b": 1, "c": {}}, "d": [2]})
    {'a.b': 1, 'd': [2]}
    """
    found: dict[str, Any] = {}
    for key, value in entries.items():
        found |= flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
