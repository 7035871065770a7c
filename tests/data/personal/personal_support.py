"""The program that generates labelled documents, as a module."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

SCRIPTS = str(Path(__file__).parents[3] / "scripts")
if SCRIPTS not in sys.path:
    sys.path.append(SCRIPTS)
script = importlib.import_module("verify_personal_data")
