"""`step-train fit` and `sweep`: the scorer's training."""
