"""Settings of the step `personal_data`. No heavy imports."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llmkit.config.base import Config

Action = Literal["keep", "mask", "replace", "drop"]
KINDS = ("secret", "email", "iban", "card", "identity", "ip", "phone")
"""The kinds that llmkit finds. Where two kinds claim the same characters, the earlier one gets them."""


class OtherKind(Config):
    """A kind of personal data that llmkit does not know, found by a function of yours."""

    kind: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name of the kind, for masks and reports."""
    find: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$")
    """The function, as `module:function`. It gets a text and gives pairs of begin and end, in characters. Without it,
    the entry point called like the kind in the group `llmkit.personal_data` of an installed package."""
    action: Action = "mask"
    """What becomes of it."""


class PersonalDataConfig(Config):
    """What becomes of each kind of personal data: `keep` (not looked for), `mask`, `replace` (by something of the same
    form that belongs to nobody; equal values get equal replacements), or `drop` (the whole document)."""

    email: Action = "mask"
    """E-mail addresses; those at `example.com` and at other reserved names are nobody's, and stay."""
    phone: Action = "mask"
    """Phone numbers that are in use: with `+`, or as they are written inside of `regions`."""
    ip: Action = "mask"
    """Public IP addresses, version 4 and 6; private, local and documentation addresses stay."""
    card: Action = "mask"
    """Numbers of payment cards (issuer, length and Luhn's check digit fit)."""
    iban: Action = "mask"
    """International bank account numbers (country, length and check digits fit)."""
    identity: Action = "mask"
    """National identity, tax and social security numbers (form, check digits, and, where these alone say little, the
    number's name before it)."""
    secret: Action = "mask"
    """Keys, tokens, private keys and passwords: known forms, and values of high entropy that are called so."""
    others: list[OtherKind] = Field(default=[])
    """Further kinds."""
    regions: list[Annotated[str, Field(pattern=r"^[A-Z]{2}$")]] = Field(default=["US", "GB"])
    """Countries (ISO 3166) whose phone numbers are found when written without `+`."""
    mask: str = Field(default="[{kind}]", min_length=1)
    """What stands in place of what was masked; `{kind}` is the kind's name."""
    seed: int = Field(default=0, ge=0, lt=1 << 64)
    """What replacements depend on beside the value: the same seed, kinds and regions give the same replacements in
    every corpus. Whoever knows the seed can try values, so a corpus given to others deserves one that is not known."""

    @model_validator(mode="after")
    def _named_apart(self) -> PersonalDataConfig:
        names = [*KINDS, *(other.kind for other in self.others)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise PydanticCustomError("kinds", "there is a kind `{kind}` already", {"kind": twice})
        return self

    def actions(self) -> dict[str, Action]:
        """What becomes of each kind that is looked for, in the order in which they claim characters."""
        named: dict[str, Action] = {kind: getattr(self, kind) for kind in KINDS}
        named.update({other.kind: other.action for other in self.others})
        return {kind: action for kind, action in named.items() if action != "keep"}
