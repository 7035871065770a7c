"""English words that the general rules of `word_rules` would cut wrongly, or that are two words in one.

The set is the one that spaCy's English rules have, so that words are counted as the filters of other tools count them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Pieces = tuple[str, ...]

_SUBJECTS = "i you he she it we they"
_ASKING = "who what when where why how there that this these those"
_ENDINGS = {
    f"{_SUBJECTS} {_ASKING}": ("'ll", "'ll've", "'d", "'d've"),
    "i": ("'m", "'m~a"),
    f"i you we they {_ASKING} could might must should would not": ("'ve",),
    f"you we they {_ASKING}": ("'re",),
    f"he she it {_ASKING}": ("'s",),
    "ca could do does did had may might must need ought sha should wo would": ("n't", "n't've"),
    "ai are is was were have has dare": ("n't",),
}
"""What may follow which words, an apostrophe and `n't` beginning a word of its own, and so `~`; each stands with and
without its apostrophes, and with a capital letter."""
_NEVER = {"that": ("'re", "'ve"), "this": ("'re", "'ve"), "these": ("'s",), "those": ("'s",)}
_OTHER_WORDS = "ill its hell shell shed were well whore"
_PAIRS = "y'~all y~all how~'d~'y can~not gon~na got~ta let~'s c'm~on"
_CLIPPED = "doin goin nothin nuthin ol somethin lovin havin"
_WHOLE = """
    em 'em ll 'll nuff 'nuff 'S 's ‘S ‘s and/or w/o 're 'd 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout
    ma'am Ma'am o'clock O'clock C++ <space> ' '' \\") \\t \\n —
"""
_ABBREVIATIONS = """
    a.m. p.m. e.g. E.g. E.G. i.e. I.e. I.E. vs. v.s. co. Adm. Bros. Co. Corp. D.C. Dr. Gen. Gov. Inc. Jr. Ltd. Md.
    Messrs. Mo. Mont. Mr. Mrs. Ms. Mt. Ph.D. Prof. Rep. Rev. Sen. St. Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct.
    Nov. Dec. Ak. Ala. Ariz. Ark. Calif. Colo. Conn. Del. Fla. Ga. Ia. Id. Ill. Ind. Kan. Kans. Ky. La. Mass. Mich.
    Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Okla. Ore. Pa. S.C. Tenn. Va. Wash. Wis.
"""
_EMOTICONS = r"""
    :) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-;
    :( :-( :(( :-(( :((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :3 :-3 =3 :0 :-0
    :P :-P :p :-p :O :-O :o :-o :() >:o :* :-* :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD XDD 8D 8-D
    ^_^ ^__^ ^___^ >.< >.> <.< ._. ;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o
    @_@ <3 <33 <333 </3 (^_^) (-_-) (._.) (>_<) (*_*) (¬_¬) ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*>
"""


def general_exceptions() -> dict[str, Pieces]:
    """Whole words of any language: emoticons, and letters with a full stop as in lists."""
    letters = "abcdefghijklmnopqrstuvwxyzäöü"
    found: dict[str, Pieces] = {word: (word,) for word in (*_EMOTICONS.split(), *(f"{letter}." for letter in letters))}
    found |= {f"°{unit}.": ("°", unit, ".") for unit in "cfkCFK"}
    return found | {word: (word,) for word in _tail(_WHOLE, "C++")}


def english_exceptions() -> dict[str, Pieces]:
    """Each word that is cut by its own rule, and the pieces, which make up the word again."""
    found: dict[str, Pieces] = {word: (word,) for word in (*_WHOLE.split(), *_ABBREVIATIONS.split())}
    for words, endings in _ENDINGS.items():
        for word in words.split():
            for ending in endings:
                if ending not in _NEVER.get(word, ()):
                    found |= _contracted(word, ending)
    for word in _OTHER_WORDS.split():
        found.pop(word, None)
        found.pop(word.title(), None)
    for pair in _PAIRS.split():
        pieces = tuple(pair.split("~"))
        found |= _capital(pieces) if not pair.startswith("y") else {"".join(pieces): pieces}
    for word in _CLIPPED.split():
        found |= _capital((word,)) | _capital((word + "'",))
    for hour in range(1, 13):
        found |= {f"{hour}{half}": (str(hour), half) for half in ("am", "a.m.", "pm", "p.m.")}
    return _with_curly(general_exceptions() | found)


def _contracted(word: str, ending: str) -> dict[str, Pieces]:
    parted = ending.replace("'", "~'").replace("n~'", "~n'")
    found: dict[str, Pieces] = {}
    for form in (parted, parted.replace("'", "")):
        found |= _capital((word, *form.removeprefix("~").split("~")))
    return found


def _capital(pieces: Pieces) -> dict[str, Pieces]:
    first = pieces[0][0].upper() + pieces[0][1:]
    return {"".join(pieces): pieces, first + "".join(pieces[1:]): (first, *pieces[1:])}


def _with_curly(found: Mapping[str, Pieces]) -> dict[str, Pieces]:
    curly = {word.replace("'", "’"): tuple(p.replace("'", "’") for p in pieces) for word, pieces in found.items()}
    return {**found, **curly}


def _tail(text: str, first: str) -> Iterable[str]:
    words = text.split()
    return words[words.index(first) :]
