"""Serve a model over HTTP: `python -m dlm.serve` (see `--help`)."""

from __future__ import annotations

import os
from collections.abc import Sequence

from omegaconf import DictConfig

TITLE = "Serve a diffusion language model: OpenAI's API, submit and poll, and a page at /."
KEYS = """\
  model=checkpoint model.path=folder       a checkpoint of yours, or a hub id with model.revision=commit
  model.dcp_path=folder                    weights of a torch.distributed checkpoint, with model.base_model=folder
  algorithm=auto                           of requests that name none
  host=127.0.0.1 port=8000                 where it listens
  devices=2 worker_base_port=8001          workers, one a GPU (or a CPU process), behind a router on port
  router=none, router=only                 several machines: workers alone, or a router for worker_urls=[...]
  batch_size=8                             sequences decoded at once
  max_wait_time=0                          seconds that the oldest request waits for others
  request_timeout=300                      seconds until a request is given up
  generation.threshold=0.9                 defaults of requests
  weight_control=true                      new weights, pauses and sleep over HTTP, for whoever has the key
  DLM_API_KEY (environment)                the key that clients must show"""
EXAMPLES = """\
  python -m dlm.serve
  python -m dlm.serve model=llada_8b_instruct algorithm=dinfer_hierarchy batch_size=16
  DLM_API_KEY=$(cat key) python -m dlm.serve model=checkpoint model.path=folder host=0.0.0.0"""


def main() -> None:
    """The command line."""
    from dlm.cli.command_line import main as command_line

    command_line("serve", "dlm.serve", run, TITLE, KEYS, EXAMPLES, register)


def register() -> None:
    """Make the schemas known; they are mirrored from what is built with torch, which is imported here."""
    from dlm.serving import config

    config.register()


def run(config: DictConfig, overrides: Sequence[str]) -> int:
    """Serve until told to stop; returns the exit code."""
    from dlm.config.build import instantiate
    from dlm.distributed.processes import die_with
    from dlm.serving.config import check_algorithm, to_fleet, to_settings
    from dlm.serving.settings import Identity

    settings, source = to_settings(config), instantiate(config.model)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from dlm.serving.fleet.processes import bind
        from dlm.serving.fleet.supervisor import Fleet
        from dlm.serving.fleet.worker import serve
    except ModuleNotFoundError as error:
        from dlm.errors import MissingExtraError

        raise MissingExtraError(str(error.name), "serve", "the server") from error
    one = Identity.here()
    if one is not None:
        die_with(one.parent)
    if config.router != "only":
        check_algorithm(source, settings)
    if one is None and (config.devices > 1 or config.router != "auto"):
        if config.router != "only":
            source.tokenizer_folder()  # what has to be fetched is fetched once
        return Fleet(to_fleet(config, settings), overrides, settings.drain_timeout).run()
    return serve(source, settings, bind(config.host, config.port))


if __name__ == "__main__":
    main()
