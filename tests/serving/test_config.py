"""What `dlm.serve` refuses before it starts anything, all faults at once."""

from __future__ import annotations

import pytest

from dlm.cli.command_line import compose_config
from dlm.errors import ConfigError
from dlm.serving.config import register, to_fleet, to_settings
from dlm.serving.settings import KEY_VARIABLE, api_key

TWO = "worker_urls=[http://a:8001,http://b:8001]"

FAULTS = {
    "router=maybe": "router=maybe: choose one of auto, none, only",
    "devices=0": "devices=0: must be at least 1",
    "devices=2 port=0": "port=0: the router needs a port",
    "devices=2 port=8002": "port=8002: worker 1 uses it",
    "devices=2 gpu_ids=[0]": "gpu_ids=[0]: name 2 different GPUs",
    "devices=2 gpu_ids=[1,1]": "gpu_ids=[1, 1]: name 2 different GPUs",
    "gpu_ids=[0]": "gpu_ids=[0]: applies to devices=2 or more; for a single worker write device=cuda:<n>",
    "worker_base_port=65535 devices=2": "worker_base_port=65535: it and the ports after it must be 1..65535",
    "policy=best": "policy=best: choose one of round_robin",
    "health_check_interval=0": "health_check_interval=0.0: must be above 0",
    "start_timeout=0": "start_timeout=0.0: must be above 0",
    "router=only": "router=only needs worker_urls",
    TWO: "worker_urls needs router=only",
    "first_worker=1": "first_worker=1 needs router=none and worker_urls",
    "router=only worker_urls=[a:8001]": "worker_urls: a:8001 is not http://host:port",
    "router=only worker_urls=[http://a]": "worker_urls: http://a is not http://host:port",
    "router=only worker_urls=[http://a:1,http://a:1]": "worker_urls: contains duplicates",
    f"router=none {TWO} first_worker=2": "have the ports [], but devices=1 and worker_base_port=8001 give [8001]",
    f"router=none {TWO} worker_base_port=9001": "have the ports [8001], but devices=1 and worker_base_port=9001",
    "port=70000": "port=70000: must be 0..65535",
    "batch_size=0": "batch_size=0: must be at least 1",
    "generation.temperature=3": "generation.temperature=3",
    "request_timeout=inf": "request_timeout=inf: must be above 0, and finite",
    "max_body_mib=nan": "max_body_mib=nan: must be above 0, and finite",
    "log_format=xml": "log_format=xml: choose one of text, json",
}


@pytest.mark.parametrize("given", FAULTS)
def test_a_fault_is_named(given: str) -> None:
    register()
    with pytest.raises(ConfigError) as caught:
        to_settings(compose_config("serve", given.split()))
    assert FAULTS[given] in str(caught.value)


def test_all_faults_are_told_at_once() -> None:
    register()
    with pytest.raises(ConfigError, match=r"(?s)port=-1.*policy=best"):
        to_settings(compose_config("serve", ["port=-1", "policy=best"]))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("k ", "begins or ends with white space"),
        ("\tk", "begins or ends with white space"),
        ("k\n", "begins or ends with white space"),
        (" ", "begins or ends with white space"),
        ("k\xa0", "begins or ends with white space"),
        ("k\u00e9y", r"character 2 of 3 is '\xe9'"),
        ("k\udce9y", r"character 2 of 3 is '\udce9'"),
        ("k\x7fy", r"character 2 of 3 is '\x7f'"),
        ("k\x01y", r"character 2 of 3 is '\x01'"),
        ("\U0001f511", "character 1 of 1 is"),
    ],
)
def test_a_key_that_no_client_can_send_is_refused_at_the_start(
    key: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register()
    monkeypatch.setenv(KEY_VARIABLE, key)
    for given in ([], ["weight_control=true"]):
        with pytest.raises(ConfigError, match="cannot be started") as caught:
            to_settings(compose_config("serve", given))
        assert f"{KEY_VARIABLE}" in str(caught.value)
        assert said in str(caught.value)
        assert len(str(caught.value).splitlines()) == 2


def test_keys_that_clients_can_send_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("k", "a b", "~!@#$%^&*()_+-=[]{};:'\"<>,.?/|", "x" * 4096):
        monkeypatch.setenv(KEY_VARIABLE, key)
        assert api_key() == key
    monkeypatch.setenv(KEY_VARIABLE, "")
    assert api_key() is None


@pytest.mark.parametrize(
    ("given", "peers", "host"),
    [
        ("devices=2 host=0.0.0.0", ("http://127.0.0.1:8001", "http://127.0.0.1:8002"), "127.0.0.1"),
        ("devices=2 router=none host=0.0.0.0", ("http://127.0.0.1:8001", "http://127.0.0.1:8002"), "0.0.0.0"),
        ("router=none host=10.0.0.7", ("http://10.0.0.7:8001",), "10.0.0.7"),
        (f"router=none {TWO} first_worker=1 host=0.0.0.0", ("http://a:8001", "http://b:8001"), "0.0.0.0"),
    ],
)
def test_workers_are_where_the_others_look_for_them(given: str, peers: tuple[str, ...], host: str) -> None:
    register()
    config = compose_config("serve", given.split())
    fleet = to_fleet(config, to_settings(config))
    assert (fleet.peers, fleet.worker_host) == (peers, host)
