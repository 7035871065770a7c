"""Starting over in a workspace that an interrupted attempt has left."""

from __future__ import annotations

import shutil
from pathlib import Path

from llmkit.store.workspace import STATE


def start_over(directory: Path) -> None:
    """Remove what an interrupted attempt left in a stage's directory, half-written files and temporary ones included.

    For stages that write everything anew; the workspace's own note of what is being made stays.
    """
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != STATE:
            path.unlink()
