"""Parameters of other servers that this one does not support. They are rejected by name, so that no answer silently
ignores them; values without effect pass, since many clients always send every field.

Any other unknown field is ignored: routers and clients add their own. So is `skip_special_tokens`, which NeMo-Skills
sends as false: returned text ends before the end token.
"""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import Repr
from typing import Any

from dlm.serving.http.errors import ApiError

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "min_p": (0,),
    "typical_p": (1,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "stop_token_ids": ([],),
    "stop_regex": ([],),
    "include_stop_str_in_output": (False,),
    "no_stop_trim": (False,),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "json_schema": (),
    "regex": (),
    "ebnf": (),
    "logits_processors": ([],),
    "custom_logit_processor": (),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "chat_template": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "return_hidden_states": (False,),
}
"""By field: values without effect here, besides null."""
SHOWN = 40
"""Characters of a rejected value shown in the error."""
BRIEF = Repr()
"""Formats only the beginning of a value, which may be as large as a body."""
BRIEF.maxstring = BRIEF.maxother = BRIEF.maxlong = 5 * SHOWN


def refuse_foreign(unknown: Mapping[str, Any], neutrals: Mapping[str, tuple[Any, ...]] = NEUTRAL) -> None:
    """Raise `ApiError` (400) for the first unknown field that asks for something unsupported.

    Args:
        unknown: fields of a body.
        neutrals: unsupported fields, each with its values without effect.
    """
    for name, neutral in neutrals.items():
        value = unknown.get(name)
        if value is None or value in neutral:
            continue
        others = f", or send {' or '.join(map(repr, neutral))}" if neutral else ""
        raise ApiError(400, f"{name}={BRIEF.repr(value):.{SHOWN}} is not supported; leave it out{others}", param=name)
