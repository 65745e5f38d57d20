"""Tasks with questions and checkers: what they ask, how answers are read out of texts, and what the scores mean.

Importing this costs nothing: neither torch nor Lightning is loaded. `python -m dlm.evaluate` runs a task.
"""
