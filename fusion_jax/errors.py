"""The one exception for what a user can mend: bad input, bad configuration, damaged files."""

import contextlib
import errno
from collections.abc import Iterator


class FusionError(Exception):
    """A problem with one clear line: what is wrong and how to mend it.

    The programs print the line and leave with exit status 2; a notebook sees an ordinary exception.
    """


# Like KeyboardInterrupt: it may be raised anywhere, and "except Exception" around a damaged file
# must not take it for one.
class Stopped(BaseException):
    """Training was asked to stop (SIGTERM), saved its state and can go on with the same command."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def writing(what: str, kinds: type[Exception] = OSError, *, note: str = "") -> Iterator[None]:
    """Turn what fails while writing into a FusionError with the cause and the cure.

    Args:
        what: what is not done then, "cannot write runs/a/config.json".
        kinds: what to expect, OSError or for libraries with errors of their own Exception.
        note: something to add.
    """
    try:
        yield
    except FusionError:
        raise
    except kinds as error:
        # Not every library keeps the error number.
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        full = full or any(sign in str(error) for sign in ("No space left", "RESOURCE_EXHAUSTED"))
        cure = "the disk is full: free space" if full else f"{first_line(error)}: mend that"
        ending = f"; {note}" if note else ""
        raise FusionError(f"{what}: {cure} and run the same command again{ending}") from error
