"""What the tests of the models share."""

import re

import pytest

from ndkd.errors import NdkdError


@pytest.fixture
def refused():
    """An ``NdkdError`` of one line, made of these parts with anything between them."""
    return lambda *parts: pytest.raises(NdkdError, match=rf"\A{'.*'.join(map(re.escape, parts))}\Z")
