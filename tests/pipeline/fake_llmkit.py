"""Stands in for `llmkit run`: one stage `work`, of the kind of an evaluation, with a known number of measurements.

    python fake_llmkit.py SECONDS RESULT run --config F --set runs_dir=DIRECTORY

Like the real one it works in a folder of its own, goes on in it when it is started again, and ends by the manifest and
a rename. How often it was started is in `work/starts`, a by-product.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from llmkit.store.artifact import Manifest, content_digest, list_files, write_manifest

MEASUREMENTS = 10


def main() -> None:
    """Make the stage, or go on with it."""
    seconds, result, runs_dir = float(sys.argv[1]), sys.argv[2], sys.argv[-1].removeprefix("runs_dir=")
    place = Path(runs_dir) / "work"
    if place.exists():
        return
    directory = place.with_name("work.partial-0")
    (directory / "measurements").mkdir(parents=True, exist_ok=True)
    with (directory / "starts").open("a") as stream:
        stream.write("started\n")
    for number in range(MEASUREMENTS):
        time.sleep(seconds / MEASUREMENTS)
        (directory / "measurements" / f"{number}.json").write_text("{}")
    (directory / "results.json").write_text(result)
    files = list_files(directory, ["results.json"])
    manifest = Manifest("results", "eval", "work", "", content_digest(files), {}, {}, {}, {}, {}, files)
    write_manifest(directory, manifest)
    directory.rename(place)


if __name__ == "__main__":
    main()
