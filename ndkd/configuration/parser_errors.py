"""The parser's errors, a screen long each, in one line."""

import re

from ndkd.errors import suggestion


def one_line(message: str, classes: dict[str, list[str]]) -> str:
    """Say in one line which entry of the configuration is wrong and why.

    Args:
        message: of a jsonargparse error.
        classes: names to suggest where a class is not found, by the entry that wants them.

    >>> message = "Parser key \\"data\\":\\n  - Expected a dot import path string: Digit"
    >>> one_line(message, {"data": ["DigitsDataModule"]})
    'data: there is no class Digit; did you mean DigitsDataModule?'
    """
    own: list[str] = re.findall(r"- (\w+: wanted [^\n]+)", message)  # of a class of ours that refuses its options
    if own:
        return own[-1]
    if unknown := re.search(r"does not accept option '([^']+)'", message):
        return f"there is no entry {unknown[1]}; see ndkd fit --print_config for those that exist"
    keys = re.findall(r'Parser key "([\w.]+)"', message)
    if not keys:
        return " ".join(message.split())
    nested = re.findall(r"NestedArg\(key='([^']+)'", message)
    where = f"{keys[0]}.{nested[-1]}" if nested else ".".join(keys)
    unknown = re.search(r"Expected a dot import path string: (\S+)", message)
    unknown = unknown or re.search(r"has no attribute '\w+'\. Got value: (\S+)", message)
    if unknown and unknown[1] != "None":
        name, known = unknown[1].split(".")[-1], classes.get(where.split(".")[-1], [])
        return f"{where}: there is no class {unknown[1]}; {suggestion(name, known)}"
    if option := re.search(r"(?:Option|Key|Group) '([^']+)' (?:is not accepted|is not expected)", message):
        return f"{where}: there is no entry {option[1]}; see ndkd fit --print_config for those that exist"
    if missing := re.search(r"arguments are required: (.+)", message):
        return f"{where}: {missing[1]} is missing; set {where}.{missing[1]}"
    if choice := re.search(r"Expected a typing\.Literal\[(.+)\]\. Got value: (.+)", message):
        return f"{where}: wanted one of {choice[1]}, got {choice[2]}"
    wanted = [kind for kind in re.findall(r"Expected an? <class '([\w.]+)'>", message) if kind != "NoneType"]
    given = re.findall(r"(?:Given value|Got value): (.+)", message)
    if wanted and given:
        return f"{where}: wanted {' or '.join(dict.fromkeys(wanted))}, got {given[0]}"
    return f"{where}: {' '.join(message.split())[:300]}"
