"""Our own part of a Lightning checkpoint: plain data under one key, all that an export needs."""

RECORD_KEY = "step_scorer"
"""Key of the record in a checkpoint."""

SUBSPACE_KEY = "step_scorer_subspace"
"""Key of the subspace's tensors, in checkpoints of a run with `components`."""

RECORD_SCHEMA_VERSION = 1
"""Version of the record's form."""

IMPORTED = "imported"
"""Key of a card's training summary that says where an imported scorer comes from."""
