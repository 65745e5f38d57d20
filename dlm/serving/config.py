"""The schema of `conf/serve.yaml`, and its conversion to server settings; all faults are reported at once."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from dlm.config.build import instantiate, optional
from dlm.errors import ConfigError, RequestError
from dlm.sampling_params import SamplingParams
from dlm.serving.engine.defaults import Defaults
from dlm.serving.settings import (
    KEY_VARIABLE,
    POLICIES,
    ROUTERS,
    FleetSettings,
    Identity,
    ServerSettings,
    api_key,
    near,
)

if TYPE_CHECKING:
    from dlm.models.io.model_source import ModelSource

FORMATS = ("text", "json")
EACH_REQUEST = ("algorithm", "max_tokens", "seed", "n", "record", "stop")
"""Fields without a server default: set per request, or by another key."""


Generation = optional("ServedGeneration", SamplingParams, EACH_REQUEST)


@dataclass
class ServeConfig:
    """`conf/serve.yaml`."""

    model: Any = MISSING
    algorithm: str = "auto"
    names: list[str] | None = None
    generation: Generation = field(default_factory=Generation)  # type: ignore[valid-type]  # made above
    host: str = "127.0.0.1"
    port: int = 8000
    devices: int = 1
    router: str = "auto"
    worker_urls: list[str] = field(default_factory=list)
    first_worker: int = 0
    start_timeout: float = 1800.0
    gpu_ids: list[int] | None = None
    worker_base_port: int = 8001
    policy: str = "round_robin"
    health_check_interval: float = 30.0
    run_dir: str | None = None
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
    weight_control: bool = False
    log_format: str = "text"


def register() -> None:
    """Register the schema with Hydra."""
    ConfigStore.instance().store(group="schema", name="serve", node=ServeConfig)


def to_settings(config: DictConfig) -> ServerSettings:
    """Validated settings of a worker. Raises `ConfigError` listing every fault."""
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
        faults.append(f"max_model_len={values['max_model_len']}: must be at least 1, or null for the model's limit")
    for key in ("start_timeout", "request_timeout", "max_body_mib", "header_timeout", "drain_timeout", "result_ttl"):
        if not 0 < values[key] < math.inf:
            faults.append(f"{key}={values[key]}: must be above 0, and finite")
    if not 0 < values["gpu_memory_utilization"] <= 1:
        faults.append(f"gpu_memory_utilization={values['gpu_memory_utilization']}: must be above 0 and at most 1")
    if not 0 <= values["port"] < 2**16:
        faults.append(f"port={values['port']}: must be 0..65535; 0 picks a free port")
    faults += _fleet_faults(values) + _key_faults(values)
    if values["log_format"] not in FORMATS:
        faults.append(f"log_format={values['log_format']}: choose one of {', '.join(FORMATS)}")
    if faults:
        raise ConfigError("\n  ".join(["the server cannot be started:", *faults]))
    known = {one.name for one in fields(ServerSettings)}
    chosen = {key: value for key, value in values.items() if key in known}
    names = values["names"] or served_names(config.model)
    one = Identity.here()
    fleet: dict[str, Any] = {}
    if one is not None:
        fleet = {"index": one.index, "workers": one.workers, "peers": one.peers, "behind_router": True}
    lists = {"names": tuple(names), "cors_origins": tuple(values["cors_origins"])}
    return ServerSettings(**{**chosen, "generation": generation, **lists, **fleet})


def _fleet_faults(values: dict[str, Any]) -> list[str]:
    faults = []
    devices, ids, router, port = values["devices"], values["gpu_ids"], values["router"], values["port"]
    alone = router == "auto" and devices == 1
    if router not in ROUTERS:
        faults.append(f"router={router}: choose one of {', '.join(ROUTERS)}")
    if devices < 1:
        faults.append(f"devices={devices}: must be at least 1")
    if ids is not None and alone:
        faults.append(f"gpu_ids={ids}: applies to devices=2 or more; for a single worker write device=cuda:<n>")
    elif ids is not None and router != "only" and (len(ids) != devices or len(set(ids)) != len(ids) or min(ids) < 0):
        faults.append(f"gpu_ids={ids}: name {devices} different GPUs, one for each of devices={devices}")
    if router != "none" and not alone and port == 0:
        faults.append("port=0: the router needs a port; write port=<port>")
    last = values["worker_base_port"] + devices - 1
    if not 1 <= values["worker_base_port"] <= last < 2**16:
        faults.append(f"worker_base_port={values['worker_base_port']}: it and the ports after it must be 1..65535")
    elif router == "auto" and devices > 1 and values["worker_base_port"] <= port <= last:
        faults.append(f"port={port}: worker {port - values['worker_base_port']} uses it; change one")
    if values["policy"] not in POLICIES:
        faults.append(f"policy={values['policy']}: choose one of {', '.join(POLICIES)}")
    if not 0 < values["health_check_interval"] < math.inf:
        faults.append(f"health_check_interval={values['health_check_interval']}: must be above 0, and finite")
    return faults + _url_faults(values)


def _key_faults(values: dict[str, Any]) -> list[str]:
    """Faults of the key, and of `weight_control`, which requires one."""
    faults, key = [], None
    try:
        key = api_key()
    except ConfigError as error:
        faults.append(str(error))
    if not values["weight_control"]:
        return faults
    if key is None and not faults:
        faults.append(f"weight_control=true needs a key: set {KEY_VARIABLE} in the environment")
    if values["devices"] > 1 or values["router"] != "auto" or Identity.here() is not None:
        faults.append(
            "weight_control=true: the weights of several workers would diverge, and a restarted worker would have the "
            "initial ones; use devices=1 and router=auto, one server per device"
        )
    return faults


def _url_faults(values: dict[str, Any]) -> list[str]:
    """Faults of `worker_urls` and `first_worker`."""
    urls, first, router = values["worker_urls"], values["first_worker"], values["router"]
    if router == "only" and not urls:
        return ["router=only needs worker_urls: write worker_urls=[http://host:8001,...]"]
    if router == "auto" and urls:
        return ["worker_urls needs router=only (a router for these workers) or router=none (they share results)"]
    if first and (router != "none" or not urls):
        return [f"first_worker={first} needs router=none and worker_urls"]
    faults = []
    for url in urls:
        try:
            parts = urlsplit(url)
            good = parts.scheme == "http" and parts.hostname and parts.port and not parts.path
        except ValueError:
            good = False
        if not good:
            faults.append(f"worker_urls: {url} is not http://host:port")
    if len(set(urls)) != len(urls):
        faults.append("worker_urls: contains duplicates")
    if router == "none" and urls and not faults:
        mine = [urlsplit(url).port for url in urls[first:] if first >= 0][: values["devices"]]
        ports = [values["worker_base_port"] + index for index in range(values["devices"])]
        if mine != ports:
            faults.append(
                f"worker_urls from first_worker={first} on have the ports {mine}, but devices={values['devices']} and "
                f"worker_base_port={values['worker_base_port']} give {ports}; they must agree"
            )
    return faults


def check_algorithm(source: ModelSource, settings: ServerSettings) -> None:
    """Raise `ConfigError` if models of this family cannot run the server's algorithm; reads config.json only."""
    family, _ = source.traits()
    try:
        Defaults.of(family, None, settings.algorithm, settings.generation)
    except RequestError as error:
        raise ConfigError(f"algorithm={settings.algorithm}: {error}") from error


def to_fleet(config: DictConfig, settings: ServerSettings) -> FleetSettings:
    """Settings of a fleet, from a config that `to_settings` has validated."""
    run_dir = config.run_dir or f"outputs/serve/{time.strftime('%Y%m%d_%H%M%S')}"
    host = config.host if config.router == "none" else "127.0.0.1"
    own = [near(host, config.worker_base_port + index) for index in range(config.devices)]
    return FleetSettings(
        router=config.router,
        devices=config.devices,
        peers=tuple(config.worker_urls) or tuple(own),
        first_worker=config.first_worker,
        start_timeout=config.start_timeout,
        gpu_ids=tuple(config.gpu_ids or ()),
        host=config.host,
        port=config.port,
        worker_base_port=config.worker_base_port,
        policy=config.policy,
        health_check_interval=config.health_check_interval,
        request_timeout=settings.request_timeout,
        max_body_mib=settings.max_body_mib,
        header_timeout=settings.header_timeout,
        cors_origins=settings.cors_origins,
        model=settings.names[0],
        run_dir=run_dir,
    )


def served_names(model: DictConfig) -> list[str]:
    """Default names of a model: the last part of its path or id, unchanged and in lower case."""
    path = model.get("path") or model.get("base_model") or model.get("size") or "model"
    name = str(path).rstrip("/").rpartition("/")[2]
    return list(dict.fromkeys((name, name.lower())))
