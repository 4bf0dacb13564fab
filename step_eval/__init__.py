"""Every comparison: methods, evaluation, recorded traces, replay, simulation, reports."""
