"""The command line: from what was typed to a checked configuration, `--help`, and several jobs from one line (`-m`)."""

__all__ = ["command_line", "multirun", "overrides"]
