"""Settings of cleaning: what is mended and what is dropped. No heavy imports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llmkit.config.base import Config, Facts, Finding, Input
from llmkit.data.cleaning.inputs import FilterWithInputs
from llmkit.data.cleaning.language_codes import LanguageCode
from llmkit.data.modelled.config import ClassifierConfig, PerplexityConfig, ToxicityConfig
from llmkit.data.personal.config import PersonalDataConfig

WordRules = Literal["english", "general"]
Fraction = Annotated[float, Field(ge=0, le=1)]
NGram = Annotated[int, Field(ge=1, le=50, strict=False)]
"""Words; not strict, since as a key of JSON it is a string."""


class MojibakeConfig(Config):
    """Mending of text that was decoded by the wrong encoding ("schÃ¶n" for "schön"), by ftfy; changes texts and drops
    none. Needs the extra `data`. ASCII, and lines without a sign of it, stay as they are."""

    min_signs: int = Field(default=1, ge=1)
    """Sequences that ftfy finds unlikely (`ftfy.badness`) in a line that is mended, at least."""


class UnicodeConfig(Config):
    """Unicode clean-up; changes texts and drops none."""

    normalization: Literal["NFC", "NFKC", "none"] = "NFC"
    """Normalization form. NFKC also replaces ligatures, full-width letters and superscripts by plain ones."""
    line_endings: bool = True
    """Turn every kind of line break into a newline."""
    control_characters: bool = True
    """Remove control characters other than tab and newline, and code points that are no characters."""
    zero_width: bool = True
    """Remove characters without width that carry no meaning (zero-width space, byte order mark, soft hyphen); joiners,
    which do, stay."""


class LengthConfig(Config):
    """Limits of a document's length, in characters, white space around it not counted."""

    min_characters: int = Field(default=20, ge=1)
    """Shorter documents are dropped."""
    max_characters: int = Field(default=2_000_000, ge=1)
    """Longer documents are dropped."""

    @model_validator(mode="after")
    def _in_order(self) -> LengthConfig:
        if self.min_characters > self.max_characters:
            raise PydanticCustomError("length", "min_characters is above max_characters: every document would go")
        return self


class RepetitionConfig(Config):
    """Limits of repetition inside a document."""

    max_duplicate_lines: float = Field(default=0.3, gt=0, le=1)
    """Largest fraction of characters in lines that came before."""
    max_top_ngram: float = Field(default=0.3, gt=0, le=1)
    """Largest fraction of characters that the most frequent n-gram of words may cover."""
    ngram: int = Field(default=3, ge=1, le=20)
    """Words in that n-gram."""
    min_characters: int = Field(default=200, ge=0)
    """Shorter documents are not looked at."""


BlockFiles = Annotated[list[Annotated[str, Field(min_length=1)]], Field(default=[])]
"""Files with an entry on each line, plain or compressed; empty lines and those that begin with `#` are left out."""


class UrlsConfig(FilterWithInputs):
    """Block lists of addresses, and words in them, after the URL filter of FineWeb (Penedo et al. 2024,
    arXiv:2406.17557, 3.2). A list is a file with an entry on each line, plain or compressed (`.gz`, ...). No list
    comes with llmkit."""

    url: str = Field(default="path", min_length=1)
    """Where a document's URL is: its `path`, or a name in its metadata."""
    without_url: Literal["keep", "drop"] = "keep"
    """What becomes of documents whose URL is not known, or does not begin with http:// or https://."""
    domains: BlockFiles
    """Lists of domains, each with all domains below it; `domains` of UT1, for example."""
    urls: BlockFiles
    """Lists of URLs, with or without scheme, each with what lies below it; `urls` of UT1, for example."""
    banned_words: BlockFiles
    """Lists of words of which none may be a word of the URL."""
    soft_banned_words: BlockFiles
    """Lists of words of which some may be words of the URL."""
    soft_word_threshold: int = Field(default=2, ge=1)
    """From how many different soft banned words on a document is dropped."""
    banned_subwords: BlockFiles
    """Lists of pieces of which none may be anywhere in the URL, of which letters and digits alone are looked at."""

    @model_validator(mode="after")
    def _names_a_list(self) -> UrlsConfig:
        if not any(self._lists().values()):
            raise PydanticCustomError("urls", "no list is named: nothing would be blocked")
        return self

    def _lists(self) -> dict[str, list[str]]:
        names = ("domains", "urls", "banned_words", "soft_banned_words", "banned_subwords")
        return {name: getattr(self, name) for name in names}

    def inputs(self, key: str) -> list[Input]:
        """The lists."""
        return [
            Input(f"{key}.{name}.{index}", file, ("file",))
            for name, files in self._lists().items()
            for index, file in enumerate(files)
        ]


class LanguageConfig(Config):
    """Limits of the language that is identified, by py3langid (needs the extra `data`). Documents whose source states
    no language get the identified one as theirs."""

    languages: list[LanguageCode] | None = Field(default=None, min_length=1)
    """Codes of the languages that are kept (ISO 639); null keeps all. What is identified counts, whatever the source
    states."""
    min_probability: Fraction = 0.5
    """Smallest probability of the language that is identified. A text without anything that tells languages apart has
    probability 0."""
    sample_characters: int = Field(default=2000, ge=100)
    """A longer text is judged by this many characters: half from its beginning, half from its middle."""


class C4LinesConfig(Config):
    """Removal of lines as for C4 (Raffel et al. 2020, arXiv:1910.10683, 2.2), with the defaults of datatrove."""

    end_marks: list[str] = Field(default=[".", "?", "!", '"', "'"])
    """A line that ends with none of these goes, and one that ends with three dots; [] keeps both."""
    min_words: int = Field(default=3, ge=0)
    """Lines of fewer words go; words are what white space separates."""
    max_word_characters: int = Field(default=1000, ge=1)
    """Lines with a longer word go."""
    javascript: bool = True
    """Remove lines with the word JavaScript, which mostly ask to switch it on."""
    phrases: list[str] = Field(
        default=["terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies"]
    )
    """Remove lines with one of these, without regard to case."""
    citations: bool = True
    """Take citation marks as Wikipedia has them ("[1]", "[edit]", "[citation needed]") out of lines."""


class GopherQualityConfig(Config):
    """Limits of Gopher's quality filter (Rae et al. 2021, arXiv:2112.11446, A.1), with the defaults of datatrove."""

    words: WordRules = "english"
    """Rules by which words are cut: spaCy's for English (a contraction is two words), or those that it has for any
    language."""
    min_words: int = Field(default=50, ge=0)
    """Fewest words that are not all symbols."""
    max_words: int = Field(default=100_000, ge=1)
    """Most words that are not all symbols."""
    min_mean_word_length: float = Field(default=3, ge=0)
    """Shortest mean length of these words, in characters."""
    max_mean_word_length: float = Field(default=10, gt=0)
    """Longest mean length of these words, in characters."""
    max_symbols_per_word: float = Field(default=0.1, ge=0)
    """Most hash signs a word, and most ellipses a word."""
    max_bullet_lines: float = Field(default=0.9, ge=0, le=1)
    """Largest fraction of lines that begin with a bullet or a hyphen."""
    max_ellipsis_lines: float = Field(default=0.3, ge=0, le=1)
    """Largest fraction of lines that end with an ellipsis."""
    min_alphabetic_words: float = Field(default=0.8, ge=0, le=1)
    """Smallest fraction of words, signs counted, that have a letter. Manuals and code, which are full of signs, need
    less."""
    min_stop_words: int = Field(default=2, ge=0)
    """How many different words of `stop_words` there must be at least."""
    stop_words: list[str] = Field(default=["the", "be", "to", "of", "and", "that", "have", "with"])
    """Words that hardly any text of the language is without; case counts."""


class GopherRepetitionConfig(Config):
    """Limits of Gopher's repetition filter (Rae et al. 2021, arXiv:2112.11446, table A1).

    A paragraph is what stands between empty lines. All limits are fractions, of paragraphs, of lines, or of the text's
    characters.
    """

    words: WordRules = "english"
    """Rules by which words are cut, as in `gopher_quality`."""
    max_duplicate_paragraphs: Fraction = 0.3
    """Most paragraphs that came before."""
    max_duplicate_paragraph_characters: Fraction = 0.2
    """Most characters in paragraphs that came before."""
    max_duplicate_lines: Fraction = 0.3
    """Most lines that came before."""
    max_duplicate_line_characters: Fraction = 0.2
    """Most characters in lines that came before."""
    max_top_ngrams: dict[NGram, Fraction] = Field(default={2: 0.2, 3: 0.18, 4: 0.16})
    """Most characters in the most frequent n-gram of words, by n."""
    max_duplicate_ngrams: dict[NGram, Fraction] = Field(default={5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10})
    """Most characters in n-grams of words that came before, by n."""


class C4Config(Config):
    """Limits for whole documents as for C4 (Raffel et al. 2020, arXiv:1910.10683, 2.2). The list of bad words is left
    to `toxicity`."""

    words: WordRules = "english"
    """Rules by which words are cut, as in `gopher_quality`."""
    min_sentences: int = Field(default=5, ge=0)
    """Fewest sentences, each within a line."""
    lorem_ipsum: bool = True
    """Drop documents with the words lorem ipsum."""
    curly_bracket: bool = True
    """Drop documents with an opening curly bracket."""


class FineWebConfig(Config):
    """Limits of FineWeb's own filters (Penedo et al. 2024, arXiv:2406.17557, 3.6), with the defaults of datatrove."""

    words: WordRules = "english"
    """Rules by which words are cut, as in `gopher_quality`."""
    min_punctuated_lines: Fraction = 0.12
    """Smallest fraction of lines that end with a sign that ends sentences."""
    max_short_lines: Fraction = 0.67
    """Largest fraction of lines that are short."""
    short_line_characters: int = Field(default=30, ge=1)
    """Most characters of a line that is short."""
    max_duplicate_characters: Fraction = 0.01
    """Largest fraction of characters in lines that came before."""
    max_newlines_per_word: float = Field(default=0.3, ge=0)
    """Most newlines a word: above it, a text is a list."""


class CodeConfig(Config):
    """Limits of source code, after Codex (Chen et al. 2021, arXiv:2107.03374, 3.1), StarCoder (Li et al. 2023,
    arXiv:2305.06161, 3) and StarCoder2 (Lozhkov et al. 2024, arXiv:2402.19173, 3). Documents that name no programming
    language are kept and not looked at."""

    language: str = Field(default="programming_language", min_length=1)
    """Name in the metadata under which a document's programming language stands; by default that of the source
    `code`."""
    max_line_characters: int = Field(default=1000, ge=1)
    """Characters of the longest line."""
    max_mean_line_characters: float = Field(default=100, gt=0)
    """Characters of a line on average."""
    long_line_languages: list[str] = Field(default=["HTML", "JSON", "Markdown", "Roff", "SMT", "TeX", "Text", "XML"])
    """Languages for which these two limits do not hold; case does not count."""
    max_line_characters_ever: int = Field(default=100_000, ge=1)
    """Characters of the longest line, whatever the language."""
    min_alphanumeric: Fraction = 0.25
    """Smallest fraction of characters that are letters or digits."""
    min_alphabetic: Fraction = 0.25
    """Smallest fraction of characters that are letters."""
    max_encoded: Fraction = 0.5
    """Largest fraction of characters in encoded data: Base64, hexadecimal numbers, escaped characters."""
    max_encoded_characters: int = Field(default=1024, ge=1)
    """Longest piece of encoded data, in characters."""
    max_data_lines: Fraction = 0.5
    """Largest fraction of the lines, blank ones left out, that are nothing but numbers and signs between them."""
    min_comments: Fraction = 0.0
    """Smallest fraction of characters in comments, for languages whose comments are known; 0.01 for SantaCoder (Ben
    Allal et al. 2023, arXiv:2301.03988)."""
    max_comments: Fraction = 0.8
    """Largest fraction of characters in comments."""
    generated: bool = False
    """Keep what says in its first lines that a program has written it, or is minified by its name."""
    min_visible_text: Fraction = 0.2
    """Smallest fraction of the characters of an HTML file that are text which can be seen."""
    min_visible_characters: int = Field(default=100, ge=0)
    """Fewest characters of such text in an HTML file."""


class CleaningConfig(Config):
    """The steps in the order in which they run; one that is `null` is left out."""

    mojibake: MojibakeConfig | None = None
    """Mending of wrong encodings; before `unicode`, which removes characters that it needs."""
    unicode: UnicodeConfig | None = UnicodeConfig()
    """Unicode clean-up."""
    c4_lines: C4LinesConfig | None = None
    """Removal of lines as for C4."""
    personal_data: PersonalDataConfig | None = None
    """Personal data: masked, replaced, or the document dropped."""
    urls: UrlsConfig | None = None
    """Block lists of addresses."""
    language: LanguageConfig | None = None
    """Identification of the language, and the languages that are kept."""
    length: LengthConfig | None = LengthConfig()
    """Limits of length."""
    repetition: RepetitionConfig | None = RepetitionConfig()
    """Limits of repetition."""

    def inputs(self, key: str) -> list[Input]:
        """What filters read beside the documents, as inputs of a stage."""
        named = [(name, value) for name, value in self if isinstance(value, FilterWithInputs)]
        return [found for name, value in named for found in value.inputs(f"{key}.{name}")]

    def check(self, key: str, inputs: Mapping[str, Facts]) -> Iterator[Finding]:
        """What is wrong with what filters read, given its facts by dotted key."""
        for name, value in self:
            if isinstance(value, FilterWithInputs):
                yield from value.check(f"{key}.{name}", inputs)

    gopher_quality: GopherQualityConfig | None = None
    """Gopher's quality filter: whether a text is prose."""
    gopher_repetition: GopherRepetitionConfig | None = None
    """Gopher's repetition filter: whether a text says the same again and again."""
    c4: C4Config | None = None
    """C4's rules for whole documents; mostly with `c4_lines`."""
    fineweb: FineWebConfig | None = None
    """FineWeb's own filters: whether a text is a list or a menu."""
    code: CodeConfig | None = None
    """Limits of source code."""
    perplexity: PerplexityConfig | None = None
    """Perplexity under a language model: n-grams, or any llmkit model."""
    classifier: ClassifierConfig | None = None
    """Classes, or a score, by any llmkit classifier."""
    toxicity: ToxicityConfig | None = None
    """Toxic documents, by a list of words and by any llmkit classifier."""
