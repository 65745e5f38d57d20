"""lm-eval, the Language Model Evaluation Harness, with this package's decoder: the models `dlm` (in process) and
`dlm-http` (at a server of `dlm.serve`). `python -m dlm.lm_eval --help` runs it.

`asking` reads what a task wants, `texts` makes token ids of it, `local` and `remote` answer, and lm-eval calls
`answering`. None of these knows lm-eval itself; `models` puts them under its base class.
"""

__all__ = ["answering", "asking", "local", "models", "remote", "texts"]
