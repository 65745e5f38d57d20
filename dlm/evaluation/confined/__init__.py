"""The two processes in which a program that a model wrote is judged; `dlm.evaluation.sandbox` starts them.

`program` runs the program. `judge` runs the tests and holds the verdict; it calls the program's functions through
`peer`, and only values (`values`) come back. Both give up their rights first (`rights`, with the filter of
`syscalls` and the file rules of `landlock`).

Standard library only: `start` runs here without the rest of the package.
"""
