"""The scheduler and its memory without an engine: what methods would gain at other sizes."""
