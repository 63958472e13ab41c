"""DataModules: images in [0, 1], each model normalises for itself."""

from ndkd.data.digits import DigitsDataModule

__all__ = ["DigitsDataModule"]
