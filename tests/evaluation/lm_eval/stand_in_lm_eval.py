"""What lm-eval hands to a model and looks at, in its shapes, for machines without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dlm.evaluation.lm_eval.answering import Answering, Backend
from dlm.evaluation.lm_eval.asking import Settings

ENDS = {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False}


@dataclass
class Instance:
    """A request, with the fields of `lm_eval.api.instance.Instance` that say what is asked."""

    request_type: str
    arguments: Any
    doc: dict[str, Any] = field(default_factory=dict)
    idx: int = 0

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments if isinstance(self.arguments, tuple) else (self.arguments,)


@dataclass
class Hook:
    """lm-eval's cache hook: what it was told."""

    told: list[tuple[str, Any, Any]] = field(default_factory=list)

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.told.append((attr, req, res))


class Asked(Answering):
    """A model as lm-eval has it, with its hook."""

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self.cache_hook = Hook()
        super().__init__(backend, settings, "demo")

    def generate(self, *requests: tuple[str, dict[str, Any]]) -> list[str]:
        return self.generate_until([Instance("generate_until", each) for each in requests], disable_tqdm=True)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        return self.loglikelihood([Instance("loglikelihood", pair) for pair in pairs], disable_tqdm=True)

    def roll(self, *texts: str) -> list[float]:
        return self.loglikelihood_rolling([Instance("loglikelihood_rolling", (text,)) for text in texts], True)

    def ask(self, question: str) -> str:
        """The question as a context, with the chat template written out."""
        return self.apply_chat_template([{"role": "user", "content": question}])
