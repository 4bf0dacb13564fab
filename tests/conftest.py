"""What every test starts from, and in which order the files run."""

from collections.abc import Iterator

import pytest
import v2_on_cpu
from hypothesis import HealthCheck, settings
from vllm_log import untouched_vllm_log

# No example fails because the machine was busy with something else.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

if v2_on_cpu.asked_for():
    v2_on_cpu.switch_on()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let files that take long start first, so that none is left for the end, when others wait."""
    long = {
        item.path for item in items for name in ("engine", "slow") if item.get_closest_marker(name)
    }
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def vllm_log() -> Iterator[None]:
    """Let no test see which engines ran before it in its process."""
    with untouched_vllm_log():
        yield
