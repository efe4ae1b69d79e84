"""What a training run needs besides the algorithm."""
