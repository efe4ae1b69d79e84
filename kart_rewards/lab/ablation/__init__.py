"""Training with and without reward terms, for ``kart-rewards ablate``."""
