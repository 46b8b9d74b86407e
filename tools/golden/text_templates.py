"""Writes tests/data/text/templates.json: chat templates, messages, and what transformers renders.

Usage: python tools/golden/text_templates.py
The templates are written for these tests in the manner of the families' own and use what those use.
"""

import json
import pathlib

from transformers.utils.chat_template_utils import render_jinja_template

OUT = pathlib.Path(__file__).parents[2] / "tests/data/text/templates.json"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<image>"}

IMAGE = {"type": "image"}


def text(t):
    return {"type": "text", "text": t}


def user(*content):
    return {"role": "user", "content": list(content)}


def assistant(*content):
    return {"role": "assistant", "content": list(content)}


def system(*content):
    return {"role": "system", "content": list(content)}


ONE = [user(IMAGE, text("What is this?"))]
CHAT = [
    system(text("Be brief.")),
    user(IMAGE, text("What is this?"), IMAGE),
    assistant(text("  A cat. ")),
    user(text("And\nthis?"), text("Really?")),
]
NO_SYSTEM = CHAT[1:]
ODD = [user(text("a"), text(""), IMAGE), user()]
QUOTES = [user(text("He said \"it's\" \\ \u00e9 \u4f60 \U0001f600 <b>&amp;</b>\t{{ x }} {% y %}"))]

TEMPLATES = {
    # One line, roles capitalised, parts by type.
    "turns": (
        "{% for message in messages %}{{ message['role'].capitalize() }}{% if message['content'] and message['content'][0]['type'] == 'image' %}{{ ':' }}"
        "{% else %}{{ ': ' }}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
        "parts",
        [ONE, CHAT, ODD, QUOTES],
    ),
    # Images first, assistant text marked for training, upper case roles.
    "generation": (
        """{% for message in messages %}{{ message['role'] | upper }}: {# images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}
{%- if message['role'] != 'assistant' %}
    {%- for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}
{%- else %}
    {%- for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}
""",
        "parts",
        [ONE, CHAT, ODD, QUOTES],
    ),
    # A system message by default, numbered pictures, content as string or parts.
    "numbered": (
        """{% set image_count = namespace(value=0) %}{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}({{ image_count.value }})""",
        "parts",
        [ONE, CHAT, ODD, QUOTES],
    ),
    # Strings only, edited by string methods.
    "strings": (
        """{{ bos_token }}{% for message in messages %}{% set content = '<|start|>' + message['role'] + '<|stop|>\n\n' + message['content'].replace('<image>', '').lstrip() | trim + '<|eot|>' %}{{ content }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}""",
        "text",
        [ONE, CHAT, QUOTES],
    ),
    # System prompt as a string, parts in the other turns; roles must alternate.
    "alternating": (
        """{%- if messages[0]['role'] == 'system' -%}
    {%- set system_message = messages[0]['content'] | trim + '\n\n' -%}
    {%- set messages = messages[1:] -%}
{%- else -%}
    {%- set system_message = '' -%}
{%- endif -%}
{{- bos_token + system_message -}}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('After the optional system message, roles must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- '[INST] ' -}}
        {%- for item in message['content'] -%}
            {%- if item.type == 'image' -%}{{ '[IMG]' }}{%- else -%}{{ item.text }}{%- endif -%}
        {%- endfor -%}
        {{- ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + (message['content'] | map(attribute='text') | join('') | trim) + eos_token -}}
    {%- endif -%}
{%- endfor -%}
""",
        "mixed",
        [ONE, CHAT, NO_SYSTEM, ODD, QUOTES],
    ),
    # Macros, loop controls, filters, tests, slices, conditional expressions.
    "machinery": (
        """{%- macro show(part, n=1) -%}
[{{ n }}|{{ part.type }}|{{ part.text if part.text is defined else '-' }}]
{%- endmacro -%}
{%- for m in messages[::-1] if m.role != 'system' %}
  {%- if loop.index > 3 %}{% break %}{% endif %}
  {%- if m.content | length == 0 %}{% continue %}{% endif %}
{{ loop.index }}/{{ loop.length }} {{ m.role | title }} {{ loop.previtem.role if loop.previtem is defined else 'first' }}
  {%- for p in m.content %}
    {{ show(p, n=loop.revindex) }}{{ ', ' if not loop.last }}
  {%- else %}none{% endfor %}
{% endfor %}
{% set ns = namespace(words=[], found=false) %}
{% for m in messages %}{% for p in m.content if p.type == 'text' %}{% set ns.words = ns.words + p.text.split() %}{% set ns.found = true %}{% endfor %}{% endfor %}
{{ ns.words | join('|') }} {{ ns.found }} {{ none }} {{ undefined_thing }} {{ 1.0 }} {{ 3 // 2 }} {{ 7 % 4 }} {{ 2 ** 3 }} {{ 5 / 2 }}
{{ [1, 'a', none, true, 1.5] }} {{ {'k': 'v', 'n': [1, 2]} }} {{ (1, 2) | length }}
{{ 'abc'[1] }}{{ 'abc'[-1] }}{{ 'hello'[1:3] }}{{ 'a' in 'cat' }}{{ 'x' not in 'cat' }} {{ 'a' if messages else 'b' }}
{{ tools is none }} {{ tools is defined }} {{ documents is not none }} {{ foo is not defined }} {{ messages is iterable }} {{ messages[0] is mapping }}
{% for x in [none, 'ab', [1], {'a': 1}, 3, true, undefined_thing] %}{{ x is iterable }}{{ x is sequence }}{{ x is string }}{{ x is mapping }} {% endfor %}
{{ messages | map(attribute='role') | list | unique | sort | join(',') }} {{ (messages | last).role }} {{ messages | first | items | list | length }}
{% raw %}{{ not rendered }}{% endraw %}
{%+ if true %}kept{% endif %}

{% filter upper %}shout{% endfilter %} {% set block %}a{{ 1 }}b{% endset %}{{ block }}
""",
        "parts",
        [ONE, CHAT, QUOTES],
    ),
    "methods": (
        """{% for m in messages %}{% for p in m.content if p.type == 'text' %}{% set t = p.text %}
{{ t.upper() }}|{{ t.lower() }}|{{ t.title() }}|{{ t.strip() }}|{{ t.lstrip() }}|{{ t.rstrip('?. ') }}|{{ t.split('s') }}|{{ t.split(' ', 1) }}|{{ t.rsplit(' ', 1) }}|{{ t.split() }}
{{ t.startswith('W') }}|{{ t.endswith(('?', '.')) }}|{{ t.find('i') }}|{{ t.rfind('i') }}|{{ t.find('zz') }}|{{ t.count('s') }}|{{ t.count('') }}|{{ t.replace('s', 'S', 1) }}
{{ t.removeprefix('What') }}|{{ t.removesuffix('?') }}|{{ t.partition(' ') | list }}|{{ t.rpartition(' ') | list }}|{{ t.splitlines() }}|{{ t.swapcase() }}|{{ t.isdigit() }}|{{ t.isupper() }}|{{ ''.isalpha() }}
{{ '7'.zfill(3) }}|{{ '-7'.zfill(4) }}|{{ 'ab'.center(5, '*') }}|{{ 'ab'.center(6) }}|{{ 'abc'.center(6, '.') }}|{{ 'ab'.ljust(4) }}|{{ 'ab'.rjust(4, '.') }}|{{ ', '.join(['a', 'b']) }}
{% endfor %}{% endfor %}{{ messages[0].get('role') }}|{{ messages[0].get('nope', 'default') }}|{% for k, v in messages[0].items() %}{{ k }};{% endfor %}{{ messages[0].keys() | list }}|{{ 'a' ~ 1 ~ 'b' }}|{{ 'x' * 3 }}
""",
        "parts",
        [ONE, CHAT],
    ),
    "json": (
        """{{ messages | tojson }}
{{ messages[-1].content | tojson(indent=2) }}
{{ {'b': 1, 'a': [true, false, none, 1.5, 1e20, 'q\\u0041'], 'e': [], 'o': {}} | tojson(sort_keys=true) }}
{{ {'b': 'é'} | tojson(ensure_ascii=true) }} {{ [1, 2] | tojson(separators=(',', ':')) }} {{ {'a': [1, {}]} | tojson(indent=4) }}""",
        "text",
        [ONE, CHAT, QUOTES],
    ),
}


def joined(messages):
    out = []
    for message in messages:
        parts = [p["text"] for p in message["content"] if p["type"] == "text"]
        out.append({"role": message["role"], "content": "\n".join(parts)})
    return out


def form(messages, kind):
    """The messages as the engine must hand them to this template."""
    if kind == "text":
        return joined(messages)
    if kind == "mixed":
        strings = joined(messages)
        return [s if m["role"] == "system" else m for m, s in zip(messages, strings)]
    return messages


def main():
    cases = []
    for name, (template, kind, conversations) in TEMPLATES.items():
        for i, messages in enumerate(conversations):
            for add in (True, False):
                case = {
                    "name": f"{name} {i}",
                    "template": template,
                    "format": kind,
                    "messages": messages,
                    "add_generation_prompt": add,
                }
                try:
                    rendered, _ = render_jinja_template(
                        [form(messages, kind)],
                        chat_template=template,
                        add_generation_prompt=add,
                        **SPECIAL,
                    )
                    case["rendered"] = rendered[0]
                except Exception as e:
                    case["raised"] = str(e)
                cases.append(case)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    dump = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
    OUT.write_text(f'{{"special_tokens": {json.dumps(SPECIAL)},\n"cases": [\n{dump}\n]}}\n')
    print(len(cases), "cases,", sum("raised" in c for c in cases), "raise,", OUT.stat().st_size, "bytes")


main()
