"""Which rows of a step belong to which tokens, with tokens drafted for verification or without.

A step gives each request one row, and one more for each token that was drafted for it (speculative
decoding). A request's rows lie together, and requests follow the output's `req_ids`:

    row       first      first + 1   first + 2   first + 3
    input     the last   draft 0     draft 1     draft 2
    samples   token 0    token 1     token 2     -            two of three drafts were accepted

An accepted draft is the token sampled before it: token 0 is draft 0. So each token of a step comes
from the row at its place, and its own hidden state is in the row after that one. Only the last one
is no draft: it is the next step's input, and its state is in the first row there. Rows after it
are of drafts that were rejected.

Both of vLLM's model runners lay rows out so. Plain data: neither torch nor vLLM is loaded here.
"""

from collections.abc import Sequence

import numpy as np


def first_rows(drafted: Sequence[int]) -> np.ndarray:
    """Return where each request's rows begin, and behind the last the number of rows.

    Args:
        drafted: how many tokens were drafted for each of Q requests.

    Returns:
        Row numbers int64 [Q + 1], ascending.
    """
    rows = np.zeros(len(drafted) + 1, np.int64)
    np.cumsum(np.asarray(drafted, np.int64) + 1, out=rows[1:])
    return rows


def sampling_row(first: int, index: int) -> int:
    """Return the row whose logits gave the token at a place among those of a request's step."""
    return first + index


def state_row(first: int, index: int, count: int) -> int | None:
    """Return the row with the hidden state of a step's token.

    Args:
        first: the request's first row.
        index: the token's place among those that the request got in this step.
        count: how many those are: the accepted drafts, and one more.

    Returns:
        The row; None for the last token, whose state is in the first row of the request's next
        step that yields tokens.
    """
    return first + index + 1 if index < count - 1 else None
