"""The one exception that a user is meant to read."""


class AsrKdError(Exception):
    """Something the user can mend: bad input, an option that does not fit, a file that is missing.

    Its message is one sentence that names the file (and line, where there is one) and says what to do.
    Every command line prints it alone, without a traceback, and exits with status 1.
    """
