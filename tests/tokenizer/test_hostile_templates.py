"""Chat templates made to do harm: refused in words, in bounded time and memory."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from tokenizer_samples import CHATML

from llmkit.errors import ConfigError, DataError
from llmkit.tokenizer.chat import ChatTemplate

MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes."}]
RANGE = "{% for a in range(99999) %}"


def _growing(step: str, start: str = "'ab'") -> str:
    return f"{{% set n = namespace(x={start}) %}}{{% for i in range(99) %}}{step}{{% endfor %}}{{{{ n.x|length }}}}"


ENDLESS = {
    "nested loops": RANGE * 3 + "{% endfor %}" * 3,
    "branching macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless macro": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "endless loop": "{% for x in [[1]] recursive %}{{ loop([[1],[1]]) }}{% endfor %}",
    "work in a loop": "{% set x = 'a' * 10000000 %}" + RANGE + "{{ x|upper|length }}{% endfor %}",
}
LARGE = {
    "product": "{{ 'a' * 10**10 }}",
    "product of lists": "{{ [1] * 10**10 }}",
    "power": "{{ 9**999999999 }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "percent, computed": "{{ '%*d' % (10**10, 1) }}",
    "format filter": "{{ '%10000000000d'|format(1) }}",
    "format method": "{{ '{:>10000000000}'.format(1) }}",
    "format method, computed": "{{ '{:{}}'.format(1, 10**10) }}",
    "indent": "{{ 'a'|indent(10**10, true) }}",
    "tojson": "{{ messages|tojson(indent=10**10) }}",
    "join": "{{ range(99999)|map('string')|join('a'*100000) }}",
    "output": RANGE + "{{ 'a' * 1000000 }}{% endfor %}",
    "doubled by ~": _growing("{% set n.x = n.x ~ n.x %}"),
    "doubled by +": _growing("{% set n.x = n.x + n.x %}"),
    "doubled list": _growing("{% set n.x = n.x + n.x %}", "[1, 2]"),
    "doubled number": _growing("{% set n.x = n.x * n.x %}", "12345678901234567890"),
    "doubled block": _growing("{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}"),
    "replaced": _growing("{% set n.x = n.x.replace('a', n.x) %}"),
    "replaced by filter": _growing("{% set n.x = n.x|replace('a', n.x) %}"),
    "joined": _growing("{% set n.x = n.x.join(n.x) %}"),
    "joined by filter": _growing("{% set n.x = n.x|join(n.x) %}"),
}
REACHING = {
    "padding": "{{ 'a'.ljust(10**10) }}",
    "padding by item": "{{ 'a'['ljust'](10**10) }}",
    "padding by attr": "{{ 'a'|attr('ljust')(10**10) }}",
    "bytes": "{{ (5).to_bytes(10**10, 'big') }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "globals of a function": "{{ raise_exception.__globals__['__builtins__'] }}",
    "the template": "{{ self.__init__.__globals__ }}",
    "change": "{{ messages.append(1) }}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "file": "{% include '/etc/passwd' %}",
    "module": "{% import 'os' as os %}",
}
NO_TEMPLATES = {
    "parentheses": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "lists": "{{ " + "[" * 20000 + "]" * 20000 + " }}",
    "blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "loops": "{% for a in [1] %}" * 50 + "{% endfor %}" * 50,
    "signs": "{{ " + "-" * 50000 + "1 }}",
    "attributes": "{{ x" + ".a" * 50000 + " }}",
    "sums": "{{ " + " + ".join(["1"] * 50000) + " }}",
    "length": "a" * 10_000_000,
    "filter": "{{ 'a'|center(10**10) }}",
}


def _render(source: str) -> str:
    return ChatTemplate(source, {}, "nonce").render(MESSAGES)


@pytest.mark.parametrize("name", ENDLESS)
def test_templates_that_do_not_end(name: str) -> None:
    start = time.thread_time()
    with pytest.raises(DataError, match="does not come to an end"):
        _render(ENDLESS[name])
    assert time.thread_time() - start < 35


def test_templates_that_take_memory() -> None:
    """In a process with little to spare."""
    script = (
        "import resource; from pathlib import Path; import test_hostile_templates as t; import pytest\n"
        "size = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + (400 << 20),) * 2)\n"
        "for name, source in t.LARGE.items():\n"
        "    try: t._render(source); print(name, 'was rendered')\n"
        "    except t.DataError as error: assert 'makes something too large' in str(error), (name, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=__file__.rpartition("/")[0], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("name", REACHING)
def test_templates_that_reach_out(name: str) -> None:
    with pytest.raises(DataError, match=r"is unsafe|is undefined|has no attribute|no loader"):
        _render(REACHING[name])


@pytest.mark.parametrize("name", NO_TEMPLATES)
def test_texts_that_are_no_templates(name: str) -> None:
    with pytest.raises(ConfigError, match="the chat template is"):
        _render(NO_TEMPLATES[name])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'a' ~ 1 ~ nothing ~ 2.5 }}", "a12.5"),
        ("{{ 'ab' * 2 + 'c' }}{{ 7 % 4 }}{{ 2 ** 8 }}{{ '%s-%02d' % ('x', 3) }}", "ababc3256x-03"),
        ("{{ [1, 2] + [3] }}{{ 'a,b'.split(',')|join('; ') }}", "[1, 2, 3]a; b"),
        ("{{ messages|map(attribute='role')|join(' ') }}", "user assistant"),
        ("{{ messages|map(attribute='role')|join(d=', ') }}", "user, assistant"),
        ("{{ '{:>4}|{x}'.format('a', x=1) }}{{ 'a\nb'|indent(2) }}", "   a|1a\n  b"),
        ("{{ messages[1:]|tojson }}", '[{"role": "assistant", "content": "Yes."}]'),
        (
            "{% macro f(x) %}<{{ x }}>{% endmacro %}{% for m in messages %}{{ f(m.role) }}{% endfor %}",
            "<user><assistant>",
        ),
        ("{% set t %}a{{ 1 }}{% endset %}{{ t.replace('a', 'b')|upper }}", "B1"),
        ("{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m['content']|trim }}{% endfor %}", "1Hello"),
        ("{% call(x) f(3) %}{{ x }}!{% endcall %}", None),
    ],
)
def test_what_templates_may_do_is_as_ever(source: str, text: str | None) -> None:
    if text is None:
        source, text = "{% macro f(n) %}{{ caller(n) }}{% endmacro %}" + source, "3!"
    assert _render(source) == text


def test_a_long_conversation_is_within_bounds() -> None:
    turn = {"role": "user", "content": "word " * 2000}
    text = ChatTemplate(CHATML, {"bos_token": "", "eos_token": ""}, "nonce").render([turn] * 3000)
    assert len(text) > 3000 * 10_000 - 3000
