"""From a command line to a checked configuration and a task: shared by the entry points.

Every argument is `key=value`. A run composes the configuration here; showing it (`--cfg job`), multirun (`-m`) and
shell completion are Hydra's own. Imports neither torch nor Lightning.

Exit codes: 0 done; 1 the run failed or is incomplete; 2 the configuration is wrong; 130 and 143 stopped by Ctrl-C and
SIGTERM.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dlm._paths import conf_dir
from dlm.cli.multirun import begin_job, end_sweep, one_after_the_other, separately
from dlm.cli.overrides import check_overrides
from dlm.config.checks import in_multirun
from dlm.config.schemas import register_schemas
from dlm.errors import ConfigError, DLMError
from dlm.runs.launch import is_launched

Task = Callable[[DictConfig, Sequence[str]], int]
"""Takes the configuration and the overrides it came from; returns the exit code."""

STOPPED = 128
"""Exit codes from here on are signals: who ends one job of a multirun with Ctrl-C means all of them."""

CHOSEN = r"^  - (?:override )?(\w+):"
"""Lines of a primary file that choose from a group."""

HELP = """{title}

usage: python -m {module} [key=value ...]

groups (group=choice):
{groups}

common keys:
{keys}

examples:
{examples}

also:
  --cfg job              the whole configuration as it would be used; -p sampler shows one part of it
  -m key=a,b             one run for each value, one after the other
  --config-dir folder    your own choices, in folders named like the groups
"""


def main(
    config_name: str,
    module: str,
    task: Task,
    title: str,
    keys: str,
    examples: str,
    register: Callable[[], None] = register_schemas,
) -> None:
    """Run `task` on the configuration that `sys.argv` asks for, and exit with its code.

    Args:
        config_name: primary file in `conf/`.
        module: what follows `python -m`.
        title, keys, examples: for `--help`.
        register: makes schemas known that only this program has; called when they are needed, which `--help` does not.
    """
    arguments = _parse(sys.argv[1:])
    if arguments.help:
        lines = [f"{group:<11} {', '.join(names)}" for group, names in _groups(config_name, module)]
        groups = "\n".join(textwrap.fill(line, 110, initial_indent="  ", subsequent_indent=" " * 14) for line in lines)
        print(HELP.format(title=title, module=module, groups=groups, keys=keys, examples=examples), end="")
        sys.exit(0)
    try:
        register()
        if arguments.passthrough:
            if arguments.multirun:
                check_overrides(arguments.overrides, sweeps=True)
                _check_sweep(config_name, arguments.overrides, arguments.config_dir)
            else:  # other words may be the values of Hydra's own flags
                check_overrides([word for word in arguments.overrides if "=" in word], sweeps=True)
            _hand_to_hydra(config_name, task)
            return
        config = compose_config(config_name, arguments.overrides, arguments.config_dir)
        if arguments.cfg:
            shown = config if arguments.package is None else _part(config, arguments.package)
            print(OmegaConf.to_yaml(shown, resolve=arguments.resolve), end="")
            sys.exit(0)
        sys.exit(task(config, tuple(arguments.overrides)))
    except DLMError as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def report(error: DLMError) -> int:
    """Print what went wrong, without a traceback, and return the exit code."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return 2 if isinstance(error, ConfigError) else 1


def compose_config(name: str, overrides: Sequence[str] = (), extra_dir: str | None = None) -> DictConfig:
    """The configuration `conf/<name>.yaml` with `overrides`, its keys and types checked.

    Raises:
        ConfigError: names the key, the value and what to write instead.
    """
    for override in overrides:
        if re.match(r"[+~]*hydra[./]", override):
            raise ConfigError(f"{override!r}: hydra.* settings act with -m (multirun) alone; the folder is run_dir=")
    check_overrides(overrides, sweeps=False)
    with _hydra(extra_dir) as search:
        return _compose(name, [*overrides, *search])


def _check_sweep(name: str, overrides: Sequence[str], extra_dir: str | None) -> None:
    """Compose each job of a multirun, so that a wrong key is told in our words before the first job begins."""
    with _hydra(extra_dir) as search:
        for job in _jobs(overrides):
            _compose(name, [*job, *search])


@contextmanager
def _hydra(extra_dir: str | None) -> Iterator[list[str]]:
    """Hydra made ready to compose from `conf/`; the value is the override that makes it look into `extra_dir` too."""
    register_schemas()
    if extra_dir is not None and not Path(extra_dir).is_dir():
        raise ConfigError(f"--config-dir {extra_dir!r} is no folder")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield [] if extra_dir is None else [f"hydra.searchpath=[file://{Path(extra_dir).resolve()}]"]


def _compose(name: str, overrides: list[str]) -> DictConfig:
    plain = [one for one in overrides if one.partition("=")[0] in _plain_keys(name)]
    try:
        config = compose(name, overrides=[one for one in overrides if one not in plain])
        config.merge_with_dotlist(plain)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(_explain(error, name, overrides)) from error
    _refuse_unknown(config)
    return config


def _plain_keys(name: str) -> set[str]:
    """Keys of the primary file with one value and the name of another program's group: Hydra takes `key=value` for a
    choice of that group, wherever there is a folder of the name."""
    text = (conf_dir() / f"{name}.yaml").read_text()
    keys = set(re.findall(r"^(\w+): *[^\s#]", text, re.MULTILINE))
    chosen = set(re.findall(CHOSEN, text, re.MULTILINE))
    return {key for key in keys - chosen if (conf_dir() / key).is_dir()}


def _jobs(overrides: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The overrides of each job of a grid; an interval is left out, since only a sweeper can say what it holds."""
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(overrides))
    choices = []
    for override, text in zip(parsed, overrides, strict=True):
        if override.is_discrete_sweep():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        elif not override.is_sweep_override():
            choices.append([text])
    return itertools.product(*choices)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Flags of our own; whatever else starts with a dash goes to Hydra untouched."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--package", "-p")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    arguments, rest = parser.parse_known_args(argv)
    arguments.overrides = [word for word in rest if not word.startswith("-")]
    flags = {word for word in rest if word.startswith("-")}
    arguments.multirun = bool(flags) and flags <= {"-m", "--multirun"}
    arguments.passthrough = len(arguments.overrides) != len(rest) or arguments.cfg in ("hydra", "all")
    if arguments.package is not None and arguments.cfg is None:
        arguments.cfg = "job"
    return arguments


def _hand_to_hydra(config_name: str, task: Task) -> None:
    """Multirun, shell completion, `--info` and the like."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    register_schemas()
    failed: list[tuple[int, str]] = []
    folders: list[Path] = []

    def job(config: DictConfig) -> None:
        words = tuple(HydraConfig.get().overrides.task)
        if in_multirun():
            folders.extend(begin_job(config, words))

        def work() -> int:
            try:
                _refuse_unknown(config)
                return task(config, words)
            except DLMError as error:
                return report(error)

        code = separately(work) if one_after_the_other() and not is_launched() else work()
        if code and code < STOPPED and one_after_the_other():
            failed.append((code, quoted(words)))  # the other jobs go on
        elif code:
            sys.exit(code)

    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)()
    code = end_sweep(folders, failed)
    if code:
        sys.exit(code)


def _part(config: DictConfig, package: str) -> DictConfig:
    part = OmegaConf.select(config, package)
    if not isinstance(part, DictConfig):
        raise ConfigError(f"-p {package!r} is no part of the configuration{_nearest(package, map(str, config))}")
    return OmegaConf.masked_copy(config, [package]) if "." not in package else part


def _groups(config_name: str, module: str) -> Iterator[tuple[str, list[str]]]:
    """The groups that the primary file chooses from, with the choices in `conf/` that are not for another program."""
    foreign = re.compile(rf"^# python -m (?!{re.escape(module)}\b)", re.MULTILINE)
    chosen = re.findall(CHOSEN, (conf_dir() / f"{config_name}.yaml").read_text(), re.MULTILINE)
    for group in chosen:
        folder = conf_dir() / group
        files = [path for path in sorted(folder.rglob("*.yaml")) if not foreign.search(path.read_text())]
        names = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
        if names:
            yield group, names


def _refuse_unknown(config: DictConfig) -> None:
    unknown = [f"{path} is no key: {remedy}" for path, remedy in _unknown_keys(config)]
    if unknown:
        raise ConfigError("; ".join(unknown))


def _unknown_keys(node: DictConfig, path: str = "") -> Iterator[tuple[str, str]]:
    """Keys that no schema has: what `+key=value` puts beside the ones that are read."""
    schema = OmegaConf.get_type(node)
    known = getattr(schema, "__dataclass_fields__", None)
    for key in map(str, node):
        name = f"{path}{key}"
        if known is not None and key not in known:
            yield name, _nearest(key, known, path).removeprefix("; ") or "leave it out"
        elif not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key):
            child = node[key]
            if isinstance(child, DictConfig):
                yield from _unknown_keys(child, f"{name}.")


def _nearest(word: str, known: Iterable[str], path: str = "") -> str:
    words = [name for name in known if not name.startswith("_")]
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {path}{close[0]}?"
    return f"; known here: {', '.join(path + name for name in words)}" if words else ""


def _elsewhere(name: str, key: str) -> str:
    """Where a key of how answers are decoded is, when it was looked for elsewhere: `sampler.steps`, for instance."""
    last = key.rpartition(".")[2]
    there = last in (compose(name).get("generation") or ())
    return f"; did you mean generation.{last}?" if there and key != f"generation.{last}" else ""


def _explain(error: Exception, name: str, overrides: Sequence[str]) -> str:
    """Hydra's message in our words: the path, the value and the remedy."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, MissingConfigException):
        return _explain_choice(error)
    first = str(error).splitlines()[0]
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        key, reason = cause.full_key, str(cause).splitlines()[0]
        given = next((o for o in overrides if o.split("=")[0].lstrip("+~") == key), None)
        if "not in" in reason:
            parent, _, last = key.rpartition(".")
            known: dict[str, Any] = getattr(cause.object_type, "__dataclass_fields__", {})
            path = f"{parent}." if parent else ""
            return f"{given or key}: {key} is no key{_elsewhere(name, key) or _nearest(last, known, path)}"
        return f"{given or key}: {reason}"
    match = re.match(r"Could not override '([^']+)'\. No match in the defaults list", first)
    if match:
        groups = [group for group, _ in _groups(name, f"dlm.{name}")]
        return f"{match[1]} is no group{_nearest(match[1], groups)}"
    return " ".join(str(error).split("See https://")[0].split())


def _explain_choice(error: MissingConfigException) -> str:
    missing = error.missing_cfg_file or ""
    group, _, choice = missing.rpartition("/")
    options = [option for option in error.options or [] if "/" not in option]
    if not group:
        return str(error).splitlines()[0]
    close = difflib.get_close_matches(choice, options, n=1, cutoff=0.5)
    hint = f"; did you mean {group}={close[0]}?" if close else ""
    return f"{group}={choice} is no choice{hint} (choices: {', '.join(options) or 'none'})"


def quoted(words: Sequence[str]) -> str:
    """Words as one line that a shell reads back."""
    import shlex

    return " ".join(shlex.quote(word) for word in words)


def program(module: str) -> list[str]:
    """How this program was started, so that it can be named in a command to type again."""
    script = Path(sys.argv[0])
    if script.name.startswith("dlm-") and os.access(script, os.X_OK):
        return [script.name]
    return ["python", "-m", module]
