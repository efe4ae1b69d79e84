"""For people who watch a game: the text panel, driving by hand, and trained agents."""
