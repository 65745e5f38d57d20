"""A distributed checkpoint as a Hugging Face folder, or the reverse: `python -m dlm.convert output=<folder>`.

Names and shapes are checked against the model's family before anything is written, and tensors go through memory one
at a time. The new folder holds configuration and tokenizer too; those of a DCP folder serve as its base_model.
"""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from dlm.cli import command_line
from dlm.config.build import instantiate
from dlm.errors import ConfigError, RunError

TITLE = "Convert a checkpoint: torch.distributed.checkpoint (DCP) to a Hugging Face folder, or the reverse."
KEYS = """\
  model.dcp_path=folder                    a DCP folder; with
  model.base_model=folder                  the folder or hub id of its configuration and tokenizer
  model.path=folder                        instead: a Hugging Face folder, or a hub id with model.revision=commit
  model.adapter_path=folder                a LoRA adapter (PEFT) to merge
  model.dtype=bfloat16                     cast the weights; auto keeps them as they are stored
  output=folder                            the folder to make
  format=hf                                hf or dcp, where it is not the other one
  shard_gib=4                              size of a file of weights"""
EXAMPLES = """\
  python -m dlm.convert model.dcp_path=step_1000 model.base_model=GSAI-ML/LLaDA-8B-Instruct model.revision=08b83a6f \\
      output=llada-tuned
  python -m dlm.convert model.path=llada-tuned output=llada-tuned-dcp
  python -m dlm.convert model.path=llada model.adapter_path=lora format=hf output=llada-merged"""

FORMATS = ("hf", "dcp")


def main() -> None:
    command_line.main("convert", "dlm.convert", run, TITLE, KEYS, EXAMPLES)


def run(config: DictConfig, overrides: Sequence[str]) -> int:
    """Convert; returns the exit code."""
    _check(config)
    import time
    from pathlib import Path

    from dlm.models.io.export import WRITERS, copy_config, new_folder
    from dlm.models.io.loading import DTYPES

    begun = time.monotonic()
    source = instantiate(config.model)
    output = Path(config.output).expanduser()
    form = config.format or ("hf" if source.dcp_path is not None else "dcp")
    dtype = None if source.dtype == "auto" else DTYPES[source.dtype]
    tensors = source.tensors(dtype)
    try:
        with new_folder(output) as folder:
            copy_config(source.folder(), folder, dtype)
            WRITERS[form](tensors, folder, int(config.shard_gib * 2**30), print)
    except OSError as error:
        raise RunError(f"output={output} cannot be written: {error}") from error
    size = sum(map(tensors.num_bytes, tensors.names())) / 2**30
    print(f"{output}: {len(tensors.names())} tensors, {size:.3f} GiB, {form}, {time.monotonic() - begun:.1f} s")
    return 0


def _check(config: DictConfig) -> None:
    """Raise `ConfigError` with every fault at once."""
    from dlm.models.io.model_source import CheckpointSource

    source, faults = instantiate(config.model), []
    if not isinstance(source, CheckpointSource):
        faults.append("model: only checkpoints are converted; write model=checkpoint model.path=<folder>")
    else:
        faults += source.faults()
        if source.drafter_adapter_path is not None:
            faults.append(
                f"model.drafter_adapter_path={source.drafter_adapter_path}: a drafter's adapter is not merged; leave "
                "it out, or write model.adapter_path"
            )
    if OmegaConf.is_missing(config, "output"):
        faults.append("output is not set: write output=<new folder>")
    if config.format is not None and config.format not in FORMATS:
        faults.append(f"format={config.format}: choose one of {', '.join(FORMATS)}")
    if not config.shard_gib > 0:
        faults.append(f"shard_gib={config.shard_gib}: must be above 0")
    if faults:
        raise ConfigError("\n  ".join(["nothing can be converted:", *faults]))


if __name__ == "__main__":
    main()
