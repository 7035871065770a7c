"""What becomes of a document with personal data, from the settings to the written corpus."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import phonenumbers
import pyarrow.parquet as pq
import pytest

from llmkit.data import stage
from llmkit.data.cleaning.base import Dropped
from llmkit.data.cleaning.config import CleaningConfig
from llmkit.data.cleaning.pipeline import steps
from llmkit.data.config import DataConfig
from llmkit.data.personal.base import Draw
from llmkit.data.personal.config import KINDS, PersonalDataConfig
from llmkit.data.personal.payment import luhn
from llmkit.data.personal.step import PersonalData
from llmkit.errors import ConfigError, DataError
from llmkit.store.documents import Document
from llmkit.store.stage import Context

VISA = "4111 1111 1111 1111"


def document(text: str) -> Document:
    return Document("", text, "s", "p", metadata={"title": "t"})


def apply(text: str, **config: Any) -> Document | Dropped:
    (verdict,) = PersonalData(PersonalDataConfig.model_validate(config)).apply([document(text)])
    return verdict


def replaced(text: str, **config: Any) -> str:
    verdict = apply(text, **dict.fromkeys(KINDS, "replace"), **config)
    assert isinstance(verdict, Document)
    return verdict.text


def test_masks_stand_in_the_place_and_metadata_counts() -> None:
    verdict = apply(f"Ask bob@acme.de or eve@acme.de, card {VISA}.")
    assert isinstance(verdict, Document)
    assert verdict.text == "Ask [email] or [email], card [card]."
    assert verdict.metadata == {"title": "t", "personal_data": "card 1, email 2"}
    other = apply("Ask bob@acme.de.", mask="<<{kind}|{kind}>>")
    assert isinstance(other, Document)
    assert other.text == "Ask <<email|email>>."


def test_a_document_without_any_is_the_same_object() -> None:
    given = document("Nothing to see on 2024-01-31.")
    assert PersonalData(PersonalDataConfig()).apply([given])[0] is given


def test_a_kind_that_is_kept_is_not_looked_for() -> None:
    text = f"bob@acme.de {VISA}"
    verdict = apply(text, card="keep")
    assert isinstance(verdict, Document)
    assert verdict.text == f"[email] {VISA}"


def test_dropping_says_which_kind_and_where_and_not_what() -> None:
    verdict = apply(f"Ask bob@acme.de, card {VISA}.", card="drop")
    assert verdict == Dropped("card", "at character 22")


def test_equal_values_get_equal_replacements_however_they_are_written() -> None:
    texts = [replaced(f"pay by {card}.") for card in (VISA, VISA.replace(" ", "-"), VISA.replace(" ", ""))]
    assert len({re.sub(r"\D", "", text) for text in texts}) == 1
    assert re.fullmatch(r"pay by \d{4} \d{4} \d{4} \d{4}\.", texts[0])
    assert replaced("BOB@acme.de") == replaced("bob@acme.de") != replaced("bob@acme.com")
    assert replaced("bob@acme.de", seed=1) != replaced("bob@acme.de", seed=2)


def test_replacements_belong_to_nobody() -> None:
    assert not luhn(re.sub(r"\D", "", replaced(f"card {VISA}")))
    assert re.fullmatch(r"[a-z]+\.[a-z]+@example\.(com|org|net)", replaced("bob@acme.de"))
    assert re.fullmatch(r"from 10\.\d+\.\d+\.\d+ here", replaced("from 8.8.8.8 here"))
    assert re.fullmatch(r"dns 2001:db8:[0-9a-f:]+", replaced("dns 2001:4860:4860::8888"))
    account = replaced("IBAN GB82WEST12345698765432")
    assert re.fullmatch(r"IBAN GB00[A-Z]{4}\d{14}", account)
    key = replaced("key AKIAQ3EGRIVQ7XZ5B2MN.")
    assert re.fullmatch(r"key AKIA[A-Z0-9]{9}EXAMPLE\.", key)


@pytest.mark.parametrize("number", ["+33 6 52 51 03 42", "+49 30 901820", "+86 138 1234 5678", "+39 06 6982"])
def test_a_phone_number_is_replaced_also_where_nearly_every_number_is_assigned(number: str) -> None:
    """33 and any nine digits is a number in Germany, which once kept the drawing of another going for ever."""
    assert phonenumbers.is_valid_number(phonenumbers.parse(number))
    text = replaced(f"dial {number}", regions=["US", "GB", "DE", "FR"]).removeprefix("dial ")
    assert re.sub(r"\d", "0", text) == re.sub(r"\d", "0", number)
    assert text.split(maxsplit=1)[0] == number.split(maxsplit=1)[0]
    assert not phonenumbers.is_valid_number(phonenumbers.parse(text))


def test_draws_are_a_keyed_hash_of_the_value() -> None:
    digest = hashlib.blake2b(
        b"card\x00" + b"123", key=(7).to_bytes(8, "little"), salt=bytes(16), digest_size=64
    ).digest()
    number = int.from_bytes(digest, "little")
    draw = Draw(7, "card", "123")
    assert [draw.below(10), draw.below(26)] == [number % 10, number // 10 % 26]
    assert re.fullmatch(r"[A-Z][a-z]\d-é\d", Draw(7, "card", "123").like("Ab1-é2"))


def find_case_numbers(text: str) -> list[tuple[int, int]]:
    """A plug-in: case numbers."""
    return [match.span() for match in re.finditer(r"CASE-\d+", text)]


def find_nonsense(text: str) -> list[tuple[int, int]]:
    """A plug-in that is wrong."""
    return [(0, len(text) + 1)]


def test_a_kind_of_ones_own() -> None:
    other = {"kind": "case", "find": f"{__name__}:find_case_numbers"}
    verdict = apply("About CASE-123 and bob@acme.de.", others=[other])
    assert isinstance(verdict, Document)
    assert verdict.text == "About [case] and [email]."
    assert apply("About CASE-123.", others=[{**other, "action": "drop"}]) == Dropped("case", "at character 6")
    drawn = apply("About CASE-123.", others=[{**other, "action": "replace"}])
    assert isinstance(drawn, Document)
    assert re.fullmatch(r"About [A-Z]{4}-\d{3}\.", drawn.text)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"kind": "case", "find": f"{__name__}:absent"}, "cannot be imported"),
        ({"kind": "case", "find": "no_such_module:f"}, "cannot be imported"),
        ({"kind": "case"}, "no installed package has an entry point `case`"),
    ],
)
def test_a_function_that_is_not_there_is_named(other: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply("text", others=[other])


def test_a_function_that_finds_what_is_not_in_the_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"found \(0, 5\) in a text of 4 characters"):
        apply("text", others=[{"kind": "case", "find": f"{__name__}:find_nonsense"}])


def test_two_kinds_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="there is a kind `email` already"):
        PersonalDataConfig.model_validate({"others": [{"kind": "email", "find": "a:b"}]})


def test_it_is_off_unless_asked_for_and_runs_after_the_other_steps() -> None:
    assert "personal_data" not in [step.name for step in steps(CleaningConfig())]
    config = CleaningConfig.model_validate({"personal_data": {}, "c4_lines": {}})
    assert [step.name for step in steps(config)] == ["unicode", "c4_lines", "personal_data"]


def test_a_corpus_is_written_without_personal_data_and_adds_up(tmp_path: Path) -> None:
    texts = [f"Text number {n} has words enough to stay in the corpus." for n in range(6)]
    texts[1] += " Ask bob@acme.de."
    texts[2] += f" Card {VISA}."
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    config = DataConfig.model_validate(
        {
            "sources": [{"kind": "jsonl", "files": [str(tmp_path / "a.jsonl")], "name": "a"}],
            "cleaning": {"personal_data": {"card": "drop"}, "repetition": None},
            "splits": {"validation": 0, "test": 0},
            "executor": {"processes": 1},
        }
    )
    (tmp_path / "out").mkdir()
    stage.run(config, Context("corpus", 1, tmp_path / "out"))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    counts = report["total"]["steps"]["personal_data"]
    assert (counts["in"], counts["kept"], counts["changed"], counts["dropped"]) == (6, 5, 1, {"card": 1})
    kept = pq.read_table(tmp_path / "out" / "documents").column("text").to_pylist()
    assert kept == [texts[0], texts[1].replace("bob@acme.de", "[email]"), *texts[3:]]
    (gone,) = pq.read_table(tmp_path / "out" / "dropped").to_pylist()
    assert (gone["step"], gone["reason"], gone["text"]) == ("personal_data", "card", texts[2])
