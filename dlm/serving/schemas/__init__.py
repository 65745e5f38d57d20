"""Bodies of requests and responses, and the OpenAPI document made from them."""

__all__ = [
    "catalogue",
    "control_requests",
    "control_responses",
    "descriptions",
    "openapi",
    "requests",
    "responses",
    "unsupported_params",
]
