"""What every test starts from."""

from collections.abc import Iterator

import pytest
from vllm_log import untouched_vllm_log


@pytest.fixture(autouse=True)
def vllm_log() -> Iterator[None]:
    """Let no test see which engines ran before it in its process."""
    with untouched_vllm_log():
        yield
