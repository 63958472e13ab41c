"""Memory that is freed and taken again is not fetched page by page."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from ndkd.commands.process import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    maps = [torch.ones(2**24) for _ in range(2)]  # 64 MiB each
for _ in range(10):  # the heap settles
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how):
    return int(subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True).stdout)


LIBRARY, VERSION = platform.libc_ver()


@pytest.mark.skipif(
    LIBRARY != "glibc" or tuple(map(int, VERSION.split("."))) < (2, 35), reason="other C libraries have other limits"
)
def test_freed_memory_is_kept():
    assert page_faults("keep") < 0.1 * page_faults("give back")


def test_without_glibc_nothing_happens(monkeypatch):
    from ndkd.commands import process

    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(process.ctypes, "CDLL", missing)
    process.keep_freed_memory()
