"""Searching for behaviour that earns more than what the author wants, for ``kart-rewards audit``."""
