"""What goes wrong while a run is built is a mistake of its configuration, whatever exception it is: one line."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ndkd.errors import NdkdError, plain_words, words_of
from ndkd.stopping import stop

# Lightning's functions that work on a batch: from there on an exception is a fault of the code, and is shown whole
STEPS = {
    ("training_epoch_loop.py", "advance"),
    ("evaluation_loop.py", "_evaluation_step"),
    ("prediction_loop.py", "_predict_step"),
}


@contextmanager
def in_one_line() -> Iterator[None]:
    """Make an ``NdkdError`` of what is raised before the first step; ``NDKD_TRACEBACK`` in the environment shows it.

    Raises:
        NdkdError: names the exception, its text and where in ndkd it was raised.
    """
    try:
        yield
    except (NdkdError, OSError):
        raise
    except Exception as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        names = [(frame.f_code.co_filename.rpartition("/")[2], frame.f_code.co_name) for frame in frames]
        if STEPS.intersection(names) or stop.number or plain_words(error):
            raise
        inside = [frame for frame in frames if frame.f_globals.get("__name__", "").startswith("ndkd.")]
        own = inside[-1]
        where = f"{own.f_globals['__name__']}.{own.f_code.co_name}" if inside else "the parser"
        more = f"(in {where}; NDKD_TRACEBACK=1 in the environment shows more)"
        raise NdkdError(f"this configuration cannot be built: {words_of(error)} {more}") from error
