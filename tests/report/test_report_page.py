"""The page: whole, self-contained, escaped, readable, the same bytes for the same run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import fake_run
import pytest

from llmkit.report.cells import whiskers
from llmkit.report.gather import gather
from llmkit.report.page import render, write_report
from llmkit.report.results import Row, Score

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """A page taken apart: elements with attributes and the text in them; refuses tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    @property
    def text(self) -> str:
        return " ".join(" ".join(data for tag, data in self.texts if tag not in ("style", "script")).split())

    def with_tag(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run.write_run(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def html(run_directory: Path) -> str:
    return write_report(run_directory).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> Page:
    run_directory = fake_run.write_run(tmp_path_factory.mktemp("partial"), ["corpus", "tokenizer", "tokens"])
    fake_run.interrupt_stage(run_directory, "pretrain")
    return Page(render(gather(run_directory)))


def test_the_page_is_written_into_the_run_or_where_asked(run_directory: Path, html: str, tmp_path: Path) -> None:
    assert (run_directory / "report.html").read_text(encoding="utf-8") == html
    other = write_report(run_directory, tmp_path / "new" / "page.html")
    assert other == tmp_path / "new" / "page.html"
    assert other.read_text(encoding="utf-8") == html


def test_a_copy_of_the_run_elsewhere_gives_the_same_bytes(run_directory: Path, html: str, tmp_path: Path) -> None:
    copy = shutil.copytree(run_directory, tmp_path / "copy")
    assert write_report(copy).read_bytes() == html.encode()


@pytest.mark.parametrize("fixture", ["page", "partial"])
def test_ids_are_unique_and_every_link_leads_somewhere(fixture: str, request: pytest.FixtureRequest) -> None:
    page: Page = request.getfixturevalue(fixture)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert [name for name, times in Counter(ids).items() if times > 1] == []
    targets = {str(attributes["href"]) for attributes in page.with_tag("a")}
    assert {f"#stage-{name}" for name in fake_run.CHAIN} <= targets
    assert {target for target in targets if target[1:] not in ids} == set()


@pytest.mark.parametrize("fixture", ["page", "partial"])
def test_nothing_is_loaded_from_anywhere(fixture: str, request: pytest.FixtureRequest) -> None:
    page: Page = request.getfixturevalue(fixture)
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form", "image", "use")
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "style", "xlink:href")}
    style = next(data for tag, data in page.texts if tag == "style")
    assert not re.search(r"url\(|@import|https?:", style)


def test_the_policy_allows_this_style_and_this_script_alone(page: Page) -> None:
    policy = next(
        found["content"] for found in page.with_tag("meta") if found.get("http-equiv") == "Content-Security-Policy"
    )
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (content,) = (data for name, data in page.texts if name == tag)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in str(policy)
    assert str(policy).startswith("default-src 'none';")
    assert "unsafe" not in str(policy)


def test_hostile_text_stays_text(page: Page, html: str) -> None:
    # In the prompt and an output of two of six samples, an example row and a dropped document.
    texts = [data.strip() for tag, data in page.texts if tag == "div"]
    assert texts.count(fake_run.HOSTILE) == 4
    assert len(page.with_tag("script")) == 1
    assert "<img" not in html
    assert "<b>bold" not in html


def test_control_characters_are_shown_and_lone_surrogates_replaced(page: Page) -> None:
    assert "urlurlurlurl\u2400\u241b[31m" in page.text
    assert "a lone surrogate \ufffd here" in page.text


def test_long_outputs_are_cut_and_say_so(page: Page) -> None:
    assert "x" * 700 + " … 3,300 more characters" in page.text
    assert "x" * 701 not in page.text


def test_every_stage_every_figure_and_every_count_is_there(page: Page) -> None:
    for name, kind in ((name, kind) for name, (kind, _) in fake_run.CHAIN.items()):
        assert name in page.text
        assert kind in page.text
    for _, _, _, value, *_ in [*fake_run.RESULTS, *fake_run.BASELINES]:
        assert f"{value:g}".replace("-", "−") in page.text
    for expected in (
        "1.331 – 1.353", "−2.55 – −2.27", "16 stages, all complete", "7 models trained", "9 min 49 s", "7.75 M",
        "93.9% 8,455", "Every column and row adds up", "bits per byte ↓ lower is better", "8,010", "gzip -9", "43.6%",
        "exact match ↑ higher is better", "majority class", "95% bootstrap", "internet 700", "PSF-2.0", "2025-06-15",
        "llmkit run --config runs/quickstart/run.yaml", "llmkit chat --model runs/quickstart/grpo", "5,475,584",
        "the first 6 of 12 samples", "Energy was not measured", "answer 2 of step 600", "reward 0.7500",
        "2.35 reference", "questions/module", "sft has a causal-lm head", "bits_per_byte|test|<v1>",
        "pretrain reaches 1.342 bits per byte, against 2.611 of gzip -9",
    ):  # fmt: skip
        assert expected in page.text, expected


def test_the_best_of_each_row_is_marked(page: Page) -> None:
    cells = [attributes for attributes in page.with_tag("td") if "best" in str(attributes.get("class"))]
    # Five rows and that of a part compare models; a lone classifier is the best of nothing.
    assert len(cells) == 6
    assert len(re.findall(r"\d best\b", page.text)) == 6


def test_charts_have_names_data_and_ticks(page: Page) -> None:
    charts = [attributes for attributes in page.with_tag("svg") if "data-chart" in attributes]
    # Loss, learning rate, gradient norm, speed and waiting in seven stages; accuracy in three; five more in GRPO.
    assert len(charts) == 7 * 5 + 3 + 5
    for attributes in charts:
        data = json.loads(str(attributes["data-chart"]))
        assert all(data["x"][0] <= step <= data["x"][1] for line in data["lines"] for step, _ in line["points"])
        assert attributes["role"] == "img"
        assert attributes["aria-label"]
    loss = next(found for found in charts if str(found["aria-label"]).startswith("Loss of pretrain by step, 5 to 800."))
    data = json.loads(str(loss["data-chart"]))
    assert [line["name"] for line in data["lines"]] == ["training", "validation"]
    assert [len(line["points"]) for line in data["lines"]] == [160, 10]


def test_tables_have_scopes_and_pictures_have_names(page: Page) -> None:
    assert all(attributes.get("scope") in ("col", "row", "rowgroup") for attributes in page.with_tag("th"))
    for attributes in page.with_tag("svg"):
        named = {"aria-label", "aria-hidden"} & set(attributes)
        assert named or attributes.get("class") in ("tick", "lines")
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_a_partial_run_says_what_is_missing(partial: Page) -> None:
    for expected in (
        "16 stages, 3 complete, 1 interrupted, 12 missing", "There are no results yet.", "There are no samples.",
        "No model is finished yet.", "The work was stopped, or is still going on",
    ):  # fmt: skip
        assert expected in partial.text
    assert any("Loss of pretrain" in str(found.get("aria-label")) for found in partial.with_tag("svg"))


def test_a_run_in_which_nothing_has_happened_gives_a_page(tmp_path: Path) -> None:
    page = Page(render(gather(fake_run.write_run(tmp_path, []))))
    assert "16 stages, all missing." in page.text


def test_whiskers_share_one_scale() -> None:
    scores = {
        "a": Score(2.0, 1.0, 3.0, 5, "", "best"),
        "b": Score(4.0, 3.0, 5.0, 5, ""),
        "c": Score(5.0, None, None, 5, ""),
    }
    found = whiskers(Row("t", "m", "lower", scores, {}), ["a", "b", "c"])
    assert [(one.style, one.low, one.value, one.high) for one in found] == [
        ("best", 0, 25, 50), ("plain", 50, 75, 100), ("plain", 100, 100, 100),
    ]  # fmt: skip


def test_text_and_marks_stand_out_in_light_and_dark() -> None:
    """WCAG 2.2: text 4.5 to 1 (AA), marks that carry meaning 3 to 1, on both backgrounds."""
    style = (Path(__file__).parents[2] / "llmkit" / "report" / "templates" / "style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        colors = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6});", block))
        for ground in ("page", "surface"):
            for name in ("ink", "muted", "accent"):
                assert contrast(colors[name], colors[ground]) >= 4.5, (name, ground)
            for name in ("c0", "c1", "c2", "c3", "c4", "c5", "c6", "warning", "error"):
                assert contrast(colors[name], colors[ground]) >= 3, (name, ground)


def contrast(one: str, other: str) -> float:
    def luminance(color: str) -> float:
        channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
