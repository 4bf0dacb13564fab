"""Training data: the traces' table, their features in blocks, subspaces."""
