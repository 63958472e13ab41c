"""What a logger may offer beyond Lightning's own methods; each is optional."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class LogsHistograms(Protocol):
    """Takes counts and edges by name, after every epoch: feature norms and angles."""

    def log_histograms(self, histograms: Mapping[str, tuple[np.ndarray, np.ndarray]], step: int) -> None: ...


@runtime_checkable
class LogsImages(Protocol):
    """Takes PIL images, after every epoch of a detector; a logger whose ``experiment`` has TensorBoard's ``add_image``
    gets them too."""

    def log_image(self, key: str, images: Sequence[Any]) -> None: ...


@runtime_checkable
class LogsTables(Protocol):
    """Takes a table at the end of a fit: the test of the last and the best checkpoint."""

    def log_table(self, key: str, columns: Sequence[str], data: Sequence[Sequence[Any]], step: int) -> None: ...


@runtime_checkable
class Waits(Protocol):
    """Leaves no trace until something is logged: ``ndkd fit`` sets ``is_waiting`` before it builds anything."""

    is_waiting: bool
