"""The one exception for what a user can mend: bad input, bad configuration, damaged files."""


class FusionError(Exception):
    """A problem with one clear line: what is wrong and how to mend it.

    The programs print the line and leave with exit status 2; a notebook sees an ordinary exception.
    """


class Stopped(Exception):
    """Training was asked to stop (SIGTERM), saved its state and can go on with the same command."""
