"""Questions, traces and their features: everything that is made before training."""
