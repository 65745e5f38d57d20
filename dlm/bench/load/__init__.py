"""Load on servers: requests over HTTP, by closed and open loop, and what their clients see.

    python -m dlm.bench target=server url=http://127.0.0.1:8000
    python -m dlm.bench target=server url=[http://a:8000,http://b:8000]     # by turns in one run, with ratios
    python -m dlm.bench target=server compare=batching                     # starts two servers itself

Reading order: `bodies` (what is sent), `target` (one server, and one request to it), `drive` (when it is sent),
`figures` (what follows), `servers` (those that the bench starts), `run`, `report`.
"""
