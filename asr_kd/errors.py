"""The one exception that a user is meant to read, and what several of its messages say."""


class AsrKdError(Exception):
    """Something the user can mend: bad input, an option that does not fit, a file that is missing.

    Its message is one sentence that names the file (and line, where there is one) and says what to do.
    Every command line prints it alone, without a traceback, and exits with status 1.
    """


def install_hint(extra: str) -> str:
    """How to get what an optional part of the package needs: the package is installed from its checkout."""
    return f"run in the checkout: pip install '.[{extra}]'"
