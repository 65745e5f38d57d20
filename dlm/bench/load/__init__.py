"""Load tests of servers: requests over HTTP, in closed and open loop, and what the clients see.

    python -m dlm.bench target=server url=http://127.0.0.1:8000
    python -m dlm.bench target=server url=[http://a:8000,http://b:8000]     # alternating in one run, with ratios
    python -m dlm.bench target=server compare=batching                     # starts two servers itself

Reading order: `bodies` (what is sent), `target` (one server, and one request to it), `drive` (when requests are sent),
`figures` (the results), `servers` (those that the bench starts), `run`, `report`.
"""

__all__ = ["bodies", "config", "drive", "figures", "report", "run", "servers", "target"]
