"""Settings shared by all tests: one thread of torch each, since the tests of several workers share the cores."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> None:
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
