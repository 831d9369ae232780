"""The errors of the project: one tree, so that a caller can catch `SparsyFedError` alone."""


class SparsyFedError(Exception):
    """Base of every error that the project raises on purpose."""


class FormatError(SparsyFedError, ValueError):
    """An artifact, state, update or message is malformed."""


class ArenaError(SparsyFedError, MemoryError):
    """The memory given, or the memory that the system has, is too small for a training session."""

    def __init__(self, message: str, *, got: int, wanted: int) -> None:
        super().__init__(message)
        self.got = got
        """Bytes that were there."""
        self.wanted = wanted
        """Bytes that are needed."""


class InputError(SparsyFedError, ValueError):
    """A batch or argument has the wrong shape, type or range, or a value that is not finite."""


class DivergedError(SparsyFedError, ArithmeticError):
    """Loss, gradient or what a step would store is not finite; the step was not applied."""


class MismatchError(SparsyFedError, ValueError):
    """A state does not belong to the artifact, or an update does not belong to its base."""


class UnsupportedOperationError(SparsyFedError):
    """A model uses an operation that the runtime does not have."""


class VerificationError(SparsyFedError):
    """An exported step does not compute what the eager reference computes."""


class ConfigurationError(SparsyFedError, ValueError):
    """A configuration file or a command line value is wrong."""


class BackendError(SparsyFedError):
    """A backend, or the library that it needs, is not there or does not work."""


class StoppedError(SparsyFedError):
    """The caller, or a signal, has asked for the end of a job before it was done; it can go on later."""
