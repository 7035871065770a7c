"""Templates built as those of the model families are, rendered as transformers renders them."""

from __future__ import annotations

import re
from datetime import datetime

import pytest
from transformers.utils import chat_template_utils

from llmkit.errors import DataError
from llmkit.tokenizer.chat import ChatTemplate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

TEMPLATES = {
    # The date, where the runtime tells one; the first message taken out of the list; whitespace kept in hand.
    "llama3.2": """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "1 Jan 2000" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim }}
        {{- '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("one call at a time") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    # Turns that must alternate, and a system prompt that goes into the last user turn.
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("roles must alternate") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("only user and assistant roles") }}
    {%- endif %}
{%- endfor %}
""",
    # A default system prompt, and tools as JSON.
    "qwen2.5": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first)
        or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
""",
    # Backwards over the turns, a namespace, methods of strings, thoughts of earlier turns left out.
    "qwen3": """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    # No system role; another name for the assistant; one line, blocks not trimmed by hand.
    "gemma2": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if (message['role'] == 'assistant') %}"
    "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    # The system prompt before the first user's words; content as text or in parts.
    "gemma3": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
""",
    # An end of text after the last turn alone.
    "phi3": "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
    "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "olmo2": "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}"
    "{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}{% else %}"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}",
    # Macros with defaults, the date unasked, JSON with options.
    "gpt-oss": """{%- macro shown(name, value, quoted=true) -%}
    {{- name + ": " + (value | tojson if quoted else value) }}
{%- endmacro -%}
{{- "<|start|>system<|message|>Current date: " + strftime_now("%Y-%m-%d") + "\\n" }}
{{- shown("effort", reasoning_effort | default("medium"), quoted=false) }}
{{- {"b": [1, 2.5, none], "a": "é <&>"} | tojson(indent=2, sort_keys=true) }}
{{- {"a": 1, "b": 2} | tojson(separators=(",", ":")) + "é" | tojson(ensure_ascii=true) + "<|end|>" }}
{%- for message in messages -%}
    {%- if message.role == "system" -%}{%- continue -%}{%- endif -%}
    {{- "<|start|>" + message.role + "<|message|>" + shown("said", message.content) + "<|end|>" }}
    {%- if loop.index > 3 -%}{{- "..." -}}{%- break -%}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}""",
    "generation": """{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {{- "<a>" }}{% generation %}{{ message.content + eos_token }}{% endgeneration %}
    {%- else %}{{- "<u>" + message.content }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<a>" }}{%- endif %}""",
}

TURNS = [
    {"role": "system", "content": " Be short. "},
    {"role": "user", "content": '\n\nWho "are" you? <&> é 🙂 \\n'},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA model.\n"},
    {"role": "user", "content": "And I?\n"},
    {"role": "assistant", "content": "{{ bos_token }} {% raw %}"},
]


class _Day(datetime):
    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return datetime(2024, 7, 26, 13, 5)


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_is_that_of_transformers(name: str, count: int, system: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template_utils, "datetime", _Day)
    template = ChatTemplate(TEMPLATES[name], TOKENS, "@@")
    messages = [*TURNS[:1], *TURNS[1 : count + 1]] if system else TURNS[1 : count + 1]
    prompt = messages[-1]["role"] == "user"
    try:
        rendered, spans = chat_template_utils.render_jinja_template(
            [messages],
            chat_template=TEMPLATES[name],
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=name == "generation",
            **TOKENS,
        )
    except chat_template_utils.jinja2.exceptions.TemplateError as refused:
        with pytest.raises(DataError, match=str(refused)):
            template.render(messages, prompt)
        assert (name, system) == ("gemma2", True)
        return
    assert template.render(messages, prompt) == rendered[0]
    if name == "generation":
        said = [rendered[0][start:end] for start, end in spans[0]]
        assert said == [turn["content"] + "</s>" for turn in messages if turn["role"] == "assistant"]


SAID = {
    "llama3.2": ["A model.<|eot_id|>", "You.<|eot_id|>"],
    "mistral": [" A model.</s>", " You.</s>"],
    "qwen2.5": ["A model.<|im_end|>", "You.<|im_end|>"],
    # What it leaves out of earlier turns it writes in the last one.
    "qwen3": ["A model.<|im_end|>", "<think>\n\n</think>\n\nYou.<|im_end|>"],
    "gemma2": ["A model.<end_of_turn>", "You.<end_of_turn>"],
    "gemma3": ["A model.<end_of_turn>", "You.<end_of_turn>"],
    "phi3": ["A model.<|end|>", "You.<|end|>\n</s>"],
    "olmo2": ["A model.</s>", "You.</s>"],
    "generation": ["A model.</s>", "You.</s>"],
}


@pytest.mark.parametrize("space", ["", "\n"])
@pytest.mark.parametrize("name", SAID)
def test_what_the_assistant_says_is_found(name: str, space: str) -> None:
    """Also where a turn is written otherwise when it is the last."""
    if space and name in ("qwen2.5", "qwen3", "phi3", "olmo2", "generation"):
        expected = [said.replace("model.", "model.\n", 1).replace("You.", "You.\n", 1) for said in SAID[name]]
    else:
        expected = SAID[name]
    control = re.compile(r"<\|im_end\|>|<\|eot_id\|>|</s>|<end_of_turn>|<\|end\|>")
    turns = [("user", "Who are you?"), ("assistant", "A model." + space), ("user", "I?"), ("assistant", "You." + space)]
    messages = [{"role": role, "content": content} for role, content in turns]
    text, spans = ChatTemplate(TEMPLATES[name], TOKENS, "@@").render_spans(messages, False, control)
    assert [text[start:end] for start, end in spans] == expected


def test_a_template_cannot_reach_the_machine() -> None:
    for source in (
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append({}) }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ strftime_now.__globals__.json }}",
        "{{ raise_exception.__code__.co_consts }}",
    ):
        template = ChatTemplate(source, TOKENS, "@@")
        with pytest.raises(DataError):
            template.render(TURNS)
