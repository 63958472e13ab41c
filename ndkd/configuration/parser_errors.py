"""The parser's errors, a screen long each, in one line."""

import difflib
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ndkd.errors import suggestion

# lines of an error that say where the parser was and what else it tried, not what was wrong
NOISE = re.compile(
    r"-? ?(Parser key |Does not validate against|Subtypes: |Errors:|Given value|Problem with given class_path|"
    r"Expected a path but|Expected an? <class 'NoneType'>|Subclass types expect one of|a class path \(str\)|"
    r"a dict with|Import path ndkd\.models\.ModelConfig does not)"
)
PRINT_CONFIG = "see ndkd fit --print_config for those that exist"
# what is called otherwise in a configuration than in Python
WORDS = {
    "collections.abc.Sequence": "a list",
    "list": "a list",
    "collections.abc.Mapping": "entries by name",
    "dict": "entries by name",
}


def one_line(
    message: str,
    classes: Mapping[str, Sequence[str]],
    entries: Mapping[str, Sequence[str]] = {},
    words: Sequence[str] = (),
) -> str:
    """Say in one line which entry of the configuration is wrong and why: the innermost cause, and never cut.

    Args:
        message: of a jsonargparse error.
        classes: names to suggest where a class is not found, by the entry that wants them.
        entries: names to suggest where an entry is not known, by the block that has them, ``""`` for the options.
        words: of the command line.

    >>> message = "Parser key \\"data\\":\\n  - Expected a dot import path string: Digit"
    >>> one_line(message, {"data": ["DigitsDataModule"]})
    'data: there is no class Digit; did you mean DigitsDataModule?'
    """
    own: list[str] = re.findall(r"- (\w+: wanted [^\n]+)", message)  # of a class of ours that refuses its options
    term = failed_term(message)
    if own:
        return f"loss {term}: {own[-1]}" if term else own[-1]
    if (said := _of_options(message, entries, words)) is not None:
        return said
    message = _without_other_kinds(message)
    where = _place(message)
    lead = f"{where}: " if where else f"loss {term}: " if term else "losses: " if "LossTerm" in message else ""
    for find in (_no_class, _no_entry, _no_value):
        if (said := find(message, where, classes)) is not None:
            return f"{lead}{said}"
    return f"{lead}{_innermost(message)}"


def _without_other_kinds(message: str) -> str:
    """Without "Not a valid subclass", the parser's word on a list of objects, where it tells what is wrong with one."""
    lines = message.splitlines()
    start = next((k for k, line in enumerate(lines) if "- Not a valid subclass of" in line), None)
    if start is None:
        return message
    indent = lines[start].index("-")
    beside = [line for line in lines if line.startswith(f"{' ' * indent}- ") and line != lines[start]]
    if not [line for line in beside if "Expected a <class 'NoneType'>" not in line]:
        return message
    end = next((k for k, line in enumerate(lines[start + 1 :], start + 1) if line[: indent + 1].strip()), len(lines))
    return "\n".join(lines[:start] + lines[end:])


def failed_term(message: str) -> str | None:
    """The loss term that fails when it is made: of the terms in the message, the first that is not made yet."""
    _, is_of_terms, terms = message.rpartition("objective.LossTerm]")
    found = re.search(r"'([^']+)': Namespace\(loss=", terms.partition("Given value: ")[2])
    return found[1] if is_of_terms and found else None


def _of_options(message: str, entries: Mapping[str, Sequence[str]], words: Sequence[str]) -> str | None:
    """What is wrong with the words of the command line, or with a block that is no class."""
    options = [*entries.get("", ()), *(f"{block}.{name}" for block in entries if block for name in entries[block])]
    if unknown := re.search(r"does not accept option '([^']+)'", message):
        block, _, name = unknown[1].partition(".")
        word, known = (name, entries[block]) if block in entries else (block, [*entries.get("", ()), *entries])
        if block in entries.get("model.init_args", ()):
            return f"there is no entry {unknown[1]}; did you mean model.init_args.{block}?"
        known = [each for each in known if each and "." not in each]
        return f"there is no entry {unknown[1]}; {_did_you_mean(word, known)}"
    if unrecognized := re.search(r"nrecognized arguments:\s+(.+)", message):
        word = unrecognized[1].split()[0]
        if not word.startswith("--"):
            return f"unrecognized arguments: {unrecognized[1]}; options begin with --"
        name = word.removeprefix("--").partition("=")[0]
        if owners := re.findall(r"Problem with given class_path '([^']+)'", message):  # --model.init_args.optimiser.…
            first, known = name.partition(".")[0], parameters_of(_loaded(owners[-1]))
            return f"{_place(message).partition('.')[0]}: there is no entry {first}; {_did_you_mean(first, known)}"
        near = _near(name, options)
        hint = f"did you mean {', '.join(f'--{other}' for other in near)}?" if near else "see ndkd fit --help-all"
        return f"there is no option --{name}; {hint}"
    if missing := re.match(r"the following arguments are required: (.+)", " ".join(message.split())):
        names = [name.rpartition(".")[2] for name in missing[1].split(", ")]
        return f"{' and '.join(names)}: missing; give a configuration that says them, such as digits/kd++.yaml"
    if found := re.search(r"argument (--[\w.]+): expected one argument", message):
        following = [*words[1:], "--"]
        bare = [w for w, after in zip(words, following, strict=False) if w.startswith(found[1]) and after[:1] == "-"]
        lacking = [word for word in bare if "=" not in word]
        which = " or ".join(lacking) or f"an option that begins with {found[1]}"
        return f"{which} has no value; give it one"
    return None


def _place(message: str) -> str:
    """The entry that is wrong, the name of a loss term included where the message tells it."""
    keys = re.findall(r'Parser key "([\w.]+)"', message)
    nested = re.findall(r"NestedArg\(key='([^']+)'", message)
    where = f"{keys[0]}.{nested[-1]}" if keys and nested else ".".join(keys)
    if where.startswith("model.losses.loss") and (name := _class_in(message)):
        # the term that has this class, by what was given
        of_it = rf"'([^']+)': \{{'loss': (?:\{{'class_path': )?'{re.escape(name)}'"
        terms = {*re.findall(of_it, message)}
        if len(terms) == 1:
            return where.replace("model.losses.", f"model.losses.{terms.pop()}.", 1)
    if option := re.fullmatch(r"model\.losses\.(\w+)", where):
        terms = {*re.findall(rf"'([^']+)': \{{[^{{}}]*'{option[1]}': ", message)}
        if len(terms) == 1:
            return f"model.losses.{terms.pop()}.{option[1]}"
    return where


def _class_in(message: str) -> str | None:
    """The class that could not be found or made."""
    patterns = (
        r"Expected a dot import path string: (\S+)",
        r"has no attribute '\w+'\. Got value: Namespace\(class_path='([^']+)'",
        r"has no attribute '\w+'\. Got value: (\S+)",
        r"Import path (?!ndkd\.models\.ModelConfig )(\S+) does not correspond",
    )
    for pattern in patterns:
        if found := re.search(pattern, message):
            return found[1] if found[1] != "None" else None
    given: list[str] = re.findall(r"Problem with given class_path '([^']+)'", message)
    return given[-1] if given else None


def _no_class(message: str, where: str, classes: Mapping[str, Sequence[str]]) -> str | None:
    """A class that is not there, cannot be imported, or is of another kind."""
    name, entry = _class_in(message), where.rpartition(".")[2]
    if name is None:
        return None
    if entry in ("teacher", "student") and "dot import path" in message:
        return f"wanted entries such as name, got {name}; write model.init_args.{entry}.name: {name}"
    known = classes.get(entry, [])
    kind = rf"Import path (?!ndkd\.models\.ModelConfig ){re.escape(name)} does not correspond to a subclass of (\w+)"
    if other := re.search(kind, message):
        return f"wanted a {other[1]}, {name} is none; {suggestion(name.rpartition('.')[2], list(known))}"
    if lacking := re.search(r"module '([^']+)' has no attribute '(\w+)'", message):
        loaded = vars(sys.modules.get(lacking[1], object)) if lacking[1] in sys.modules else {}
        own = [other for other, value in loaded.items() if isinstance(value, type)]
        near = [f"{lacking[1]}.{other}" for other in _near(lacking[2], own)]
        if known and not any(other in loaded for other in known):  # one's own module
            known = [other for other in own if loaded[other].__module__ == lacking[1]] or known
        hint = f"did you mean {', '.join(near)}?" if near else suggestion(lacking[2], list(known))
        return f"there is no class {name}; {hint}"
    if re.search(r"Expected a dot import path string|has no attribute '\w+'\. Got value", message):
        return f"there is no class {name}; {suggestion(name.rpartition('.')[2], list(known))}"
    if missing := re.search(r"No module named '([^']+)'", message):
        if f"{name}.".startswith(f"{missing[1]}."):
            return f"there is no module {missing[1]} for {name}; is it installed, or in this folder?"
        return f"{name} cannot be imported: it wants the module {missing[1]}, which is not there; install it"
    return None


def _no_entry(message: str, where: str, classes: Mapping[str, Sequence[str]]) -> str | None:
    """An entry that a class does not have, or one that is missing."""
    if option := re.search(r"(?:Option|Key|Group) '([^']+)' (?:is not accepted|is not expected)", message):
        name = option[1].removesuffix(".class_path").removesuffix(".init_args")
        owners: list[str] = re.findall(r"Problem with given class_path '([^']+)'", message)
        given_by_us: tuple[str, ...] = ()
        if where.endswith(("optimizer", "lr_scheduler")):  # a function that makes one of what the module gives it
            owners, given_by_us = re.findall(r"class_path'?[=:] ?'([^']+)'", message)[:1], ("params", "optimizer")
        known = [each for each in parameters_of(_loaded(owners[-1])) if each not in given_by_us] if owners else []
        return f"there is no entry {name}; {_did_you_mean(name.partition('.')[0], known)}"
    if missing := re.search(r"arguments are required: (.+)", message):
        block, _, rest = f"{where}.{missing[1]}".partition(".")
        wanted = f"{block}.init_args.{rest}" if block in ("model", "data") else f"{where}.{missing[1]}"
        return f"{missing[1]} is missing; set {wanted}"
    return None


def _no_value(message: str, where: str, classes: Mapping[str, Sequence[str]]) -> str | None:
    """A value of another type than is wanted."""
    given = re.findall(r"(?:Given value|Got value): (.+)", message)
    given = [re.sub(r"NestedArg\(key='([^']*)', val='?(.*?)'?\)", r"\1: \2", each) for each in given]
    wanted = [kind for kind in re.findall(r"Expected an? <class '([\w.]+)'>", message) if kind != "NoneType"]
    wanted = [WORDS.get(kind, kind) for kind in wanted]
    choices = re.findall(r"Expected a typing\.Literal\[([^\]]+)\](?:\. Got value: (.+))?", message)
    if choices:
        values = dict.fromkeys(value.strip("'") for found, _ in choices for value in found.split(", "))
        found = choices[0][1] or (given or ["something else"])[0]
        if wanted:
            return f"wanted {' or '.join([*values, *dict.fromkeys(wanted)])}, got {found}"
        return f"wanted one of {', '.join(values)}, got {found}"
    if (object_of := re.search(r"Not a valid subclass of (\w+)", message)) and given:
        if object_of[1] == "Tensor":
            hint = "YAML has no tensors: write a class of your own that makes one of a list"
            return f"wanted a tensor, got {given[0]}; {hint}"
        return f"wanted a {object_of[1]}, as class_path and init_args, got {given[0]}"
    if wanted and given:
        return f"wanted {' or '.join(dict.fromkeys(wanted))}, got {given[0]}"
    return None


def _innermost(message: str) -> str:
    """What is written deepest in the parser's tree of causes, whole."""
    lines = [line for line in message.splitlines() if line.strip() and not NOISE.match(line.strip())]
    depths = [len(line) - len(line.lstrip(" -")) for line in lines]
    causes = [line.strip(" -") for line, depth in zip(lines, depths, strict=True) if depth == max(depths)]
    said = "; ".join(dict.fromkeys(causes)) or " ".join(message.split())
    if several := re.search(r"Multiple subclasses with name (\w+)\. Give the full .*ambiguity: (.+)\.", said):
        which = [name for name in several[2].split(", ") if name.startswith("lightning.")] or ["one of them in full"]
        return f"several classes are called {several[1]}: {several[2]}; write {which[0]}"
    return said


def _near(name: str, known: Sequence[str]) -> list[str]:
    """Known names that a slip of the keyboard turns into this one, or that it begins."""
    return [other for other in known if other.startswith(name)] or difflib.get_close_matches(name, known, 3, 0.7)


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    near = _near(name, known)
    if near:
        return f"did you mean {', '.join(near)}?"
    return f"known: {', '.join(known)}" if 0 < len(known) <= 20 else PRINT_CONFIG


def _loaded(name: str) -> Any:
    """A class of a module that is imported already."""
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module), attribute, None)


def parameters_of(kind: Any) -> list[str]:
    """The names that a class takes; where it hands others on to its parent, those too."""
    found: dict[str, None] = {}
    for owner in inspect.getmro(kind) if isinstance(kind, type) else ():
        if "__init__" not in vars(owner) or owner is object:
            continue
        parameters = list(inspect.signature(vars(owner)["__init__"]).parameters.values())[1:]
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        found |= dict.fromkeys(parameter.name for parameter in parameters if parameter.kind not in variable)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return list(found)
