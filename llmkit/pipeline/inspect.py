"""What is this? Any artifact, run, model directory or data file, told in a few lines and tables."""

from __future__ import annotations

from typing import Any

Details = dict[str, Any]
