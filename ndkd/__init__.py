"""Knowledge distillation that regularises feature norm and direction (https://arxiv.org/abs/2305.17007)."""

__version__ = "0.1.0"
