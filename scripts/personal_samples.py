"""Generators of personal data with labels, and of what looks like it, for `verify_personal_data.py`.

A generator takes a source of random numbers and gives a sentence, in which `{}` stands for the value, and the value.
"""

from __future__ import annotations

import base64
import json
import random
import string
import uuid
from collections.abc import Callable, Mapping, Sequence

Maker = Callable[[random.Random], tuple[str, str]]
_NAMES = [
    "anna",
    "bob",
    "carla",
    "dmitri",
    "elena",
    "farid",
    "grace",
    "hiro",
    "ines",
    "jonas",
    "kofi",
    "lena",
    "mario",
    "nadia",
    "oskar",
    "priya",
    "quentin",
    "rosa",
]
_SURNAMES = [
    "smith",
    "garcia",
    "mueller",
    "tanaka",
    "okafor",
    "rossi",
    "dubois",
    "kowalski",
    "novak",
    "silva",
    "andersen",
    "patel",
    "chen",
    "wilson",
]
_HOSTS = [
    "acme",
    "brightfield",
    "northwind",
    "kestrel",
    "lumen",
    "orchard",
    "pinegrove",
    "quarry",
    "saltmarsh",
    "tidewater",
    "umbra",
    "vantage",
]
_ENDINGS = ["com", "org", "net", "co.uk", "de", "fr", "io", "edu", "gov.au", "com.br", "it", "nl", "tech"]
PROSE = [
    "The committee met on Tuesday to discuss the budget of the coming year.",
    "Rain fell over the valley for most of the afternoon, and the river rose.",
    "She opened the letter, read it twice, and put it back into the drawer.",
    "A compiler turns source code into instructions that a machine can run.",
    "In 1969 two people walked on the Moon; about 600 million watched.",
    "The recipe asks for 250 g of flour, 3 eggs and a pinch of salt.",
    "Most of the bridges were rebuilt after the flood of 1953.",
    "He scored 27 points and took 11 rebounds in 38 minutes.",
    "Light takes a little more than eight minutes from the Sun to the Earth.",
    "The museum is open from 10:00 to 17:30, on Thursdays until 20:00.",
]


def _digits(draw: random.Random, count: int) -> str:
    return "".join(draw.choice(string.digits) for _ in range(count))


def _of(draw: random.Random, letters: str, count: int) -> str:
    return "".join(draw.choice(letters) for _ in range(count))


_ALNUM = string.ascii_letters + string.digits
_HEX = "0123456789abcdef"


def _luhn_digit(digits: str) -> str:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = int(digit) * (2 if place % 2 == 0 else 1)
        total += doubled // 10 + doubled % 10
    return str(-total % 10)


# E-mail and IP


def email(draw: random.Random) -> tuple[str, str]:
    """An e-mail address: the words around it, and itself."""
    name, surname = draw.choice(_NAMES), draw.choice(_SURNAMES)
    local = draw.choice(
        [
            f"{name}.{surname}",
            f"{name[0]}{surname}",
            f"{name}_{surname}{draw.randint(1, 99)}",
            f"{surname}+list",
            f"{name.title()}.{surname.title()}",
            f"{name}-{surname}",
            f"jürgen.{surname}",
        ]
    )
    address = f"{local}@{draw.choice(['', 'mail.', ''])}{draw.choice(_HOSTS)}.{draw.choice(_ENDINGS)}"
    return draw.choice(
        [
            "Write to {} for details.",
            "Contact: {}",
            "From: Anna <{}>",
            "mailto:{}",
            "Questions go to {}.",
            '"email": "{}",',
            "({})",
            "联系我们{}谢谢",
        ]
    ), address


def ip_v4(draw: random.Random) -> tuple[str, str]:
    """An IPv4 address: the words around it, and itself."""
    while True:
        parts = [
            draw.choice([5, 8, 23, 31, 45, 62, 78, 91, 104, 130, 151, 185, 203, 212]),
            *(draw.randint(0, 255) for _ in range(3)),
        ]
        if max(parts) > 40 and parts[:3] != [203, 0, 113] and parts[3] not in (0, 255):
            break
    return draw.choice(
        [
            "Failed login from {} port 22.",
            "The server answers at {}:8080.",
            '{} - - "GET / HTTP/1.1" 200',
            "ping {}",
            "Edited by {} on Monday.",
            "http://{}/index.html",
            "client={};",
        ]
    ), ".".join(map(str, parts))


def ip_v6(draw: random.Random) -> tuple[str, str]:
    """An IPv6 address: the words around it, and itself."""
    head = draw.choice(["2a00:1450", "2a02:8108", "2001:4860", "2606:4700", "2403:6200"])
    groups = [_of(draw, _HEX, 4).lstrip("0") or "0" for _ in range(6)]
    address = draw.choice(
        [f"{head}:{':'.join(groups)}", f"{head}::{groups[0]}", f"{head}:{groups[0]}::{groups[1]}:{groups[2]}"]
    )
    return draw.choice(
        ["Failed login from {} port 22.", "http://[{}]/", "Edited by {} on Monday.", "{} answered."]
    ), address


# Phone numbers

_US_AREAS = [
    "212",
    "213",
    "312",
    "404",
    "415",
    "503",
    "512",
    "602",
    "617",
    "650",
    "702",
    "713",
    "206",
    "305",
    "718",
    "303",
]


def _us(draw: random.Random) -> tuple[str, str, str]:
    return draw.choice(_US_AREAS), f"{draw.randint(2, 9)}{draw.randint(2, 9)}{draw.randint(2, 9)}", _digits(draw, 4)


def phone_us(draw: random.Random) -> tuple[str, str]:
    """A phone number of the United States: the words around it, and itself."""
    area, office, line = _us(draw)
    number = draw.choice(
        [f"({area}) {office}-{line}", f"{area}-{office}-{line}", f"{area}.{office}.{line}", f"1-{area}-{office}-{line}"]
    )
    return draw.choice(
        ["Call {} before noon.", "Our office: {}", "Tel. {}", "Anna, {}, will help you.", "{} (ask for Bob)"]
    ), number


def phone_plus(draw: random.Random) -> tuple[str, str]:
    """A phone number with its country code: the words around it, and itself."""
    area, office, line = _us(draw)
    number = draw.choice(
        [
            f"+1 {area} {office} {line}",
            f"+1{area}{office}{line}",
            f"+1 ({area}) {office}-{line}",
            f"+44 20 7{_digits(draw, 3)} {_digits(draw, 4)}",
            f"+44 7{draw.choice('4578')}{_digits(draw, 2)} {_digits(draw, 6)}",
            f"+49 30 {draw.randint(2, 9)}{_digits(draw, 6)}",
            f"+49 171 {draw.randint(2, 9)}{_digits(draw, 6)}",
            f"+33 6 {draw.randint(40, 79)} {_digits(draw, 2)} {_digits(draw, 2)} {_digits(draw, 2)}",
            f"+91 98{_digits(draw, 3)} {_digits(draw, 5)}",
            f"+81 90-{draw.randint(1, 9)}{_digits(draw, 3)}-{_digits(draw, 4)}",
        ]
    )
    return draw.choice(["Call {} before noon.", "WhatsApp: {}", "Anna, {}, will help you.", "tel:{}", "({})"]), number


def phone_national(draw: random.Random) -> tuple[str, str]:
    """A phone number as it is written inside of its country: the words around it, and itself."""
    number = draw.choice(
        [
            f"020 7{_digits(draw, 3)} {_digits(draw, 4)}",
            f"077{_digits(draw, 2)} {_digits(draw, 6)}",
            f"06 {draw.randint(40, 79)} {_digits(draw, 2)} {_digits(draw, 2)} {_digits(draw, 2)}",
            f"030 {draw.randint(2, 9)}{_digits(draw, 6)}",
        ]
    )
    return draw.choice(["Call {} before noon.", "Phone: {}", "Telefon {}", "My number is {} now."]), number


def phone_bare(draw: random.Random) -> tuple[str, str]:
    """A phone number without punctuation, behind a word that says what it is: the words around it, and itself."""
    return draw.choice(["phone: {}", "Call me at {} tomorrow.", "mobile {}", "Fax: {}"]), "".join(_us(draw))


# Cards and accounts


def card(draw: random.Random) -> tuple[str, str]:
    """A card number: the words around it, and itself."""
    prefix, length = draw.choice(
        [
            ("4" + _digits(draw, 5), 16),
            (f"5{draw.randint(1, 5)}" + _digits(draw, 4), 16),
            ("2345" + _digits(draw, 2), 16),
            (draw.choice(["34", "37"]) + _digits(draw, 4), 15),
            ("6011" + _digits(draw, 2), 16),
            ("3530" + _digits(draw, 2), 16),
        ]
    )
    digits = prefix + _digits(draw, length - len(prefix) - 1)
    digits += _luhn_digit(digits)
    sizes = (4, 6, 5) if length == 15 else (4, 4, 4, 4)
    separator = draw.choice(["", " ", "-"])
    groups, at = [], 0
    for size in sizes:
        groups.append(digits[at : at + size])
        at += size
    return draw.choice(
        ["I paid with {} yesterday.", "Card number: {}", "cc={}", "Please charge {}, thank you.", "{} exp 12/27"]
    ), separator.join(groups)


_BANKS = {
    "DE": "18n",
    "GB": "4a14n",
    "FR": "23n",
    "ES": "20n",
    "NL": "4a10n",
    "AT": "16n",
    "BE": "12n",
    "PL": "24n",
    "CH": "17n",
}


def _bban(draw: random.Random, country: str) -> str:
    if country == "GB":
        return "NWBK" + _digits(draw, 14)
    if country == "NL":
        return "ABNA" + _digits(draw, 10)
    if country == "FR":
        number = _digits(draw, 21)
        key = 97 - (89 * int(number[:5]) + 15 * int(number[5:10]) + 3 * int(number[10:])) % 97
        return number + f"{key:02d}"
    if country == "ES":
        bank, account = _digits(draw, 8), _digits(draw, 10)
        weights = (1, 2, 4, 8, 5, 10, 9, 7, 3, 6)
        checks = [
            (11 - sum(int(d) * w for d, w in zip(number, weights, strict=True)) % 11)
            for number in ("00" + bank, account)
        ]
        return bank + "".join({10: "1", 11: "0"}.get(check, str(check)) for check in checks) + account
    if country == "BE":
        number = _digits(draw, 10)
        return number + f"{int(number) % 97 or 97:02d}"
    return _digits(draw, {"DE": 18, "AT": 16, "CH": 17}[country])


def _iban(draw: random.Random) -> str:
    country = draw.choice(["DE", "GB", "FR", "ES", "NL", "AT", "BE", "CH"])
    bban = _bban(draw, country)
    number = int("".join(str(int(character, 36)) for character in bban + country + "00"))
    return f"{country}{98 - number % 97:02d}{bban}"


def _in_fours(text: str) -> str:
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))


def iban(draw: random.Random) -> tuple[str, str]:
    """An IBAN: the words around it, and itself."""
    number = _iban(draw)
    number = draw.choice([number, _in_fours(number)])
    return draw.choice(
        ["Please transfer to {}.", "IBAN: {}", "Account {}, bank in the header", "({})", "{} is ours."]
    ), number


# National numbers


def _birthday(draw: random.Random) -> tuple[int, int, int]:
    return draw.randint(1940, 1999), draw.randint(1, 12), draw.randint(1, 28)


def us_ssn(draw: random.Random) -> tuple[str, str]:
    """A social security number of the United States: the words around it, and itself."""
    area = draw.choice([number for number in range(1, 900) if number not in (666, 78, 457, 219)])
    number = f"{area:03d}-{draw.randint(1, 99):02d}-{draw.randint(1, 9999):04d}"
    return draw.choice(["SSN {}", "My social security number is {}.", "Applicant: Anna Smith, {}, Boston"]), number


def fr_nir(draw: random.Random) -> tuple[str, str]:
    """A French NIR: the words around it, and itself."""
    year, month, _ = _birthday(draw)
    body = f"{draw.choice('12')}{year % 100:02d}{month:02d}{draw.randint(21, 95):02d}"
    body += f"{draw.randint(1, 400):03d}{draw.randint(1, 999):03d}"
    key = 97 - int(body) % 97
    number = f"{body[0]} {body[1:3]} {body[3:5]} {body[5:7]} {body[7:10]} {body[10:13]} {key:02d}"
    return draw.choice(["Numéro de sécurité sociale : {}", "Anna Dubois, {}, Lyon"]), number


def es_dni(draw: random.Random) -> tuple[str, str]:
    """A Spanish DNI: the words around it, and itself."""
    number = draw.randint(10_000_000, 99_999_999)
    return draw.choice(["con DNI {}", "NIF: {}"]), f"{number}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}"


_ODD = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        [
            1,
            0,
            5,
            7,
            9,
            13,
            15,
            17,
            19,
            21,
            1,
            0,
            5,
            7,
            9,
            13,
            15,
            17,
            19,
            21,
            2,
            4,
            18,
            20,
            11,
            3,
            6,
            8,
            12,
            14,
            16,
            10,
            22,
            25,
            24,
            23,
        ],
        strict=True,
    )
)


def it_cf(draw: random.Random) -> tuple[str, str]:
    """An Italian codice fiscale: the words around it, and itself."""
    year, month, day = _birthday(draw)
    body = f"{_of(draw, 'BCDFGLMNPRST', 6)}{year % 100:02d}{'ABCDEHLMPRST'[month - 1]}{day:02d}"
    body += f"{draw.choice('ABCDEFGHIL')}{draw.randint(1, 999):03d}"
    total = sum(
        _ODD[letter] if place % 2 == 0 else int(letter, 36) - (10 if letter.isalpha() else 0)
        for place, letter in enumerate(body)
    )
    return draw.choice(["Codice fiscale {}", "Mario Rossi ({})"]), body + string.ascii_uppercase[total % 26]


def pl_pesel(draw: random.Random) -> tuple[str, str]:
    """A Polish PESEL: the words around it, and itself."""
    year, month, day = _birthday(draw)
    body = f"{year % 100:02d}{month:02d}{day:02d}{_digits(draw, 4)}"
    total = sum(int(digit) * weight for digit, weight in zip(body, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3), strict=True))
    return draw.choice(["PESEL {}", "PESEL: {}."]), body + str(-total % 10)


def fi_hetu(draw: random.Random) -> tuple[str, str]:
    """A Finnish henkilötunnus: the words around it, and itself."""
    year, month, day = _birthday(draw)
    date, serial = f"{day:02d}{month:02d}{year % 100:02d}", f"{draw.randint(2, 899):03d}"
    return draw.choice(
        ["Henkilötunnus {}", "Lena ({})"]
    ), f"{date}-{serial}{'0123456789ABCDEFHJKLMNPRSTUVWXY'[int(date + serial) % 31]}"


def br_cpf(draw: random.Random) -> tuple[str, str]:
    """A Brazilian CPF: the words around it, and itself."""
    body = _digits(draw, 9)
    while len(set(body)) == 1:
        body = _digits(draw, 9)
    for _ in range(2):
        total = sum(int(digit) * weight for digit, weight in zip(reversed(body), range(2, 12), strict=False))
        body += str((11 - total % 11) % 11 % 10)
    return draw.choice(["CPF: {}", "João Silva, {}, São Paulo"]), f"{body[:3]}.{body[3:6]}.{body[6:9]}-{body[9:]}"


def cn_ric(draw: random.Random) -> tuple[str, str]:
    """A Chinese resident identity number: the words around it, and itself."""
    year, month, day = _birthday(draw)
    body = f"{draw.choice(['110101', '310104', '440305', '330106'])}{year}{month:02d}{day:02d}{_digits(draw, 3)}"
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(body))
    return draw.choice(["身份证号{}。", "ID {}"]), body + "10X98765432"[total % 11]


def gb_nhs(draw: random.Random) -> tuple[str, str]:
    """A British NHS number: the words around it, and itself."""
    while True:
        body = _digits(draw, 9)
        check = 11 - sum(int(digit) * weight for digit, weight in zip(body, range(10, 1, -1), strict=True)) % 11
        if check != 10:
            break
    number = body + str(check % 11)
    return "NHS number {}", f"{number[:3]} {number[3:6]} {number[6:]}"


def nl_bsn(draw: random.Random) -> tuple[str, str]:
    """A Dutch BSN: the words around it, and itself."""
    while True:
        body = str(draw.randint(10_000_000, 99_999_999))
        check = sum(int(digit) * weight for digit, weight in zip(body, range(9, 1, -1), strict=True)) % 11
        if check != 10:
            return draw.choice(["BSN {}", "burgerservicenummer: {}"]), body + str(check)


# Keys and passwords


def known_key(draw: random.Random) -> tuple[str, str]:
    """A key in a form that its issuer documents: the words around it, and itself."""
    key = draw.choice(
        [
            "AKIA" + _of(draw, string.ascii_uppercase + "234567", 16),
            "ghp_" + _of(draw, _ALNUM, 36),
            "glpat-" + _of(draw, _ALNUM, 20),
            f"xoxb-{_digits(draw, 12)}-{_digits(draw, 12)}-{_of(draw, _ALNUM, 24)}",
            "sk_live_" + _of(draw, _ALNUM, 24),
            "AIza" + _of(draw, _ALNUM, 35),
            "sk-proj-" + _of(draw, _ALNUM, 48),
            "npm_" + _of(draw, _ALNUM, 36),
            "SK" + _of(draw, _HEX, 32),
            f"{_digits(draw, 9)}:AA{_of(draw, _ALNUM, 33)}",
            "dapi" + _of(draw, _HEX, 32),
        ]
    )
    return draw.choice(
        ["export KEY={}", "I use {} here.", 'client = Client("{}")', "curl -H 'Authorization: Bearer {}'"]
    ), key


def jwt(draw: random.Random) -> tuple[str, str]:
    """A JSON web token: the words around it, and itself."""
    parts = [
        json.dumps({"alg": "HS256", "typ": "JWT"}),
        json.dumps({"sub": _digits(draw, 10), "iat": draw.randint(10**9, 2 * 10**9)}),
    ]
    coded = [base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts]
    return "Authorization: Bearer {}", ".".join([*coded, _of(draw, _ALNUM, 43)])


def private_key(draw: random.Random) -> tuple[str, str]:
    """A private key in PEM: the words around it, and itself."""
    lines = "\n".join(_of(draw, _ALNUM + "+/", 64) for _ in range(6))
    name = draw.choice(["RSA PRIVATE KEY", "PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY"])
    return "The file holds\n{}\n", f"-----BEGIN {name}-----\n{lines}\n-----END {name}-----"


def password(draw: random.Random) -> tuple[str, str]:
    """A password behind a word that says what it is: the words around it, and itself."""
    value = draw.choice(
        [
            draw.choice(_SURNAMES).title() + _digits(draw, 3) + draw.choice("!#$%"),
            _of(draw, _ALNUM, 9) + "7a",
            draw.choice(_NAMES) + _digits(draw, 4),
        ]
    )
    return draw.choice(
        [
            'password = "{}"',
            "Password: {}",
            "pwd={}",
            "DB_PASSWORD={}",
            "the password is {} for now",
            "'passwd': '{}',",
            "postgres://app:{}@db.acme.com/main",
        ]
    ), value


def named_key(draw: random.Random) -> tuple[str, str]:
    """A random key behind a name that says what it is: the words around it, and itself."""
    value = _of(draw, _ALNUM, 31) + draw.choice(string.digits)
    return draw.choice(
        ['api_key = "{}"', "ACCESS_TOKEN={}", "client_secret: {}", '"secret": "{}",', "aws_secret_access_key = {}"]
    ), value


PLANTED: Mapping[str, Sequence[Maker]] = {
    "email": [email],
    "ip": [ip_v4, ip_v4, ip_v6],
    "phone": [phone_us, phone_plus, phone_national, phone_bare],
    "card": [card],
    "iban": [iban],
    "identity": [us_ssn, us_ssn, fr_nir, es_dni, it_cf, pl_pesel, fi_hetu, br_cpf, cn_ric, gb_nhs, nl_bsn],
    "secret": [known_key, known_key, jwt, private_key, password, named_key],
}
"""By kind, what is planted; each generator is as likely as the others of its kind."""

# Look-alikes


def _wrong_luhn(draw: random.Random) -> str:
    digits = "4" + _digits(draw, 14)
    return digits + str((int(_luhn_digit(digits)) + draw.randint(1, 9)) % 10)


def _isbn13(draw: random.Random) -> str:
    body = "978" + _digits(draw, 9)
    check = -sum(int(digit) * (1, 3)[place % 2] for place, digit in enumerate(body)) % 10
    return f"{body[:3]}-{body[3]}-{body[4:7]}-{body[7:12]}-{check}"


def _isbn10(draw: random.Random) -> str:
    body = _digits(draw, 9)
    check = -sum(int(digit) * (10 - place) for place, digit in enumerate(body)) % 11
    return f"{body[0]}-{body[1:4]}-{body[4:]}-{'0123456789X'[check]}"


def _wrong_iban(draw: random.Random) -> str:
    number = _iban(draw)
    return (
        _in_fours(f"{number[:2]}{(int(number[2:4]) + draw.randint(1, 90)) % 97 + 2:02d}{number[4:]}")
        if number[2:4] != "02"
        else "DE00 1234 5678 9012 3456 78"
    )


def _table(draw: random.Random) -> str:
    return " ".join(str(draw.randint(100, 99_999)) for _ in range(7))


def _date(draw: random.Random) -> str:
    year, month, day = _birthday(draw)
    return draw.choice(
        [
            f"{year}-{month:02d}-{day:02d}",
            f"{day:02d}.{month:02d}.{year}",
            f"{month}/{day}/{year}",
            f"{year}{month:02d}{day:02d}",
            f"{year}-{month:02d}-{day:02d}T{draw.randint(0, 23):02d}:{draw.randint(0, 59):02d}:00Z",
        ]
    )


LOOKALIKES: Mapping[str, Maker] = {
    "version": lambda draw: (
        draw.choice(["Version {} fixes it.", "v{}", "pip install llmtool=={}", "Upgrade to release {} now."]),
        ".".join(str(draw.randint(0, 60)) for _ in range(4)),
    ),
    "browser": lambda draw: (
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/{} Safari/537.36",
        f"{draw.randint(80, 140)}.0.0.0",
    ),
    "section": lambda draw: ("See section {} below.", ".".join(str(draw.randint(1, 12)) for _ in range(4))),
    "date": lambda draw: (draw.choice(["On {} it rained.", "Updated: {}", "{} - release"]), _date(draw)),
    "time": lambda draw: (
        "The train leaves at {}.",
        f"{draw.randint(0, 23):02d}:{draw.randint(0, 59):02d}:{draw.randint(0, 59):02d}",
    ),
    "md5 or sha": lambda draw: (
        draw.choice(["sha256: {}", "commit {}", "{}  archive.tar.gz", "(md5 {})"]),
        _of(draw, _HEX, draw.choice([7, 32, 40, 64])),
    ),
    "uuid": lambda draw: ("Request {} failed.", str(uuid.UUID(int=draw.getrandbits(128)))),
    "isbn-13": lambda draw: ("ISBN {}", _isbn13(draw)),
    "isbn-10": lambda draw: ("ISBN {}", _isbn10(draw)),
    "barcode": lambda draw: ("EAN {}", "40" + _digits(draw, 11)),
    "issn or CAS": lambda draw: (
        draw.choice(["ISSN {}", "CAS {}"]),
        draw.choice(
            [
                f"{_digits(draw, 4)}-{_digits(draw, 4)}",
                f"{draw.randint(50, 9999)}-{_digits(draw, 2)}-{_digits(draw, 1)}",
            ]
        ),
    ),
    "doi": lambda draw: ("doi:{}", f"10.{_digits(draw, 4)}/{_digits(draw, 7)}.{_digits(draw, 7)}"),
    "arxiv": lambda draw: ("arXiv:{}", f"{_digits(draw, 4)}.{_digits(draw, 5)}"),
    "decimal": lambda draw: ("It converged to {} at last.", f"{draw.randint(0, 9)}.{_digits(draw, 16)}"),
    "coordinates": lambda draw: ("It lies at {}.", f"{draw.uniform(-90, 90):.6f}, {draw.uniform(-180, 180):.6f}"),
    "price": lambda draw: (
        "It costs ${} today.",
        f"{draw.randint(1, 999)},{_digits(draw, 3)},{_digits(draw, 3)}.{_digits(draw, 2)}",
    ),
    "epoch": lambda draw: ("ts={}", str(draw.randint(1_400_000_000_000, 1_800_000_000_000))),
    "order number": lambda draw: ("Order {} was shipped.", _digits(draw, draw.choice([8, 10, 12]))),
    "wrong card": lambda draw: ("Reference {} is quoted.", _wrong_luhn(draw)),
    "wrong IBAN": lambda draw: ("Account {}?", _wrong_iban(draw)),
    "never an SSN": lambda draw: (
        "Part {} is in stock.",
        f"{draw.choice(['000', '666', '912', '987'])}-{_digits(draw, 2)}-{_digits(draw, 4)}",
    ),
    "table": lambda draw: ("{}", _table(draw)),
    "years": lambda draw: ("Cups were won in {}.", " ".join(str(draw.randint(1930, 2024)) for _ in range(6))),
    "handle": lambda draw: ("Follow {} for more.", f"@{draw.choice(_NAMES)}_{draw.choice(_SURNAMES)}"),
    "decorator": lambda draw: ("    {}\n    def get(self): ...", f"@app.{draw.choice(['route', 'task', 'command'])}"),
    "package": lambda draw: (
        "npm install {}",
        f"{draw.choice(['lodash', 'react', '@angular/core'])}@{draw.randint(1, 20)}.{draw.randint(0, 9)}.2",
    ),
    "image": lambda draw: ("<img src='img/{}'>", f"{draw.choice(['logo', 'icon'])}@{draw.choice('23')}x.png"),
    "repository": lambda draw: ("git clone {}", f"git@github.com:{draw.choice(_HOSTS)}/{draw.choice(_NAMES)}.git"),
    "nobody's address": lambda draw: (
        "Write to {}.",
        f"{draw.choice(_NAMES)}@{draw.choice(['example.com', 'mail.example.org', 'host.local', 'test.invalid'])}",
    ),
    "private network": lambda draw: (
        "The printer is at {}.",
        draw.choice(
            [
                f"192.168.{draw.randint(0, 9)}.{draw.randint(1, 254)}",
                f"10.{draw.randint(0, 255)}.0.{draw.randint(1, 254)}",
                "127.0.0.1",
                "255.255.255.0",
                "0.0.0.0",
            ]
        ),
    ),
    "documentation network": lambda draw: (
        "For example {}.",
        draw.choice(
            [
                f"203.0.113.{draw.randint(1, 254)}",
                f"192.0.2.{draw.randint(1, 254)}",
                f"2001:db8::{_of(draw, _HEX, 3)}",
                "fe80::1",
                "::1",
            ]
        ),
    ),
    "hardware address": lambda draw: ("ether {} txqueuelen 1000", ":".join(_of(draw, _HEX, 2) for _ in range(6))),
    "scope": lambda draw: ("auto x = {}(3);", draw.choice(["std::vector", "ab::cd", "a2::b3::c4", "boost::asio::ip"])),
    "placeholder": lambda draw: (
        draw.choice(["password: {}", 'api_key = "{}"', "token={}"]),
        draw.choice(
            [
                "<your-password>",
                "YOUR_API_KEY_GOES_HERE_1",
                "${DB_PASSWORD}",
                "changeme123",
                "********",
                "os.environ['KEY_1']",
                "settings.api_key",
                "xxxxxxxxxxxx1234",
            ]
        ),
    ),
    "prose password": lambda draw: (
        "The password {} by mail.",
        draw.choice(["is sent", "was changed", "is required", "arrived"]),
    ),
    "example key": lambda draw: ("key {}", draw.choice(["AKIAIOSFODNN7EXAMPLE", "sk_test_EXAMPLEEXAMPLEEXAMPLE12"])),
    "slug": lambda draw: (
        "Read {} first.",
        draw.choice(["sk-learn-how-to-train-your-first-model", "pypi-publishing-a-package-guide", "glpat-is-a-prefix"]),
    ),
    "fraction of pages": lambda draw: ("pp. {}.", f"{draw.randint(100, 400)}-{draw.randint(401, 999)}"),
    "score": lambda draw: (
        "They won {} in the end.",
        f"{draw.randint(1, 7)}-{draw.randint(1, 7)}, {draw.randint(1, 7)}-{draw.randint(1, 7)}",
    ),
    "tracking": lambda draw: ("Parcel {} is on its way.", "1Z" + _of(draw, string.ascii_uppercase + string.digits, 16)),
    "plus": lambda draw: ("The temperature rose by {} degrees.", f"+{draw.randint(1, 40)}.{_digits(draw, 2)}"),
}
"""By name, what looks like personal data and is none."""
