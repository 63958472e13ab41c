"""Archives that would do harm are not unpacked."""

import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from ndkd.data.archives import check_archive
from tests.command import refusal


def archive(*members, inner=False):
    """A tar file of (name, size or kind) in the working directory."""
    content = BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, size in members:
            member = tarfile.TarInfo(name)
            member.size, member.type = (size, tarfile.REGTYPE) if isinstance(size, int) else (0, size)
            member.linkname = "/etc/passwd" if not isinstance(size, int) else ""
            tar.addfile(member, BytesIO(bytes(member.size)))
    if inner:
        member, outer = tarfile.TarInfo("n0.tar"), BytesIO()
        member.size = len(content.getvalue())
        with tarfile.open(fileobj=outer, mode="w") as tar:
            tar.addfile(member, BytesIO(content.getvalue()))
        content = outer
    Path("a.tar").write_bytes(content.getvalue())
    return Path("a.tar")


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize(
    ("member", "why"),
    [
        (("../x", 1), "leads out of its folder"),
        (("a/../../x", 1), "leads out of its folder"),
        (("/x", 1), "leads out of its folder"),
        (("x", tarfile.SYMTYPE), "is not an ordinary file"),
        (("x", tarfile.LNKTYPE), "is not an ordinary file"),
        (("x", tarfile.FIFOTYPE), "is not an ordinary file"),
        (("x", 20_000), "has 0.0 GB"),
    ],
)
def test_an_archive_that_would_do_harm(folder, inner, member, why):
    file = archive(("good.JPEG", 10), member, inner=inner)
    largest = 10_000 if not inner else 40_000
    if inner and isinstance(member[1], int) and member[1] > 1:
        largest = 19_999
        file = archive(("good.JPEG", 10), (member[0], 20_000))  # the inner file itself would be too large
    assert why in refusal(check_archive, file, folder, largest)


def test_an_archive_for_which_there_is_no_room(folder, monkeypatch):
    file = archive(("good.JPEG", 10), ("other.JPEG", 20))
    check_archive(file, folder)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 25}))
    assert "make room" in refusal(check_archive, file, folder)


def test_an_archive_that_is_none(folder):
    Path("a.tar").write_bytes(b"no archive")
    assert "is damaged" in refusal(check_archive, Path("a.tar"), folder)
