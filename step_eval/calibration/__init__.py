"""Calibrating the stop rule `likely` on recorded traces."""
