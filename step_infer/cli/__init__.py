"""The toolkit's commands: options from dataclasses, exit codes, progress."""
