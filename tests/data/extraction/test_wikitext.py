"""Plain text of wikitext against what a reader of the page would write down."""

from __future__ import annotations

import pytest

from llmkit.data.extraction.wikitext import plain_text
from llmkit.data.guarded import Guarded, GuardError

ARTICLE = """{{Infobox Person|Name=Ada|Bild={{nested|[[Datei:x.jpg]]}}}}
[[Datei:Ada.jpg|mini|Ein ''Bild'' von [[Ada Lovelace|Ada]] (1836)]]
'''Ada Lovelace''' ({{IPA|x}}; 10&nbsp;December 1815) was an [[England|English]] [[mathematician]] <!-- really -->and \
friend of [[Charles Babbage]]s.<ref name="a">{{cite|b}}</ref> See [http://a.org ''her'' page] or http://b.org/x .

== Life ==
{| class="wikitable"
! a !! b
|-
| 1 || {{c}}
|}
She wrote ''Notes'', where ''x''<sup>2</sup> &lt; <math>y^2</math>4.<ref name="a" />
* one
** two '''bold'''
** three
* {{only a template}}
* four
# first
## nested
# second
; Term : its meaning
: indented

=== Gallery ===
<gallery>
x.jpg|A caption
</gallery>

=== Program ===
<syntaxhighlight lang="python">
def f(x):
    # '''as it is'''
    return x | 1
</syntaxhighlight>
After <nowiki>''the'' [[program]]</nowiki>.<br />A new line.

== References ==
<references />
[[Kategorie:Frau]] [[:Kategorie:Frau]]
[[fr:Ada Lovelace]]
__NOTOC__
"""
EXPECTED = """Ada Lovelace (10 December 1815) was an English mathematician and friend of Charles Babbages. \
See her page or http://b.org/x.

Life

She wrote Notes, where x2 < 4.
- one
  - two bold
  - three
- four
1. first
  1. nested
2. second
Term : its meaning
indented

Program

def f(x):
    # '''as it is'''
    return x | 1

After ''the'' [[program]].

A new line.

References

Kategorie:Frau"""
HIDDEN = ("file", "image", "datei", "category", "kategorie")


def text_of(wikitext: str) -> str:
    return plain_text((wikitext, HIDDEN))


def test_an_article() -> None:
    assert text_of(ARTICLE) == EXPECTED


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("", ""),
        ("{{stub}}", ""),
        ("== Nothing ==\n=== below ===\n{{x}}\n== Some ==\ntext", "Some\n\ntext"),
        ("== A ==\n=== B ===\ntext\n== C ==\nmore", "A\n\nB\n\ntext\n\nC\n\nmore"),
        # MediaWiki's rules for runs of apostrophes.
        ("l'''eau''", "l'eau"),
        ("the dog's ''tail'' and '''''both'''''", "the dog's tail and both"),
        ("it''''s''' bold", "it's bold"),
        ("6'' of rain", "6 of rain"),
        # Links.
        ("[[a]]s [[b|c]] [[#part|d]] [[:fr:e|f]] [[Bild:x.PNG|mini|no]] [[File:y]]", "as c d f"),
        ("[[w:en:page|words]] in [[de:seite]] a line", "words in de:seite a line"),
        ("[http://x.org] [http://x.org words] //y", "words //y"),
        # Entities, in whatever form; those that mean no character are none.
        ("&amp;amp; &#39;&#39;a&#39;&#39; &#x41;&eacute; &nonsense;", "&amp; ''a'' Aé &nonsense;"),
        ("a&#xD800;b &#1;c", "a\ufffdb c"),
        # Brackets that templates have emptied.
        ("Köln ({{IPA|x}}) and ({{a}}, {{b}}; c) (d)", "Köln and (c) (d)"),
        # Broken markup shows what there is.
        ("a {{b [[c]] d", "a {{b c d"),
        ("{| class=x\n| cell\ntext behind", "text behind"),
        ("<ref>never closed", "never closed"),
        ("<div>in <span style='x'>a</span> box</div>", "in a box"),
        ("<ul><li>a</li><li>b</li></ul>", "- a\n\n- b"),
        ("<poem>\nRoses\nare\n</poem>", "Roses\nare"),
        ("<blockquote>Said.</blockquote>{{{1|default}}}", "Said."),
        ("a\n----\nb", "a\n\nb"),
    ],
)
def test_pieces(wikitext: str, expected: str) -> None:
    assert text_of(wikitext) == expected


def test_markup_that_takes_for_ever_is_given_up() -> None:
    with Guarded("llmkit.data.extraction.wikitext:plain_text", seconds=0.3, megabytes=512) as guard:
        with pytest.raises(GuardError, match="computing time"):
            guard.call(("<div>" * 50_000, HIDDEN))
        assert guard.call(("'''fine'''", HIDDEN)) == "fine"
