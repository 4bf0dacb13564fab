"""Recorded traces: what a replay or a simulation needs of them, and the files that hold them."""
