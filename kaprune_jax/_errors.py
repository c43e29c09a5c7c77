"""The one error type for input that a person gave and can correct."""

_LONGEST = 2000


def one_line(error: Exception) -> str:
    """What a person needs of an error: of the system's, the file and what it said."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return str(error)


def printable(line: str) -> str:
    """A line with signs that a terminal would obey written as escapes."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)


class InputError(ValueError):
    """Bad input, said in one line: where it was given (file, row or flag), the value, and what is allowed.

    The command line turns it into exit code 2 without a traceback. The line can be shown as it is, whatever a file put
    into it: it has a bounded length, and signs that a terminal would obey are written as escapes.
    """

    def __init__(self, message: str):
        line = " ".join(message.split())
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        super().__init__(printable(line))
