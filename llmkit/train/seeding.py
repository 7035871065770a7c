"""Random generators whose state at the start of a step is a function of the seed and the step.

So there is no random state to save: a resumed run draws what the uninterrupted one drew, and neither evaluation nor
the number of machines moves the stream. Dropout and everything else that draws from the global generators is covered.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from numbers and words: different parts give independent streams."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def seed_generators(*parts: int | str) -> None:
    """Seed the global generators of torch (every device), Python and NumPy from `parts`."""
    seed = derive_seed(*parts)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - what libraries draw from is the legacy generator
