"""Folders on the local disk: created so that they survive a power cut; and how a full disk is recognized."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from cryptopulse.errors import ConfigurationError, LakeFull

_FULL = {errno.ENOSPC, errno.EDQUOT}


def make_folder(folder: Path) -> None:
    """Creates `folder` and its missing parents; returns when their names are on disk. Raises OSError.

    Otherwise a power cut loses even a synced file, because the entry of its folder is not on disk yet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for above in folder.absolute().parents:
        try:
            sync(above)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL}:  # not ours, so it is not new
                raise


def sync(path: Path) -> None:
    """Returns when the file at `path`, or the names in the folder at `path`, are on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(error: BaseException) -> bool:
    """Whether `error` means that a disk or a quota is full, by its errno or its text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(os.strerror(number) in str(error) for number in _FULL)


def cannot_use(folder: Path, error: OSError) -> ConfigurationError | LakeFull:
    """The error that says why `folder` can't be created or written to."""
    if is_full(error):
        return LakeFull(f"The disk under {folder} is full. Free some space and start again.")
    return ConfigurationError(f"Can't use the folder {folder}: {error.strerror}. Choose another with --lake.")
