from __future__ import annotations

import ftfy
import pytest
from ftfy.badness import MOJIBAKE_CATEGORIES, badness, is_bad
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.cleaning.config import MojibakeConfig, UnicodeConfig
from llmkit.data.cleaning.mojibake import Mojibake
from llmkit.data.cleaning.unicode import Unicode
from llmkit.store.documents import Document

STEP = Mojibake(MojibakeConfig())
ENCODING_ALONE = ftfy.TextFixerConfig(
    unescape_html=False, remove_terminal_escapes=False, fix_latin_ligatures=False, fix_character_width=False,
    uncurl_quotes=False, fix_line_breaks=False, fix_surrogates=False, remove_control_chars=False, normalization=None,
    explain=False,
)  # fmt: skip
SENTENCES = [
    "Die Straße führt übers Gebirge, „schön“, sagte er — und ging.",
    "L’été à la fête : « déjà », s’écria-t-il, cœur léger…",
    "Žluťoučký kůň úpěl ďábelské ódy.",
    "Дорога ведёт через горы — «красиво», сказал он.",
    "Ο δρόμος περνά από τα βουνά, «ωραία».",
    "هذا طريق طويل عبر الجبال",
    "道路は山を越えて続いている。",
    "Plain ASCII, nothing to see: 100% <b>&amp;</b>",
    "Prices: 3 € or £4 – 5½ °C ± 1 µm",
]
# What stands for a character of mojibake in a pattern of characters: ftfy's categories are parts of such patterns.
STRANGE = [
    chr(code)
    for code in range(0x80, 0x2600)
    if any(is_bad(f"{before}{chr(code)}{after}") for before in ("Ã", "ã", "В", "€") for after in ("", "©", "В"))
]


@pytest.mark.parametrize("text", SENTENCES)
def test_texts_that_are_right_stay_as_they_are(text: str) -> None:
    document = Document("", text, "s", "p")
    assert STEP.apply([document]) == [document]
    assert STEP.apply([document])[0] is document


@pytest.mark.parametrize("encoding", ["latin-1", "sloppy-windows-1252", "macroman", "sloppy-windows-1250"])
@pytest.mark.parametrize("text", SENTENCES)
def test_mends_what_ftfy_mends(text: str, encoding: str) -> None:
    wrong = text.encode().decode(encoding, "replace")
    lines = f"first\n{wrong}\n\nsecond “line”\n{text}"
    assert STEP.mend(lines) == ftfy.fix_text(lines, ENCODING_ALONE)


def test_some_sentences_are_read_again_as_they_were() -> None:
    for text in SENTENCES:
        assert STEP.mend(text.encode().decode("latin-1")) == text
    assert STEP.mend("schÃ¶n\nschön\nitâ€™s") == "schön\nschön\nit’s"


@settings(max_examples=500)
@given(st.lists(st.sampled_from([*STRANGE, *"aZ .,\n", *"ВГРСвЂΒΓΞΟβāœŒÃÂ×à√≈‚Ä", *"éüß中ж"]), max_size=8))
def test_the_cheap_test_misses_nothing(characters: list[str]) -> None:
    text = "".join(characters)
    assert STEP.mend(text) == ftfy.fix_text(text, ENCODING_ALONE)


def test_the_cheap_test_knows_all_of_ftfys_categories() -> None:
    assert len(STRANGE) > 250
    assert set(MOJIBAKE_CATEGORIES) == {
        "common", "c1", "bad", "law", "currency", "start_punctuation", "end_punctuation", "numeric", "kaomoji",
        "upper_accented", "lower_accented", "upper_common", "lower_common", "box",
    }  # fmt: skip


def test_min_signs_is_what_ftfy_counts() -> None:
    once, thrice = "schÃ¶n", "schÃ¶n, Ã¼ber, itâ€™s"
    assert (badness(once), badness(thrice)) == (1, 3)
    careful = Mojibake(MojibakeConfig(min_signs=3))
    assert (careful.mend(once), careful.mend(thrice)) == (once, "schön, über, it’s")


def test_characters_that_are_needed_are_still_there_before_the_unicode_step() -> None:
    # The second bytes of í and à are a soft hyphen and a no-break space, that of Ð a control character.
    wrong = "aquÃ\xad, voilÃ\xa0, Ð\x90Ð\x91"
    (mended,) = STEP.apply([Document("", wrong, "s", "p", metadata={"k": "v"})])
    assert mended == Document("", "aquí, voilà, АБ", "s", "p", metadata={"k": "v"})
    (late,) = Unicode(UnicodeConfig()).apply([Document("", wrong, "s", "p")])
    assert isinstance(late, Document)
    assert STEP.mend(late.text) != "aquí, voilà, АБ"
