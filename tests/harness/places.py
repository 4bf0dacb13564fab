"""Where things of this checkout are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "checkpoints" / "ledger-5m"
"""The demo model."""
SCORER = CHECKPOINT / "scorer" / "scorer.safetensors"
"""Its scorer."""
