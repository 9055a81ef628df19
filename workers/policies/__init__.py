"""Who acts in an episode: a model, the reference solution, or nobody."""
