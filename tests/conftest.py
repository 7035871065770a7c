"""Settings shared by all tests.

One thread of torch each, since the tests of several workers share the cores; drawn examples are the same in every run,
so that a failure can be repeated, and have no deadline, since a loaded machine is no fault of the code.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("llmkit", deadline=None, derandomize=True)
settings.load_profile("llmkit")


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> None:
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
