"""Watching the game: the text panel, driving by hand, trained agents."""
