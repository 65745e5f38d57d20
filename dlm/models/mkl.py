"""MKL's strict mode, in which a row's bits depend neither on the number of rows nor on threads. Imports no torch."""

from __future__ import annotations

import os

VARIABLE, STRICT = "MKL_CBWR", "AUTO,STRICT"


def request_strict_products() -> None:
    """Ask for the mode, unless the environment already says otherwise (`MKL_CBWR=AUTO` declines it).

    MKL reads the variable at the first product of the process; a later request is ignored without a word, as it is by
    other libraries. What holds in either case is found out by `dlm.models.arithmetic`.
    """
    os.environ.setdefault(VARIABLE, STRICT)
