"""Chat templates, grown from a small grammar of what is expensive."""

from __future__ import annotations

import random

WHOLE = (
    "{% for message in messages %}<|role|>{{ message['role'] }}\n{{ message['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<|role|>assistant{% endif %}"
)

VALUES = ("messages", "messages[0]['content']", "'a'", "3", "[1, 2]", "x", "ns.x", "messages|tojson", "(x, x)",
          "bos_token", "range(10)", "x|list", "namespace(a=x)", "{'a': x}", "messages[0]", "''", "10**9")  # fmt: skip
FILTERS = ("trim", "upper", "join(x)", "replace('a', x)", "center(100)", "center(10**9)", "indent(x)", "list", "string",
           "length", "tojson", "tojson(indent=4)", "sort", "map('string')|list", "batch(3)|list", "first", "int", "sum",
           "map(attribute='__class__')|list", "urlize", "nope", "items", "selectattr('role')|list")  # fmt: skip
CALLS = ("{}.replace('a', {})", "{}.join({})", "{}.center(10**9)", "{}.format({})", "'%s' % {}", "'%999999999d' % {}{}",
         "{}.split({})", "range({})", "strftime_now({})", "dict({})", "raise_exception({})", "{}.__class__", "lipsum()",
         "cycler({}).next()", "{}.items()", "f({})", "loop({})", "namespace(x={})", "{}.strip({})")  # fmt: skip
OPERATORS = ("+", "*", "~", "**", "%", "-", "//", "in", "==", "<", "and", "is sameas")


def expression(rng: random.Random, depth: int = 3) -> str:
    if depth == 0 or rng.random() < 0.3:
        return rng.choice(VALUES)
    one, other = expression(rng, depth - 1), expression(rng, depth - 1)
    return rng.choice(
        (
            f"({one} {rng.choice(OPERATORS)} {other})",
            f"({one})|{rng.choice(FILTERS)}",
            rng.choice(CALLS).format(f"({one})", f"({other})"),
            f"[{one}, {one}]",
            f"({one})[{other}:]",
            f"({one} if {other} else {one})",
            f"{one} * {rng.choice((2, 1000, 10**6, 3 * 10**9))}",
        )
    )


def statement(rng: random.Random, depth: int = 3) -> str:
    inner = "".join(statement(rng, depth - 1) for _ in range(rng.randrange(1, 4))) if depth else "text"
    value = expression(rng)
    return rng.choice(
        (
            f"{{{{ {value} }}}}",
            f"{{% set x = {value} %}}" * rng.choice((1, 1, 40)),
            "{% set x = [x, x] %}" * 40 + "{{ x }}",
            f"{{% set ns.x = {value} %}}",
            f"{{% for x in {value} %}}{inner}{{% endfor %}}",
            f"{{% for i in range({rng.choice((3, 1000, 100000))}) %}}{inner}{{% endfor %}}",
            f"{{% for x in {value} recursive %}}{{{{ loop(x) }}}}{inner}{{% endfor %}}",
            f"{{% if {value} %}}{inner}{{% else %}}{inner}{{% endif %}}",
            f"{{% macro f(x) %}}{inner}{{{{ f(x) }}}}{{% endmacro %}}{{{{ f({value}) }}}}",
            f"{{% set x %}}{inner}{{% endset %}}",
            f"{{% filter {rng.choice(FILTERS)} %}}{inner}{{% endfilter %}}",
            f"{{% generation %}}{inner}{{% endgeneration %}}",
        )
    )


def template(rng: random.Random) -> str:
    """A template, mostly one that can be compiled; some run long."""
    parts = ["{% set ns = namespace(x='a') %}{% set x = 'b' %}", WHOLE]
    parts += [statement(rng) for _ in range(rng.randrange(1, 4))]
    made = "".join(parts)
    if rng.random() < 0.1:
        at = rng.randrange(len(made))
        made = made[:at] + rng.choice(("{% for %}", "{{", "%}", "\x00", "(" * 3000)) + made[at:]
    return made
