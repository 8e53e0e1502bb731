"""The failures that are not bugs, and nothing else.

Each carries one sentence that names the thing, an optional hint, and the exit code of the command line:
1 failed, 2 usage, 3 integrity, 4 temporary. Any other exception is a bug and shows its traceback.
Foreign exceptions are mapped to these at one border of each module that calls foreign code.
"""


class MicaError(Exception):
    """An expected failure; `str(error)` is one sentence for people."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UserError(MicaError):
    """What was asked for cannot be done: a wrong name, a missing file, a full disk, a refused input."""


class UsageError(MicaError):
    """The command line itself is wrong."""

    exit_code = 2


class NotFoundError(UserError):
    """The named object, path, tag or image does not exist at a place that answered."""


class IntegrityError(MicaError):
    """Bytes are not what a signature, a digest or a size says: never used, always named."""

    exit_code = 3


class TemporaryError(MicaError):
    """May succeed later without any change: no connection, time-out, server overloaded."""

    exit_code = 4
