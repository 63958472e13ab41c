"""Beside setup.cfg: the configurations, which are edited in ``configs``, become the package ``ndkd.configs``."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["ndkd*"]), "ndkd.configs"], package_dir={"ndkd.configs": "configs"})
