"""``ndkd fit --model.help CLASS`` and ``--data.help CLASS``: the options of one class in one page.

The parser's own page would also list those of every class that an option may be, all of ``torch.nn`` among them.
"""

import dataclasses
import importlib
import inspect
import re
import textwrap
import types
import typing
from typing import Any

import lightning.pytorch as L

import ndkd.data
from ndkd.configuration.arguments import values_of
from ndkd.data.from_config import DATA_MODULES
from ndkd.distillation.detection import DetectionDistillationModule
from ndkd.distillation.module import DistillationModule
from ndkd.errors import NdkdError, suggestion

WIDTH = 118
KNOWN: dict[str, dict[str, type]] = {
    "model": {kind.__name__: kind for kind in (DistillationModule, DetectionDistillationModule)},
    "data": {name: getattr(ndkd.data, name) for name in DATA_MODULES},
}
WANTED: dict[str, type] = {"model": L.LightningModule, "data": L.LightningDataModule}


@dataclasses.dataclass
class Option:
    """A parameter of a class.

    Args:
        name: of the parameter.
        kind: its annotation.
        default: its default, ``inspect.Parameter.empty`` where there is none.
        says: what the docstring says of it.
    """

    name: str
    kind: Any
    default: Any
    says: str


def asked_for(arguments: list[str]) -> str | None:
    """The page that the words of a command line ask for, None if they ask for none.

    Raises:
        NdkdError: there is no such class.
    """
    for block in KNOWN:
        option = f"--{block}.help"
        if names := values_of((option,), arguments):
            return page(block, _class(block, names[0]))
        if option in arguments:
            return f"give a class to {option}: {', '.join(KNOWN[block])}"
    return None


def page(block: str, kind: type) -> str:
    """The options of a class, its parents' included, and the entries of those options that have some.

    Args:
        block: ``model`` or ``data``.
        kind: the class.
    """
    title = (inspect.getdoc(kind) or "").split("\n\n")[0]
    lines = textwrap.wrap(f"{kind.__name__}: {' '.join(title.split())}", WIDTH)
    options = options_of(kind)
    lines += ["", f"--{block}.init_args.…", *_lines(options)]
    if not options:
        lines.append("  (no options)")
    for entries, names in _entries(options).items():
        named = [f"{name}.NAME" if name in ("losses", "teachers") else name for name in names]
        lines += ["", ", ".join(f"--{block}.init_args.{name}.…" for name in named)]
        lines += _lines(options_of(entries))
    return "\n".join(lines)


def options_of(kind: type) -> list[Option]:
    """The parameters of a class; where it hands others on to its parent, those too."""
    found: dict[str, Option] = {}
    for owner in inspect.getmro(kind):
        if "__init__" not in vars(owner) or owner is object:
            continue
        documented, hints = _documented(owner), typing.get_type_hints(vars(owner)["__init__"])
        parameters = list(inspect.signature(vars(owner)["__init__"]).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            name, default = parameter.name, parameter.default
            option = Option(name, hints.get(name, Any), default, documented.get(name, ""))
            found.setdefault(name, option)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return list(found.values())


def _class(block: str, name: str) -> type:
    known = KNOWN[block]
    short = name.removeprefix("ndkd.data.").removeprefix("ndkd.distillation.")
    if short in known:
        return known[short]
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute) if module else None
    except (ImportError, AttributeError):
        found = None
    if not (isinstance(found, type) and issubclass(found, WANTED[block])):
        near = suggestion(short.rpartition(".")[2], list(known))
        raise NdkdError(f"--{block}.help: there is no {WANTED[block].__name__} {name}; {near}")
    return found


def _documented(kind: type) -> dict[str, str]:
    """What the section ``Args`` of a class's docstring says, by parameter."""
    text = inspect.cleandoc(vars(kind).get("__doc__") or "")
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n)+)", text, re.MULTILINE)
    entries = re.findall(r"^ {4}(\w+): ((?:.*\n?)(?: {5,}.*\n?)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(says.replace("``", "").split()) for name, says in entries}


def _lines(options: list[Option]) -> list[str]:
    indent = max((len(option.name) for option in options), default=0) + 4
    lines = []
    for option in options:
        says = re.sub(r":\w+:`~?([^`]+)`", r"\1", option.says).rstrip(".")
        text = f"{says} ({_shown(option.kind)}{_default(option.default)})".strip()
        hanging = " " * indent
        lines += textwrap.wrap(text, WIDTH, initial_indent=f"  {option.name}".ljust(indent), subsequent_indent=hanging)
    return lines


def _default(value: Any) -> str:
    if isinstance(value, type(dataclasses.MISSING)) or repr(value) == "<factory>":
        return ""
    if value is inspect.Parameter.empty:
        return ", required"
    return f", default {value.__name__ if isinstance(value, type) else value}"


def _shown(kind: Any) -> str:
    """An annotation without the modules that its names are from."""
    text = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
    text = re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)
    text = re.sub(r"Optional\[(.+)\]", r"\1 | None", text)
    return re.sub(r"Literal\[(.+?)\]", lambda found: found[1].replace("'", "").replace(", ", "|"), text)


def _entries(options: list[Option]) -> dict[type, list[str]]:
    """The dataclasses that options are made of, with the options' names."""
    found: dict[type, list[str]] = {}
    for option in options:
        for kind in _parts(option.kind):
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                found.setdefault(kind, []).append(option.name)
    return found


def _parts(kind: Any) -> list[Any]:
    """An annotation and all that stands in it."""
    if isinstance(kind, types.GenericAlias | types.UnionType) or typing.get_args(kind):
        return [part for inner in typing.get_args(kind) for part in _parts(inner)]
    return [kind]
