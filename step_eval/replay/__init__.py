"""Recorded traces on real engines in the shape of other models: real time without real text."""
