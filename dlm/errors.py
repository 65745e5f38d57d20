"""The exception tree. Every error that a user can cause is one of these, and its message names the thing, the value
and the way out.

DLMError
├── ConfigError        a choice, key or combination in the configuration
├── RequestError       a value in one request (also a ValueError); its neighbours go on
├── DataError          a prompt file or one of its rows
├── CheckpointError    a model folder that cannot be read, or is of another family
├── NotFiniteError     logits that are not finite where they are read; its neighbours go on
├── MissingExtraError  a package that an optional feature needs is not installed
└── RunError           a run that could not finish; what is finished is kept
    └── IncompleteRunError   prompts without an answer; names how to resume
"""

from __future__ import annotations


class DLMError(Exception):
    """Base of all errors raised on purpose by this package."""


class ConfigError(DLMError):
    """A wrong key, type, choice or combination in the configuration."""


class RequestError(DLMError, ValueError):
    """A request that cannot be decoded as asked."""


class DataError(DLMError):
    """A prompt file, or one row of it, that cannot be used."""


class CheckpointError(DLMError):
    """A checkpoint that cannot be loaded as asked."""


class NotFiniteError(DLMError):
    """A model's logits are nan or infinite at a position that is read."""


class MissingExtraError(DLMError, ImportError):
    """An optional package is needed and absent; the message holds the install command."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'dlm[{extra}]'")


class RunError(DLMError):
    """A run that could not go on. Answers already written stay where they are."""


class IncompleteRunError(RunError):
    """Some prompts have no answer yet."""
