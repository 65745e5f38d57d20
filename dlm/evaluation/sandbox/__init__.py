"""The two processes that judge a program written by a model; `dlm.evaluation.sandbox.run` starts them.

`program` runs the program. `judge` runs the tests and decides the verdict; it calls the program's functions through
`peer`, which passes values (`values`), not objects. Both processes first give up their rights (`rights`, using the
system call filter in `syscalls` and the file rules in `landlock`).

Standard library only: `start` loads these modules without the rest of the package.
"""

__all__ = ["judge", "landlock", "peer", "program", "rights", "run", "start", "syscalls", "values"]
