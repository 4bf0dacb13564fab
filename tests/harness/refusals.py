"""A refusal as a user reads it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from step_infer.errors import InputError


def refusal(call: Callable[..., object], folder: Path | None = None) -> str:
    """Return the whole text of the `InputError` that a call raises.

    Args:
        call: takes the folder, where there is one.
        folder: stands as TMP in the text.
    """
    with pytest.raises(InputError) as caught:
        call(*[] if folder is None else [folder])
    return str(caught.value) if folder is None else str(caught.value).replace(str(folder), "TMP")
