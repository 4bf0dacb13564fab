"""step-serve --share-groups: one server, two API keys, and groups of both."""

import pytest
from server_harness import serve
from two_callers import (
    KEYS,
    KV_BLOCKS,
    groups_of_every_route,
    pruned_beside_a_caller_who_keeps_all,
)

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    flags = ("--api-key", *KEYS, "--share-groups")
    with serve(tmp_path_factory.mktemp("server"), KV_BLOCKS, *flags) as running:
        yield running


def test_with_the_operators_flag_a_group_of_two_keys_is_one_on_every_route(server):
    groups = groups_of_every_route(server)
    # Without the middleware nobody overwrites what a client claims to be: a group of its own.
    assert groups["q1"] == 12
    assert sum(groups.values()) == 14


def test_with_the_operators_flag_a_min_keep_holds_for_the_traces_of_both(server):
    before = server.gauge("num_preemptions_total")
    assert pruned_beside_a_caller_who_keeps_all(server) == (0, False)
    assert server.gauge("num_preemptions_total") > before, "memory was never short"
