"""The page of ``kart-rewards lab``."""
