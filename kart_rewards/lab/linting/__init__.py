"""Finding mistakes in rewards, for ``kart-rewards lint``."""
