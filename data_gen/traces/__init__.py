"""The trace files: tables, features, their directory and its writer."""
