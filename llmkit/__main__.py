"""`python -m llmkit` is `llmkit`."""

from __future__ import annotations

from llmkit.cli.main import main

if __name__ == "__main__":
    main()
