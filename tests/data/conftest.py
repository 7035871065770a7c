"""What several tests of the room share: the objects of the installed Python, which take seconds to find."""

from __future__ import annotations

import pytest

from llmkit.data.python_objects import PythonObject, python_objects


@pytest.fixture(scope="session")
def objects() -> list[PythonObject]:
    return python_objects()
