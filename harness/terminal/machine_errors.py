"""Errors of the system and of memory, as errors of the machine with what to do."""

import errno

from trinity.methods.errors import MachineError

TOO_LITTLE = ("out of memory", "allocate memory", "Cannot allocate")  # of torch, as RuntimeError
FULL = (errno.ENOSPC, errno.EIO, errno.ESTALE)
REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
    errno.ENOSPC,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


def of_the_machine(error: BaseException) -> BaseException:
    """An error of the system, or of memory that it has not, as one of the machine's."""
    if isinstance(error, OSError):
        return _refused_by_the_system(error)
    words = str(error)
    of_torch = isinstance(error, RuntimeError) and any(found in words for found in TOO_LITTLE)
    if isinstance(error, MemoryError) or of_torch:
        reason = " ".join(words.split()) or "Python was refused more"
        return MachineError(
            f"the memory was not enough ({reason[:300]}). Use fewer or shorter calibration samples "
            f"(`calibration.samples`, `calibration.seqlen`), a smaller type (`model.dtype`), fewer "
            f"commands at once, or a machine with more. Finished stages are kept."
        )
    return error


def _refused_by_the_system(error: OSError) -> Exception:
    """A file that may not be used, wherever it was met, as an error of the machine's."""
    if error.errno not in REFUSED:
        return error
    if error.filename is None:  # of a stream that is open: what is printed goes to one
        return MachineError(not_printed(error)) if error.errno in FULL else error
    return MachineError(
        f"{error.filename}: the system refuses it ({error.strerror}). See that this user may read "
        f"it, or write it, and that its disk is well."
    )


def not_printed(error: OSError) -> str:
    """What to say where standard output does not take what is printed."""
    return (
        f"the output cannot be written ({error.strerror}). See that what it goes to takes it: the "
        f"disk has room, the device is well."
    )
