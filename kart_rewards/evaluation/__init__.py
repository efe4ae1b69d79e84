"""Whole episodes, and statistics of them."""
