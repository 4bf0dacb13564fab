"""The one exception type for everything a user can get wrong."""


class InputError(ValueError):
    """A user's input, file or setting cannot be used.

    The message is one line: what was expected, what was found, what to do. Library code raises it;
    only a command turns it into exit status 2 (see :mod:`step_infer.command`).
    """
