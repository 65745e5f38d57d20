"""lm-eval's own command line with this package's models:

    python -m dlm.lm_eval --model dlm --model_args model=demo,algorithm=klass,gen_length=64 --batch_size auto \\
        --tasks gsm8k
    python -m dlm.lm_eval --model dlm-http --model_args base_url=http://127.0.0.1:8000,model=demo --tasks piqa

Everything beside the models is lm-eval's (extra `lm-eval`); their arguments are those of
`dlm.evaluation.lm_eval.models`.
"""

from __future__ import annotations

import sys

from dlm.errors import DLMError, MissingExtraError


def main() -> None:
    """Register the models, then do as lm-eval does; a mistake of the user is one line, and exit code 1."""
    try:
        try:
            from lm_eval.__main__ import cli_evaluate
        except ImportError as error:
            raise MissingExtraError("lm-eval", "lm-eval", "python -m dlm.lm_eval") from error
        from dlm.evaluation.lm_eval.models import register

        register()
        cli_evaluate()
    except DLMError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
