"""One chat template: compiled once, rendered for each conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Template

from dlm._quoting import reason
from dlm.chat.budget import Budget, TemplateLimit
from dlm.chat.environment import BUDGET, ChatEnvironment
from dlm.errors import CheckpointError

MAX_CHARACTERS = 1 << 17
"""Of a template: the longest known have 30,000."""

UNITS, UNITS_EACH = 1 << 24, 256
"""What a rendering may cost (see `dlm.chat.budget`): so much, and so much more for each character of the messages."""

_TAG = "\ue002 the message goes on here \ue003"


class ChatTemplate:
    """A chat template in Hugging Face's dialect of Jinja.

    Args:
        source: its text.

    Raises:
        CheckpointError: it is too long, cannot be compiled, or costs more than it may for a conversation of one word.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_CHARACTERS:
            raise CheckpointError(f"the chat template has {len(source)} characters; at most {MAX_CHARACTERS} are read")
        try:
            self._template: Template = ChatEnvironment().from_string(source)
        except Exception as error:  # jinja2's errors, and what Python says of the code that it makes
            raise CheckpointError(f"the chat template cannot be used ({reason(error)})") from None
        try:
            self.render([{"role": "user", "content": "a"}], add_generation_prompt=True)
        except TemplateLimit as error:
            raise CheckpointError(f"the chat template cannot be used: {error}") from None
        except Exception:  # it may refuse this conversation and take others
            return

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: each with `role` and `content`.
            add_generation_prompt: whether the head of an answer follows.
            continue_final_message: leave out what the template puts after the last message.
            variables: such as `bos_token`.

        Raises:
            TemplateLimit: it costs too much.
            Exception: whatever the template raises; values are plain, so that nothing else can happen.
        """
        chat = [{key: value for key, value in message.items() if value is not None} for message in messages]
        if continue_final_message:
            chat[-1]["content"] = f"{chat[-1]['content']}{_TAG}"
        budget = Budget(UNITS)
        budget = Budget(UNITS + UNITS_EACH * budget.size(chat)) if chat else budget
        token = BUDGET.set(budget)
        try:
            text = self._template.render(
                messages=chat, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **variables
            )
        finally:
            BUDGET.reset(token)
        return _before_tag(text) if continue_final_message else text


def _before_tag(text: str) -> str:
    at = text.rfind(_TAG)
    if at < 0:
        raise ValueError("the last message is not in what it writes")
    return text[:at]
