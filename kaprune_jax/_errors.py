"""The one error type for input that a person gave and can correct."""


class InputError(ValueError):
    """Bad input, said in one line: where it was given (file, row or flag), the value, and what is allowed.

    The command line turns it into exit code 2 without a traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
