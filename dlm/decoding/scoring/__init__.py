"""From hidden states to what each canvas writes: proposals for the candidates, statistics, and the selection."""

__all__ = ["proposals", "rows", "score_request", "selection", "token_stats", "tracking"]
