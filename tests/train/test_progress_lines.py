"""What a training tells while it runs."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from toy_run import run_toy

from llmkit.console import Progress, format_bytes, shortened


def test_a_note_loses_parts_from_its_end_until_it_fits() -> None:
    note = "loss 3.2, 12,345 tokens/s, 52% of matrix rate, 1.2 GiB"
    assert shortened(note, 80) == note
    assert shortened(note, 30) == "loss 3.2, 12,345 tokens/s"
    assert shortened(note, 3) == ""
    assert (format_bytes(512 * 2**20), format_bytes(1.26e9)) == ("512 MiB", "1.2 GiB")


def test_a_line_of_progress_fits_80_columns_and_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("llmkit.console.time.monotonic", lambda: now[0])
    stream = StringIO()
    bar = Progress("pretrain", 1000, 100, stream)
    now[0] = 100.0
    bar.advance(200, "loss 3.214, 123,456 tokens/s, 52% of matrix rate, 12.3 GiB, lr 0.0005")
    (line,) = stream.getvalue().splitlines()
    # 200 steps took 100 seconds: 700 more take 350.
    assert line == "pretrain: 300/1,000 loss 3.214, 123,456 tokens/s, 52% of matrix rate, 5m50s left"
    bar.advance(700, "loss 3")
    assert stream.getvalue().splitlines()[1] == "pretrain: 1,000/1,000 loss 3"


def test_metrics_say_speed_memory_wait_norm_rate_and_time_left(tmp_path: Path) -> None:
    result = run_toy(tmp_path / "run", steps=4, log_every=2)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    first, last = [line for line in lines if line["split"] == "train"]
    wanted = {"loss", "grad_norm", "lr", "tokens", "seconds", "tokens_per_second", "utilization", "data_seconds"}
    assert wanted | {"memory_bytes", "seconds_left"} <= first.keys()
    assert first["seconds_left"] == pytest.approx(first["seconds"])
    assert last["seconds_left"] == 0
    # This process has torch in memory.
    assert 5e7 < first["memory_bytes"] <= last["memory_bytes"] <= result.summary["peak_memory_bytes"] < 1e12
