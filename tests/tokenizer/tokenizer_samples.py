"""Texts, templates and tokenizers that several tests use."""

from __future__ import annotations

import inspect
import textwrap
from importlib import resources

from hypothesis import strategies as st

from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.tokenizer.training import bpe_settings, train_bpe

TEXTS = [
    *inspect.getsource(textwrap).split("\n\n"),
    "user assistant system Hello there! What is 123456 + 7?\n\nIt's 123463.\t Déjà vu, naïve café. Привет, мир. "
    "你好，世界 🙂",
] * 2

CHATML = resources.files("llmkit.tokenizer").joinpath("chat_templates/chatml.jinja").read_text("utf-8")
CHATML_PLAIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = """
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
EXTRA = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|system|>", "<|assistant|>"]


def with_template(template: str | None, vocab_size: int = 600) -> Tokenizer:
    backend = train_bpe(lambda: TEXTS, vocab_size=vocab_size, special_tokens=EXTRA)
    return Tokenizer(backend, bpe_settings(template))


_FRAGMENTS = [
    "<|",
    "im_end",
    "|>",
    "<|im_end|>",
    "<|im_start|>",
    "user",
    "\n",
    "<|endoftext|>",
    " ",
    "[MASK]",
    "é",
    "}}",
]
texts = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(_FRAGMENTS), max_size=8).map("".join))
"""Any text, and text made of pieces of control tokens."""
