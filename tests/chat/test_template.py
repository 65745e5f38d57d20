"""Chat templates: rendered as transformers renders them, and never for long, whatever they say."""

from __future__ import annotations

from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import SecurityError, UndefinedError
from transformers.utils.chat_template_utils import render_jinja_template

from dlm.chat import ChatTemplate, TemplateLimit
from dlm.demo import CHECKPOINT
from dlm.errors import CheckpointError
from tests.fuzzing.templates import WHOLE, template

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Sort <b>3</b> 2 & 1 \n"},
    {"role": "assistant", "content": "<think>\nwell\n</think>\n\n1 2 3"},
    {"role": "user", "content": "数学 🦆"},
]

TEMPLATES = [
    (CHECKPOINT / "chat_template.jinja").read_text(),
    WHOLE,
    # ChatML with a default system prompt
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nHi"
    "<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    # namespaces, slices, tests, methods, tojson, as in models that think and call tools
    "{%- set ns = namespace(last=messages|length - 1, seen=false) %}{%- for message in messages[::-1] %}"
    "{%- set index = (messages|length - 1) - loop.index0 %}{%- if not ns.seen and message.role == 'user' and "
    "message.content is string and not (message.content.startswith('<t>') and message.content.endswith('</tool>')) %}"
    "{%- set ns.seen = true %}{%- set ns.last = index %}{%- endif %}{%- endfor %}{%- for message in messages %}"
    "{%- set content = message.content %}{%- if message.role == 'assistant' %}{%- if '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}{% generation %}{{ content }}"
    "{% endgeneration %}{%- else %}{{ message|tojson }}{{ message | tojson(indent=4) }}{%- endif %}{%- endfor %}"
    "{{ ns.last ~ '/' ~ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|map('trim')"
    "|join(', ') }}",
    # macros, loop controls, dictionaries, formatting, arithmetic
    "{% macro show(m, mark='*') %}{{ mark * 3 }}{{ m.role|upper }}{{ '%s|%d' % (m.content|length, 7 // 2) }}"
    "{% endmacro %}"
    "{% set names = {'user': 'U', 'system': 'S'} %}{% for m in messages if m.role != 'system' %}"
    "{% if loop.index > 2 %}{% break %}{% endif %}{{ show(m) }}{{ names.get(m.role, '?') }}{{ loop.cycle('a', 'b') }}"
    "{% for k, v in m.items() %}{{ k }}={{ v|replace('3', 'three')|indent(2) }};{% endfor %}{% endfor %}"
    "{{ '{} {}'.format(1, 'a') }}{{ tools is none }}"
    "{{ undefined_thing is defined }}{{ bos_token }}{{ range(3)|list }}{{ 2 ** 5 }}{{ -3|abs }}{{ [1, [2, 'x']] }}",
    # filters
    "{% for m in messages %}{{ m.content|capitalize }}{{ m|dictsort }}{{ m.content|e }}{{ m.content|wordcount }}"
    "{{ m|items|list }}{{ m.content|truncate(5) }}{{ m.content|center(30) }}{{ m.content|urlencode }}{% endfor %}"
    "{{ messages|map(attribute='role')|unique|sort|reverse|list }}{{ [3, 1, 2]|sum }}{{ [3, 1]|max }}"
    "{{ messages|groupby('role')|list|length }}{{ [1, 2, 3]|batch(2)|list }}{{ '5'|int + 1 }}{{ x|default('no') }}",
]


@pytest.mark.parametrize("source", TEMPLATES, ids=range(len(TEMPLATES)))
@pytest.mark.parametrize("prompt", [True, False])
def test_templates_render_as_in_transformers(source: str, prompt: bool) -> None:
    found = ChatTemplate(source).render(CHAT, add_generation_prompt=prompt, bos_token="<s>")
    (expected,), _ = render_jinja_template(
        [CHAT], chat_template=source, add_generation_prompt=prompt, bos_token="<s>", return_assistant_tokens_mask=False
    )
    assert found == expected


@pytest.mark.parametrize("source", TEMPLATES[:3], ids=range(3))
def test_the_last_message_goes_on_as_in_transformers(source: str) -> None:
    found = ChatTemplate(source).render(
        CHAT[:3], add_generation_prompt=False, continue_final_message=True, bos_token=""
    )
    (expected,), _ = render_jinja_template([CHAT[:3]], chat_template=source, continue_final_message=True, bos_token="")
    assert found == expected


def doubled(start: str, step: str, use: str = "{{ x }}") -> str:
    return f"{{% set x = {start} %}}" + f"{{% set x = {step} %}}" * 60 + use


COSTLY = {
    "nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "a loop that finds nothing": "{% for i in range(9999) %}{% for j in range(99999) if 0 %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'a' * 100000000 }}",
    "a longer text": "{% set x = 'a' * 3000000000 %}",
    "a list": "{{ [1] * 3000000000 }}",
    "a range": "{{ range(10 ** 12)|list }}",
    "a power": "{{ 10 ** 100000000 }}",
    "a number": doubled("3", "x * x"),
    "doubled": doubled("'a'", "x + x"),
    "joined": doubled("'a'", "x ~ x"),
    "replaced": doubled("'aa'", "x|replace('a', x)"),
    "replaced by a method": doubled("'aa'", "x.replace('a', x)"),
    "joined by a filter": doubled("'aa'", "x|join(x)"),
    "joined by a method": doubled("'aa'", "x.join(x)"),
    "a list of lists": doubled("[1, 1]", "[x, x]"),
    "a list of lists compared": doubled("[1, 1]", "[x, x]", "{% if x == x + [] %}{% endif %}"),
    "tuples as a key": doubled("(1, 1)", "(x, x)", "{{ {x: 1} }}"),
    "lists in JSON": doubled("[1, 1]", "[x, x]", "{{ x|tojson }}"),
    "dictionaries": doubled("{}", "{'a': x, 'b': x}"),
    "a namespace": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}",
    "a macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "plain text in a loop": "{% for i in range(100000) %}" + "x" * 10_000 + "{% endfor %}",
    "text in a set block": "{% set b = 'a' * 9999 %}{% set y %}{% for i in range(9999) %}{{ b }}{% endfor %}"
    "{% endset %}",
    "a width": "{{ 'a'|center(3000000000) }}",
    "a width of a method": "{{ 'a'.center(3000000000) }}",
    "an indent": "{{ ('a\n' * 99999)|indent(9999) }}",
    "a batch": "{{ [1]|batch(3000000000, 0)|list }}",
    "slices": "{{ [1]|slice(3000000000)|list }}",
    "comparisons": "{% set s = 'a' * 999999 %}{% for i in range(99999) %}{% if s in s %}{% endif %}{% endfor %}",
    "slices of text": "{% set s = 'a' * 999999 %}{% for i in range(99999) %}{% set t = s[1:] %}{% endfor %}",
    "JSON with an indent": "{{ messages|tojson(indent=1000000000) }}",
}


@pytest.mark.parametrize("source", COSTLY.values(), ids=list(COSTLY))
def test_a_template_that_takes_for_ever_is_refused_when_it_is_loaded(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"the chat template cannot be used: it (takes|makes|asks)"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    ["{% for %}", "{{ 1|nope }}", "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "{{ " + "9" * 5000 + " }}",
     "{% for i in [1] %}" * 25 + "{% endfor %}" * 25, "x" * 200_000, "{{ " + "not " * 5000 + "1 }}"],
)  # fmt: skip
def test_a_template_that_cannot_be_compiled_is_a_checkpoint_error(source: str) -> None:
    with pytest.raises(CheckpointError, match="the chat template"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    ["{{ '%999999999d' % 1 }}", "{{ '{:>999999999}'.format(1) }}", "{{ '{0.__class__}'.format(1) }}",
     "{{ strftime_now('%999999999d') }}", "{{ namespace(_a=1) }}", "{{ 'a'.encode() }}", "{{ messages.append(1) }}",
     "{{ ''.join.__call__('a') }}"],
)  # fmt: skip
def test_what_no_template_needs_is_refused(source: str) -> None:
    with pytest.raises((SecurityError, UndefinedError)):
        ChatTemplate(source).render(CHAT, add_generation_prompt=True)


@pytest.mark.parametrize("name", ["__class__", "__init__", "__globals__", "_sandbox"])
def test_private_attributes_are_undefined(name: str) -> None:
    for source in (f"{{{{ ''.{name} }}}}", f"{{{{ ['']|map(attribute='{name}')|join }}}}"):
        assert ChatTemplate(source).render(CHAT, add_generation_prompt=True) == ""


def test_no_message_costs_too_much_for_a_template_that_is_in_use() -> None:
    for source in TEMPLATES[:4]:
        made = ChatTemplate(source)
        long = [{"role": "user", "content": "[1, {{ x }}] % {} \n" * 50_000}]
        assert len(made.render(long, add_generation_prompt=True, bos_token="")) > 900_000
        many = [{"role": ("user", "assistant")[index % 2], "content": f"word {index}"} for index in range(2000)]
        assert "word 1998" in made.render(many, add_generation_prompt=True, bos_token="")


def test_the_cost_is_counted_for_each_rendering_alone() -> None:
    made, texts = ChatTemplate(TEMPLATES[0]), []

    def render() -> None:
        texts.extend(made.render(CHAT, add_generation_prompt=True, bos_token="") for _ in range(50))

    threads = [Thread(target=render) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 200
    assert len(set(texts)) == 1


@given(rng=st.randoms(use_true_random=False))
def test_any_template_renders_or_fails_within_its_bounds(rng: Any) -> None:
    try:
        ChatTemplate(template(rng)).render(CHAT, add_generation_prompt=True)
    except (CheckpointError, TemplateLimit):
        return
    except MemoryError:
        raise
    except Exception:  # what the template itself does wrong, such as 1 + 'a'
        return
