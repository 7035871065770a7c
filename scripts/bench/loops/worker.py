"""A competitor of `pretrain.py` in a process that imports what it needs and nothing else: its memory is measured.

python worker.py '{"competitor": ..., "scenario": ..., ...}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from loops.turns import Turns


def main() -> None:
    """Train as the first argument says."""
    shape = json.loads(sys.argv[1])
    competitor, scenario = shape["competitor"], shape["scenario"]
    turns = Turns(shape["warmup"], shape["steps"])
    if competitor == "llmkit":
        from loops import ours

        ours.run(shape, scenario, turns)
    elif competitor == "handwritten":
        from loops import handwritten

        handwritten.run(shape, scenario, turns)
    else:
        from loops import trainer

        trainer.run(shape, scenario, turns, bf16=competitor.endswith("bf16"))


if __name__ == "__main__":
    main()
