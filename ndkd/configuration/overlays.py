"""Loss terms of several configurations: a later one changes the terms that it names, or spells all of them anew."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ndkd.configuration.checks import ENDINGS
from ndkd.configuration.entries import entry
from ndkd.errors import NdkdError, suggestion

LOSSES = "model.init_args.losses"
CONFIG = ("--config", "-c")
Terms = dict[str, Any]


def with_merged_losses(arguments: list[str]) -> list[str]:
    """The arguments of a command, in which one configuration alone spells loss terms: all that hold in the end.

    Terms that do not spell their own ``loss`` change those of that name and leave the others, a configuration that
    spells each ``loss`` replaces the set, and ``NAME: null`` removes a term. Left to the parser, terms that a later
    configuration does not name would be gone, and options of those that it replaces would stay.

    Raises:
        NdkdError: a change of a term that there is not.
    """
    words = _words(arguments)
    spelled = [_losses(value) if option in CONFIG else _entries(option, value) for option, value in words]
    places = [place for place, found in enumerate(spelled) if found]
    if places:
        _check_first(spelled[places[0]], _name(*words[places[0]]))
    if len(places) < 2 and not any(None in found.values() for found in spelled):
        return arguments
    terms: Terms = {}
    merged: list[str] = []
    for place, ((option, value), found) in enumerate(zip(words, spelled, strict=True)):
        if found:
            terms = merged_terms(terms, found, _name(option, value))
            text = value if option in CONFIG else ""
            merged += ["--config", _with_losses(text or "", terms if place == places[-1] else None)]
        elif place < places[-1] and option.startswith(f"--{LOSSES}.") and value is not None:
            _change(terms, option.removeprefix(f"--{LOSSES}.").split("."), yaml.safe_load(value))
        else:
            merged += [option] if value is None else [option, value]
    return merged


def _check_first(terms: Terms, where: str) -> None:
    """Raise ``NdkdError`` if the first terms of all are changes of others."""
    for name, term in terms.items():
        if term is None or isinstance(term, dict) and "loss" not in term:
            what = "removes" if term is None else "changes"
            raise NdkdError(
                f"{where} {what} the loss term {name}, but no configuration before it has one: give it after the "
                "configuration that it changes, or spell the term's loss"
            )


def merged_terms(before: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> Terms:
    """Loss terms after another configuration's.

    >>> before = {"kd": {"loss": "KDLoss", "weight": 1}, "nd": {"loss": "NDLoss"}}
    >>> merged_terms(before, {"nd": {"weight": 2}}, "mine.yaml")
    {'kd': {'loss': 'KDLoss', 'weight': 1}, 'nd': {'loss': 'NDLoss', 'weight': 2}}
    >>> merged_terms(before, {"nd": {"loss": "NDLoss"}}, "mine.yaml")
    {'nd': {'loss': 'NDLoss'}}
    >>> merged_terms(before, {"kd": None}, "mine.yaml")
    {'nd': {'loss': 'NDLoss'}}
    """
    if spells_all(changes):
        return dict(changes)
    terms = dict(before)
    for name, change in changes.items():
        if _spells_loss(change):
            terms[name] = change
        elif name not in before:
            what = "removes" if change is None else "changes"
            raise NdkdError(
                f"{where} {what} the loss term {name}, which is not there; {suggestion(name, list(before))}"
            )
        elif change is None:
            del terms[name]
        else:
            terms[name] = _merged_term(before[name], change)
    return terms


def spells_all(terms: Mapping[str, Any]) -> bool:
    """Whether every term says its own ``loss``: then they are a set of their own."""
    return all(_spells_loss(term) for term in terms.values())


def spells_a_set(config: str) -> bool:
    """Whether a configuration has loss terms, each with its own ``loss``."""
    terms = _losses(config)
    return bool(terms) and spells_all(terms)


def _spells_loss(term: Any) -> bool:
    loss = term.get("loss") if isinstance(term, dict) else None
    return isinstance(loss, str) or isinstance(loss, dict) and "class_path" in loss


def _merged_term(before: Any, change: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(before, dict):
        return change
    merged = {**before, **change}
    if isinstance(change.get("loss"), dict):  # other options of the same class
        old = before.get("loss")
        old = {"class_path": old} if isinstance(old, str) else dict(old or {})
        options = {**(old.get("init_args") or {}), **(change["loss"].get("init_args") or {})}
        merged["loss"] = {**old, **change["loss"], "init_args": options}
    return merged


def _change(terms: Terms, keys: list[str], value: Any) -> None:
    """Follow an option of the command line, such as ``losses.nd.weight``."""
    change = value
    for key in reversed(keys[1:]):
        change = {key: change}
    if len(keys) > 1 and keys[0] in terms:
        terms[keys[0]] = _merged_term(terms[keys[0]], change)
    elif keys:
        terms[keys[0]] = change


def _words(arguments: list[str]) -> list[tuple[str, str | None]]:
    """Options with their values, and words that stand alone."""
    found: list[tuple[str, str | None]] = []
    waiting = False
    for argument in arguments:
        name, is_joined, value = argument.partition("=")
        takes_one = name in CONFIG or name.startswith(f"--{LOSSES}")
        if waiting:
            found[-1] = (found[-1][0], argument)
        elif takes_one and is_joined:
            found.append((name, value))
        else:
            found.append((argument, None))
        waiting = not waiting and takes_one and not is_joined
    return found


def content_of(config: str) -> dict[str, Any]:
    """The entries of a configuration, a file or the text of one; files that they name are found from anywhere."""
    file = Path(config)
    is_file = "\n" not in config and len(config) < 4096 and config.endswith(ENDINGS) and file.is_file()
    content = yaml.safe_load(file.read_text(encoding="utf-8") if is_file else config)
    content = content if isinstance(content, dict) else {}
    return _found_from_anywhere(content, file.parent) if is_file else content


def _found_from_anywhere(value: Any, folder: Path) -> Any:
    """Entries in which the files of a folder have their whole paths."""
    if isinstance(value, dict):
        return {name: _found_from_anywhere(inner, folder) for name, inner in value.items()}
    if isinstance(value, list):
        return [_found_from_anywhere(inner, folder) for inner in value]
    is_beside = isinstance(value, str) and value.endswith(ENDINGS) and (folder / value).is_file()
    return str((folder / value).resolve()) if is_beside else value


def _model(content: Mapping[str, Any]) -> Any:
    model = content.get("model")
    return content_of(model) if isinstance(model, str) and model.endswith(ENDINGS) else model


def _losses(config: str | None) -> Terms:
    """The loss terms that a configuration spells, none if it is none."""
    try:
        found = entry({"model": _model(content_of(config or ""))}, LOSSES)
    except (yaml.YAMLError, OSError, UnicodeDecodeError):  # the parser has a better word for it
        return {}
    return found if isinstance(found, dict) else {}


def _entries(option: str, value: str | None) -> Terms:
    """The loss terms that an option of the command line spells."""
    found = yaml.safe_load(value or "") if option == f"--{LOSSES}" else None
    return found if isinstance(found, dict) else {}


def _with_losses(config: str, terms: Terms | None) -> str:
    """The text of a configuration with other loss terms, or without any."""
    content = content_of(config)
    model = dict(_model(content) or {})
    arguments = {name: value for name, value in (model.get("init_args") or {}).items() if name != "losses"}
    model["init_args"] = arguments if terms is None else {**arguments, "losses": terms}
    merged = {**content, "model": model}
    return str(yaml.safe_dump(merged, default_flow_style=True, sort_keys=False, width=float("inf")))


def _name(option: str, value: str | None) -> str:
    return f"config {value}" if option in CONFIG and value and value.endswith(ENDINGS) else option
