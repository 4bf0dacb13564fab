"""Several engines at once, on one machine or on a cluster, as Ray actors."""
