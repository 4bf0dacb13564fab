"""The one boundary where the toolkit's commands print errors and exit."""

import os
import sys
from collections.abc import Callable

from step_infer.errors import InputError


def run(main: Callable[[], int | None]) -> None:
    """Run a command's body and leave the process with its exit status.

    Status 0 is success, 2 a user's mistake (one line on stderr, no traceback), 130 an interrupt.
    Any other exception is a defect of ours and keeps its traceback.
    """
    # Torch reads it when it is loaded: a CPU engine in this process would tell users of NUMA nodes.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        status = main() or 0
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error, but nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
