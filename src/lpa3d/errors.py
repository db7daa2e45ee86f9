"""The errors and warnings that lpa3d raises by intention.

Each error also inherits the built-in one that a caller would expect, so that ``except ValueError`` keeps working.
"""

__all__ = ["DeviceError", "InputError", "InputTypeError", "LibraryError", "Lpa3dError", "Lpa3dWarning", "RangeError"]


class Lpa3dError(Exception):
    """Base of every error that lpa3d raises by intention."""


class InputError(Lpa3dError, ValueError):
    """An argument has a value that cannot be used; the message says what is needed."""


class InputTypeError(Lpa3dError, TypeError):
    """An argument has a type or dtype that cannot be used; the message says what is needed."""


class DeviceError(Lpa3dError, RuntimeError):
    """No CUDA device can be used; the message says what is missing."""


class LibraryError(Lpa3dError, ImportError):
    """An optional library is not installed; the message says how to install it."""


class RangeError(Lpa3dError, OverflowError):
    """The work left the range of the integers that it is defined on."""


class Lpa3dWarning(UserWarning):
    """The call went through, but something in the input was dropped or left unlabelled."""
