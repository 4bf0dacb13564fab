"""How good a scorer is: metrics, baselines, votes, the training report."""
