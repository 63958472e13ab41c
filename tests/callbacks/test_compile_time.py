"""What compiling costs is said once, and only of models that are compiled."""

import re

import lightning.pytorch as L
import pytest

from ndkd.callbacks.compile_time import CompileTime


class Compiled(L.Callback):
    def on_train_start(self, trainer, pl_module):
        pl_module.is_compiled = True


@pytest.mark.parametrize("is_compiled", [True, False])
def test_the_first_step_is_timed(fit, make_module, terms, capsys, is_compiled):
    fit(make_module(terms("ce")), CompileTime(), *([Compiled()] if is_compiled else []), epochs=2)
    found = re.findall(r"^compiled: the first training step took \d+ s$", capsys.readouterr().out, re.MULTILINE)
    assert len(found) == is_compiled
