"""Bringing a game: its ROM, start states, variables and checks."""
