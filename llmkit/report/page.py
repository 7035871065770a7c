"""The page: a run's report laid out as one HTML file that loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmkit.console import format_seconds
from llmkit.report import format as text
from llmkit.report.cells import (
    WHISKER_GAP,
    interval_text,
    ledger_bar,
    reason_classes,
    score_text,
    standing,
    whiskers,
)
from llmkit.report.chain import Drawing, draw_columns, draw_rows
from llmkit.report.charts import Chart, metric_chart
from llmkit.report.curves import MACHINE
from llmkit.report.gather import RunReport, gather
from llmkit.report.results import Row, Score
from llmkit.report.stages import DATA, TRAINING, Stage
from llmkit.store.files import write_text_atomic

PAGE = "report.html"
FIRST_CHARTS = 9
TEXT_LIMIT = 700
_NAME_LIMIT = 15


def write_report(run_directory: Path, output: Path | None = None) -> Path:
    """Write the page about a run.

    Args:
        run_directory: the run's folder ("runs/quickstart").
        output: where to write it; `report.html` in the run's folder by default.

    Returns:
        where it was written.

    Raises:
        ArtifactError: there is no run here.
    """
    page = output if output is not None else run_directory / PAGE
    html = render(gather(run_directory))
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(page, html)
    return page


def render(run: RunReport) -> str:
    """The page's HTML; equal reports give equal text."""
    style, script = _asset("style.css"), _asset("hover.js")
    # Only these very bytes may style or run: text from a model or a data set that got into the markup could not.
    allowed = f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    charts = {name: _charts(name, run) for name in run.curves}
    template = _environment().get_template("page.html.jinja")
    html = template.render(
        run=run,
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        chains=_chains(run.stages),
        by_name={stage.name: stage for stage in run.stages},
        charts=charts,
        folded={name: _folded(drawn) for name, drawn in charts.items()},
        data_stages=[stage for stage in run.stages if stage.kind in DATA],
        training_stages=[stage for stage in run.stages if stage.kind in TRAINING],
        eval_stages=[stage for stage in run.stages if stage.kind == "eval"],
        other_stages=[stage for stage in run.stages if stage.kind not in (*DATA, *TRAINING, "eval")],
        standing=standing(run.stages),
        measured={card.stage: _measured(card.stage, run) for card in run.cards},
        pretrained=[card for card in run.cards if card.lineage[-1] == card.stage and len(card.lineage) == 1],
        versions=_versions(run.stages),
        text_limit=TEXT_LIMIT,
    )
    return text.encodable(html)


def _asset(name: str) -> str:
    return resources.files("llmkit.report").joinpath("templates", name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("llmkit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        whole=text.count,
        short=text.short_count,
        flops=text.flops,
        flop_rate=text.flop_rate,
        size=text.file_size,
        duration=text.duration,
        brief=format_seconds,
        significant=text.significant,
        words=text.title,
        slug=text.slug,
        cell=text.cell,
        visible=text.visible,
        node_name=_node_name,
        day=_day,
        score=score_text,
        interval=interval_text,
        arrow=_arrow,
    )
    environment.globals.update(
        share=text.share,
        shortened=text.shortened,
        bar=ledger_bar,
        ledger_classes=reason_classes,
        whiskers=whiskers,
        whisker_gap=WHISKER_GAP,
    )
    return environment


def _measured(model: str, run: RunReport) -> list[tuple[Row, Score]]:
    """What the evaluations found of one model, parts of tasks left out."""
    tables = [table for evaluation in run.evaluations.values() for table in evaluation.tables]
    rows = [row for table in tables for _, found in table.tasks for row in found]
    return [(row, row.scores[model]) for row in rows if model in row.scores]


@dataclass(frozen=True)
class Chains:
    """The chain of stages drawn twice; the page shows the one that fits. `columns` is None where there are too many."""

    columns: Drawing | None
    rows: Drawing


def _chains(stages: Sequence[Stage]) -> Chains:
    upstream = {stage.name: stage.upstream for stage in stages}
    return Chains(draw_columns(upstream), draw_rows(upstream))


def _charts(name: str, run: RunReport) -> list[Chart]:
    made = [metric_chart(name, metric, series) for metric, series in run.curves[name].metrics.items()]
    return [chart for chart in made if chart is not None]


def _folded(charts: Sequence[Chart]) -> list[Chart]:
    """The charts that are shown on request: those of the machine, and whatever is beyond the first ones."""
    first = [chart for chart in charts if chart.metric not in MACHINE][:FIRST_CHARTS]
    return [chart for chart in charts if chart not in first]


def _versions(stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """Every package with its version; several where stages were made with different ones."""
    found: dict[str, dict[str, None]] = {}
    for stage in stages:
        for package, number in stage.versions.items():
            found.setdefault(str(package), {})[str(number)] = None
    return [(package, ", ".join(numbers)) for package, numbers in sorted(found.items())]


def _day(seconds: float | None) -> str:
    """The day of a moment, UTC."""
    return "unknown" if seconds is None else time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _node_name(name: str) -> str:
    shown, more = text.shortened(name, _NAME_LIMIT)
    return shown[:-1] + "…" if more else shown


def _arrow(row: Row) -> str:
    return {"lower": "↓", "higher": "↑"}.get(row.better or "", "")
