"""Inputs that an attacker might give, made from valid ones by mutation; `tests.fuzz_checkpoints` runs them."""
