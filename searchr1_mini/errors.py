"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input or a bad environment, told in one sentence that names the thing, its value and the remedy.

    `train.py` and `eval.py` print it without a traceback and exit with code 2.
    """
