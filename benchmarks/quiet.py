"""``ndkd fit`` without a word, unless it fails."""

import contextlib
import io

from ndkd.cli import main as ndkd


def quiet_fit(config: object, *options: object) -> None:
    """Run it in this process."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        status = ndkd(["fit", "--config", str(config), *map(str, options)])
    assert status == 0, errors.getvalue()
