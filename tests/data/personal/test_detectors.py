"""What is personal data and what only looks like it; numbers are published examples, or follow formulas written out."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from personal_support import script

from llmkit.data.personal.config import KINDS, PersonalDataConfig
from llmkit.data.personal.payment import luhn
from llmkit.data.personal.secrets import entropy
from llmkit.data.personal.step import PersonalData, detectors


@cache
def every_kind() -> PersonalData:
    return PersonalData(PersonalDataConfig(regions=["US", "GB", "DE"]))


@pytest.fixture(scope="module")
def step() -> PersonalData:
    return every_kind()


def found(step: PersonalData, text: str) -> list[tuple[str, str]]:
    (pieces,) = step.find([text])
    return [(piece.kind, text[piece.found.begin : piece.found.end]) for piece in pieces]


@pytest.mark.parametrize(
    ("kind", "text", "piece"),
    [
        ("email", "Write to jane.doe+news@mail.acme.co.uk.", "jane.doe+news@mail.acme.co.uk"),
        ("email", "<a href='mailto:bob@acme.de'>", "bob@acme.de"),
        ("email", "Grüße an müller@firma.de!", "müller@firma.de"),
        ("phone", "office: +1 650-253-0000", "+1 650-253-0000"),
        ("phone", "(650) 253-0000 is our number", "(650) 253-0000"),
        ("phone", "call 6502530000 now", "6502530000"),
        ("phone", "Ring 020 7031 3000 in London", "020 7031 3000"),
        ("ip", "from 8.8.8.8 port 22", "8.8.8.8"),
        ("ip", "dns 2001:4860:4860::8888 answers", "2001:4860:4860::8888"),
        # The test numbers of Visa, Mastercard, American Express and Diners Club.
        ("card", "pay by 4111 1111 1111 1111 today", "4111 1111 1111 1111"),
        ("card", "5555555555554444", "5555555555554444"),
        ("card", "amex 3782-822463-10005", "3782-822463-10005"),
        ("card", "Diners 30569309025904", "30569309025904"),
        # Examples of the registry of ISO 13616.
        ("iban", "IBAN DE89 3704 0044 0532 0130 00 please", "DE89 3704 0044 0532 0130 00"),
        ("iban", "GB82WEST12345698765432", "GB82WEST12345698765432"),
        ("iban", "NO9386011117947", "NO9386011117947"),
        ("identity", "SSN 536-90-4399", "536-90-4399"),
        ("identity", "NHS number: 943 476 5919", "943 476 5919"),
        ("identity", "hetu 131052-308T", "131052-308T"),
        ("identity", "CPF 390.533.447-05", "390.533.447-05"),
        ("identity", "DNI 54362315K", "54362315K"),
        ("secret", "key AKIAQ3EGRIVQ7XZ5B2MN!", "AKIAQ3EGRIVQ7XZ5B2MN"),
        ("secret", "token: ghp_16C7e42F292c6912E7710c838347Ae178B4a", "ghp_16C7e42F292c6912E7710c838347Ae178B4a"),
        ("secret", "postgres://bob:s3cretPw!@db.acme.de/x", "s3cretPw!"),
        ("secret", 'password = "Tr0ub4dor&3"', "Tr0ub4dor&3"),
    ],
)
def test_personal_data_is_found_exactly(step: PersonalData, kind: str, text: str, piece: str) -> None:
    assert found(step, text) == [(kind, piece)]


@pytest.mark.parametrize(
    "text",
    [
        "version 4.18.305.2 and v10.0.19041.1",
        "the address is 192.168.1.17, 10.20.30.40, 127.0.0.1 or 203.0.113.9",
        "fe80::1, ::1, 2001:db8::7 and std::vector",
        "on 2024-01-31 at 12:30:45, 31.12.1999 or 20240131",
        "d41d8cd98f00b204e9800998ecf8427e",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "123e4567-e89b-12d3-a456-426614174000",
        "ISBN 978-3-16-148410-0, 0-306-40615-2",
        "4111 1111 1111 1112 has a wrong check digit",
        "DE89 3704 0044 0532 0130 01 has too",
        "000-12-3456, 666-12-3456 and 987-65-4320 are no SSN",
        "jane@example.com, root@localhost, logo@2x.png, git@github.com:acme/x.git, react@18.2.0",
        "@app.route and @someone",
        "password: <your-password>, api_key = os.environ['KEY_1'], token=${TOKEN_1}",
        "key AKIAIOSFODNN7EXAMPLE",
        "doi:10.1000/182 arXiv:1910.10683 pp. 120-130",
        "3.14159265358979, 1,234,567.89, 1700000000",
        "52.5200, 13.4050",
    ],
)
def test_what_looks_like_it_stays(step: PersonalData, text: str) -> None:
    assert found(step, text) == []


def test_an_address_inside_a_secret_belongs_to_the_secret(step: PersonalData) -> None:
    body = "\n".join(f"{n}bob@acme.de5555555555554444abcdef".replace("@", "+") for n in range(4))
    block = f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----"
    block = block.replace(".", "/")
    assert found(step, f"see\n{block}\nend") == [("secret", block)]


@given(st.text(st.sampled_from("0123456789"), min_size=1, max_size=19))
def test_luhn_is_the_formula_of_the_standard(digits: str) -> None:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = int(digit) * (2 if place % 2 else 1)
        total += doubled // 10 + doubled % 10
    assert luhn(digits) == (total % 10 == 0)


def test_entropy_is_in_bits_a_character() -> None:
    assert entropy("abcdefgh") == 3
    assert entropy("aaaa") == 0
    assert entropy("aabb") == 1


def test_no_document_is_passed_over_by_a_hint() -> None:
    """The quick look must let every text through in which a detector finds something."""
    config = PersonalDataConfig(regions=script.REGIONS)
    step = PersonalData(config)
    texts = [line for document in script.labelled_documents(150, 11) for line in document.text.split("\n")]
    for kind, detector in detectors(config).items():
        by_hint = [{p.found for p in pieces if p.kind == kind} for pieces in step.find(texts)]
        for text, hinted in zip(texts, by_hint, strict=True):
            # Beside `_apart`, which other kinds have a say in: a text with something has at least been looked at.
            everything = set(detector.find(text))
            assert hinted <= everything
            if everything and not hinted:
                claimed = [(p.found.begin, p.found.end) for p in step.find([text])[0]]
                assert any(b < piece.end and piece.begin < e for piece in everything for b, e in claimed)


def test_precision_and_recall_on_labelled_documents() -> None:
    documents = script.labelled_documents(250, 5)
    step = PersonalData(PersonalDataConfig(regions=script.REGIONS))
    scores = script.score(step, documents)
    assert set(scores.planted) == set(KINDS)
    for kind in KINDS:
        assert scores.planted[kind] > 60
        assert scores.precision(kind) >= 0.97, (kind, scores.errors)
        assert scores.recall(kind) >= 0.97, (kind, scores.errors)
    assert script.found_again(documents) == []


@settings(deadline=None, max_examples=150)
@given(st.text(st.sampled_from("0123456789 .-+()@:/ab_\nDE\u00a0é中"), max_size=120))
def test_any_text_is_looked_through(text: str) -> None:
    (pieces,) = every_kind().find([text])
    spans: list[Any] = [(piece.found.begin, piece.found.end) for piece in pieces]
    assert all(0 <= begin < end <= len(text) for begin, end in spans)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
