"""The two ways in which a command ends early."""


class UserError(Exception):
    """An error that the user can correct: it is shown as one line, without a traceback.

    Every process of a distributed run raises it.
    """


class Stopped(BaseException):
    """A signal asked the run to stop; what was finished is saved."""
