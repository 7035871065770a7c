"""Render a report page to PNG with an installed Chromium: the picture in the README and in docs/.

python scripts/screenshot_report.py runs/quickstart/report.html docs/report.png --width 1280 --height 1600
python scripts/screenshot_report.py runs/quickstart/report.html phone.png --width 360 --dark
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Headless Chromium makes windows no narrower than this; narrower pages are shown inside a frame.
NARROWEST_WINDOW = 500


def main() -> int:
    """Render and say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="the page, as `llmkit report` writes it")
    parser.add_argument("output", type=Path, help="the PNG to write")
    parser.add_argument("--width", type=int, default=1280, help="width of the window in CSS pixels")
    parser.add_argument("--height", type=int, default=1600, help="height of the picture in CSS pixels")
    parser.add_argument("--scale", type=float, default=1.0, help="device pixels for each CSS pixel")
    parser.add_argument("--dark", action="store_true", help="as on a system set to dark")
    parser.add_argument("--anchor", default="", help="id of the element to begin at, such as results")
    arguments = parser.parse_args()
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        print(f"no browser found (looked for {', '.join(BROWSERS)})", file=sys.stderr)
        return 2
    if not arguments.page.is_file():
        print(f"{arguments.page}: there is no such page; `llmkit report RUN` writes one", file=sys.stderr)
        return 2
    render(browser, arguments)
    print(arguments.output)
    return 0


def render(browser: str, arguments: argparse.Namespace) -> None:
    """Take the picture in a browser profile of its own."""
    target = arguments.page.resolve().as_uri() + (f"#{arguments.anchor}" if arguments.anchor else "")
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.width < NARROWEST_WINDOW:
            frame = Path(scratch) / "frame.html"
            size = f'width="{arguments.width}" height="{arguments.height}"'
            frame.write_text(f'<body style="margin:0"><iframe src="{target}" {size} frameborder="0"></iframe>')
            target = frame.as_uri()
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--allow-file-access-from-files",
            f"--user-data-dir={scratch}/profile",
            f"--window-size={arguments.width},{arguments.height}",
            f"--force-device-scale-factor={arguments.scale}",
            *(["--blink-settings=preferredColorScheme=0"] if arguments.dark else []),
            f"--screenshot={arguments.output.resolve()}",
            target,
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    sys.exit(main())
