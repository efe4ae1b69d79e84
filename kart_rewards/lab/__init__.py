"""Experiments with rewards: drives, and what a reward pays for on them."""
