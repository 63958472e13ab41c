"""What loss terms can name: the outputs of student and teachers, class means and labels."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from ndkd.models.output import EnsembleOutput, ModelOutput

ONE = "teacher"  # the name of a teacher that is alone
OF_ONE = ("class_means", "student.projected")  # what there is for each of several teachers, beside their outputs


@dataclass
class StepOutput:
    """What loss terms can name: ``student.…``, ``teacher.…``, ``class_means``, ``target``.

    Of several teachers a and b there are ``a.…``, ``class_means.a``, ``student.projected.a`` and the same of b, and
    ``teacher.logits`` is the mean of their logits.

    ``labeled`` is how many images have a label, if not all; these come first. Of the others the target is no class.
    """

    student: ModelOutput
    target: Tensor
    teacher: ModelOutput | SimpleNamespace | EnsembleOutput | None = None
    class_means: Tensor | dict[str, Tensor] | None = None
    labeled: int | None = None

    def value(self, source: str) -> Any:
        """The output of a name.

        Raises:
            LookupError: there is none.
        """
        names = source.split(".")
        found: Any = self
        if isinstance(self.teacher, EnsembleOutput) and names[0] in self.teacher.each:
            found = self.teacher.each
        for name in names:
            try:
                found = found[name] if isinstance(found, dict) else getattr(found, name)
            except (AttributeError, KeyError) as error:
                raise LookupError(source) from error
        return found

    def on_offer(self) -> list[str]:
        """The names of all outputs."""
        names = []
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, ModelOutput | SimpleNamespace):
                names += _names_of(part.name, value)
            elif isinstance(value, EnsembleOutput):
                names.append(f"{part.name}.logits")
                names += [each for name, output in value.each.items() for each in _names_of(name, output)]
            elif isinstance(value, dict):
                names += [f"{part.name}.{name}" for name in value]
            elif value is not None and part.name != "labeled":
                names.append(part.name)
        return names


def _names_of(owner: str, output: ModelOutput | SimpleNamespace) -> list[str]:
    if isinstance(output, SimpleNamespace):  # of a recorded teacher, what was kept
        return [f"{owner}.{name}" for name in vars(output)]
    there = [name for name in vars(output) if name != "extra" and (name != "feature_maps" or output.feature_maps)]
    there.insert(there.index("embedding") + 1, "norm")
    if isinstance(output.projected, dict):
        place = there.index("projected")
        there[place : place + 1] = [f"projected.{name}" for name in output.projected]
    return [f"{owner}.{name}" for name in (*there, *(f"extra.{name}" for name in vars(output.extra)))]


def of_teacher(source: str, teacher: str) -> str:
    """The name that an output of the teacher, the only one, has where there are several.

    >>> of_teacher("teacher.norm", "a"), of_teacher("class_means", "a"), of_teacher("target", "a")
    ('a.norm', 'class_means.a', 'target')
    """
    if source in OF_ONE and teacher != ONE:
        return f"{source}.{teacher}"
    first, _, rest = source.partition(".")
    return f"{teacher}.{rest}" if first == ONE and rest else source


def of_each(function: Callable[[Tensor], Tensor], means: Any) -> Any:
    """What a function makes of class means, of each teacher's where there are several; None of none."""
    if isinstance(means, dict):
        return {name: function(each) for name, each in means.items()}
    return None if means is None else function(means)


def outputs_of(teacher: str, inputs: Iterable[str]) -> set[str]:
    """The outputs of one teacher among the inputs of loss terms, the mean of the logits being of each.

    >>> sorted(outputs_of("a", ["a.norm", "b.embedding", "teacher.logits"]))
    ['logits', 'norm']
    """
    owners = (f"{teacher}.", f"{ONE}.")
    return {source.removeprefix(owner) for source in inputs for owner in owners if source.startswith(owner)}


def asks_for(teacher: str, inputs: Collection[str]) -> bool:
    """Whether a teacher is wanted for these inputs of loss terms.

    >>> asks_for("teacher", ["student.logits", "target"]), asks_for("a", ["class_means.a"])
    (False, True)
    """
    return bool(outputs_of(teacher, inputs)) or any(of_teacher(name, teacher) in inputs for name in OF_ONE)
