"""Hold some waiting requests back for one call of vLLM's scheduler, and leave all others alone.

No vLLM import: a queue is any of vLLM's request queues, first come first served or by priority.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def held_back(queues: Iterable[Any], holds: Callable[[Any], bool]) -> Iterator[int]:
    """Take requests out of the waiting queues, and put them back in their places afterwards.

    Args:
        queues: the scheduler's waiting queues.
        holds: says whether a request is held back.

    Returns:
        How many are held back.
    """
    taken: list[tuple[Any, list[Any], set[Any]]] = []
    for queue in queues:
        order = list(queue)
        held = {request for request in order if holds(request)}
        if held:
            queue.remove_requests(held)
            taken.append((queue, order, held))
    try:
        yield sum(len(held) for _, _, held in taken)
    finally:
        for queue, order, held in taken:
            left = list(queue)
            queue.remove_requests(left)
            known, waiting = set(order), held.union(left)
            returned = [request for request in left if request not in known]  # preempted meanwhile
            for request in returned + [request for request in order if request in waiting]:
                queue.add_request(request)
