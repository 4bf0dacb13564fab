"""The page at /step: the voted calls of a server as they run."""
