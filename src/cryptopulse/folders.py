"""Folders on the local disk: made so that a power cut does not take them, and what a full disk says."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from cryptopulse.errors import ConfigurationError, LakeFull

_FULL = {errno.ENOSPC, errno.EDQUOT}


def make_folder(folder: Path) -> None:
    """Makes `folder` and those above it that are missing, and returns when their names are on disk. Raises OSError.

    A file that was synced is lost all the same when the folder that holds it has no name yet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for above in folder.absolute().parents:
        try:
            sync(above)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL}:  # not ours: as it is for long
                raise


def sync(path: Path) -> None:
    """Returns when the file at `path`, or the names in the folder at `path`, are on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(error: BaseException) -> bool:
    """Whether `error` says that a disk, or what a user may have of it, is full: by its number or in its text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(os.strerror(number) in str(error) for number in _FULL)


def cannot_use(folder: Path, error: OSError) -> ConfigurationError | LakeFull:
    """The error that says why `folder` can't be made or written to."""
    if is_full(error):
        return LakeFull(f"The disk under {folder} is full. Free some space and start again.")
    return ConfigurationError(f"Can't use the folder {folder}: {error.strerror}. Choose another with --lake.")
