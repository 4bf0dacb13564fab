"""Files on disk: atomic writes, checksums, and the directory of a run."""
