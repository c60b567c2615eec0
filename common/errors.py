"""The errors that a user can cause; the command lines print them as one sentence."""


class UserError(ValueError):
    """Bad input from a user: a file, a setting or the environment.

    The message is one sentence that names the thing, its value and what is allowed. Command
    lines print it without a traceback and exit with code 2.
    """
