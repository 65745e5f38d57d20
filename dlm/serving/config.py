"""The schema of `conf/serve.yaml`, and from its values to those of the server, all faults at once."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from dlm.config import instantiate
from dlm.errors import ConfigError, RequestError
from dlm.sampling import SamplingParams
from dlm.serving.settings import ServerSettings

FORMATS = ("text", "json")
EACH_REQUEST = ("algorithm", "max_tokens", "seed", "n", "record", "stop")
"""What is no default of a server: each request says it for itself, or has it from another key."""


def _generation() -> type[Any]:
    hints = get_type_hints(SamplingParams)
    names = [one.name for one in fields(SamplingParams) if one.name not in EACH_REQUEST]
    rows: list[Any] = [(name, hints[name] | None, field(default=None)) for name in names]
    return make_dataclass("ServedGeneration", rows)


Generation = _generation()


@dataclass
class ServeConfig:
    """`conf/serve.yaml`."""

    model: Any = MISSING
    algorithm: str = "auto"
    names: list[str] | None = None
    generation: Generation = field(default_factory=Generation)  # type: ignore[valid-type]  # made above
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    batch_size: int = 8
    max_wait_time: float = 0.0
    max_num_batched_tokens: int = 8192
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool = False
    queue_size: int = 1024
    request_timeout: float = 300.0
    max_body_mib: float = 4.0
    header_timeout: float = 20.0
    drain_timeout: float = 30.0
    result_ttl: float = 3600.0
    cors_origins: list[str] = field(default_factory=list)
    log_format: str = "text"


def register() -> None:
    """Make the schema known to Hydra."""
    ConfigStore.instance().store(group="schema", name="serve", node=ServeConfig)


def to_settings(config: DictConfig) -> ServerSettings:
    """The checked values of a worker. Raises `ConfigError` with every fault."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError("; ".join(f"{key} is not set: write {key}=<value>" for key in missing))
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # str keys
    source, faults = instantiate(config.model), []
    faults += source.faults()
    generation = {key: value for key, value in values["generation"].items() if value is not None}
    try:
        SamplingParams(**generation)
    except RequestError as error:
        faults.append(f"generation.{error}")
    for key, least in {"batch_size": 1, "max_num_batched_tokens": 1, "queue_size": 0, "max_wait_time": 0}.items():
        if values[key] < least:
            faults.append(f"{key}={values[key]}: must be at least {least}")
    if values["max_model_len"] is not None and values["max_model_len"] < 1:
        faults.append(f"max_model_len={values['max_model_len']}: must be at least 1, or null for what the model has")
    for key in ("request_timeout", "max_body_mib", "header_timeout", "drain_timeout", "result_ttl"):
        if not values[key] > 0:
            faults.append(f"{key}={values[key]}: must be above 0")
    if not 0 < values["gpu_memory_utilization"] <= 1:
        faults.append(f"gpu_memory_utilization={values['gpu_memory_utilization']}: must be above 0 and at most 1")
    if not 0 <= values["port"] < 2**16:
        faults.append(f"port={values['port']}: must be 0..65535; 0 takes a free one")
    if values["log_format"] not in FORMATS:
        faults.append(f"log_format={values['log_format']}: choose one of {', '.join(FORMATS)}")
    if faults:
        raise ConfigError("\n  ".join(["the server cannot be started:", *faults]))
    known = {one.name for one in fields(ServerSettings)}
    chosen = {key: value for key, value in values.items() if key in known}
    names = values["names"] or served_names(config.model)
    return ServerSettings(
        **{**chosen, "generation": generation, "names": tuple(names), "cors_origins": tuple(values["cors_origins"])}
    )


def served_names(model: DictConfig) -> list[str]:
    """What a model is called where nobody says: the last part of its path or id, as it is and in lower case."""
    path = model.get("path") or model.get("base_model") or model.get("size") or "model"
    name = str(path).rstrip("/").rpartition("/")[2]
    return list(dict.fromkeys((name, name.lower())))
