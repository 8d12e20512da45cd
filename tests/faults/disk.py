"""What a kill and what a power cut leave of a folder, by the trace of every change that was made to it.

After a **kill** everything is there: the system holds what was written. After a **power cut** only what was synced is
certain. The model is harsher than any one file system:

- **Contents.** What was written to a file before its last fsync is there. Of what was appended since, all may be there,
  or nothing, or a part up to any byte, or the file has its full length with zeros from some byte on. Of what was
  written over older bytes since, any set of 4,096-byte pieces may be there, and any of the changes of length.
- **Names.** What was created, linked, renamed or deleted in a folder before that folder's last fsync is so. Of the
  changes since, any set may have happened, in whatever order they were made. A rename happens as a whole. Syncing a
  file does not make its name certain, and a folder whose own name is lost is lost with all that it holds.

ext4 and XFS keep the order of names, and ext4 in its default mode (`data=ordered`) leaves no zeros. What is not in the
model: zeros in the middle of a new file whose end is there (a file's blocks reach the disk before the length that
covers them), contents of other files, and disks that say "synced" before they are.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_HEAD = struct.Struct("<BQQIII")  # see interposer.c
_PIECE = 4_096

Tree = dict[str, bytes | None]
"""Files (their bytes) and folders (None) by their path in the folder."""


@dataclass(frozen=True)
class Change:
    """One record of the trace."""

    kind: str
    """C created, D folder made, W written, T length changed, L linked, R renamed, U deleted, S synced, ! mark."""
    inode: int
    number: int
    """Where it was written, the new length, or the mark."""
    path: str
    other: str
    """The new name of L and R."""
    data: bytes

    def __str__(self) -> str:
        more = f" → {self.other}" if self.other else f" {self.number}+{len(self.data)}" if self.kind in "WT" else ""
        return f"{self.kind} {self.path}{more}"


def read_trace(file: Path, folder: Path) -> list[Change]:
    """The changes in the order in which they were made, with paths in `folder`."""
    return changes_of(file.read_bytes(), folder)


def changes_of(raw: bytes, folder: Path) -> list[Change]:
    """The changes of a trace, or of a part of it that begins and ends between two."""
    at, changes = 0, []
    prefix = len(str(folder.resolve())) + 1
    while at < len(raw):
        kind, inode, number, path_size, other_size, size = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        path, other = raw[at : at + path_size].decode(), raw[at + path_size : at + path_size + other_size].decode()
        at += path_size + other_size
        deleted = path.removesuffix(" (deleted)")
        changes.append(Change(chr(kind), inode, number, deleted[prefix:], other[prefix:], raw[at : at + size]))
        at += size
    return changes


@dataclass
class _File:
    content: bytearray
    synced: bytes
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Since the last sync: (offset, bytes written), or (new length, None)."""

    def write(self, offset: int, data: bytes) -> None:
        _put(self.content, offset, data)
        self.pending.append((offset, data))

    def resize(self, length: int) -> None:
        _resize(self.content, length)
        self.pending.append((length, None))

    def sync(self) -> None:
        if self.pending:
            self.synced = bytes(self.content)
            self.pending.clear()

    def after_power_cut(self, chance: random.Random) -> bytes:
        if not self.pending:
            return self.synced
        if self._was_only_appended_to():
            at = chance.randrange(len(self.synced), len(self.content) + 1)
            how = chance.choice(("all", "nothing", "cut", "zeros"))
            kept = self.content[: {"all": len(self.content), "nothing": len(self.synced)}.get(how, at)]
            return bytes(kept.ljust(len(self.content), b"\0") if how == "zeros" else kept)
        kept, share = bytearray(self.synced), chance.choice((0.1, 0.5, 0.9, 1.0))
        for number, data in self.pending:
            if data is None:
                if chance.random() < share:
                    _resize(kept, number)
                continue
            for start, piece in _pieces(number, data):
                if chance.random() < share:
                    _put(kept, start, piece)
        return bytes(kept)

    def _was_only_appended_to(self) -> bool:
        end = len(self.synced)
        for offset, data in self.pending:
            if data is None or offset != end:
                return False
            end += len(data)
        return True


@dataclass
class _Folder:
    entries: dict[str, _File | _Folder] = field(default_factory=dict)
    synced: dict[str, _File | _Folder] = field(default_factory=dict)
    pending: list[dict[str, _File | _Folder | None]] = field(default_factory=list)
    """Since the last sync: names that changed together, and what they stand for (None: nothing)."""

    def change(self, names: Mapping[str, _File | _Folder | None]) -> None:
        _rename(self.entries, names)
        self.pending.append(dict(names))

    def sync(self) -> None:
        self.synced = dict(self.entries)
        self.pending.clear()

    def after_power_cut(self, chance: random.Random) -> dict[str, _File | _Folder]:
        kept, share = dict(self.synced), chance.choice((0.0, 0.5, 0.9, 1.0, 1.0))
        for names in self.pending:
            if chance.random() < share:
                _rename(kept, names)
        return kept


class Disk:
    """A folder with what is certain of it and what is not."""

    def __init__(self, folder: Path) -> None:
        """As `folder` is now; all of it counts as synced."""
        self._files: dict[int, _File] = {}
        self._root = self._read(folder)
        self.acknowledged = 0
        """The last mark."""

    def apply(self, change: Change) -> None:
        """One change, as the trace tells it."""
        match change.kind:
            case "!":
                self.acknowledged = change.number
            case "C":
                self._files[change.inode] = _File(bytearray(), b"")
                self._name({change.path: self._files[change.inode]})
            case "D":
                self._files.pop(change.inode, None)  # of a file that is gone
                self._name({change.path: _Folder()})
            case "W":
                self._files[change.inode].write(change.number, change.data)
            case "T":
                self._files[change.inode].resize(change.number)
            case "L":
                self._name({change.other: self._at(change.path)})
            case "R":
                self._name({change.path: None, change.other: self._at(change.path)})
            case "U":
                self._name({change.path: None})
            case "S":
                (self._files.get(change.inode) or self._at(change.path)).sync()

    def after_kill(self) -> Tree:
        """Everything."""
        return dict(self._walk(self._root, None))

    def after_power_cut(self, chance: random.Random) -> Tree:
        """What is certain, and what `chance` leaves of the rest."""
        return dict(self._walk(self._root, chance))

    def _read(self, folder: Path) -> _Folder:
        entries: dict[str, _File | _Folder] = {}
        for path in folder.iterdir():
            if path.is_dir():
                entries[path.name] = self._read(path)
            elif is_kept(path.name):
                content = path.read_bytes()
                entries[path.name] = self._files[path.stat().st_ino] = _File(bytearray(content), content)
        return _Folder(entries, dict(entries))

    def _at(self, path: str) -> _File | _Folder:
        found: _File | _Folder = self._root
        for name in path.split("/") if path else ():
            assert isinstance(found, _Folder), path
            found = found.entries[name]
        return found

    def _name(self, names: Mapping[str, _File | _Folder | None]) -> None:
        (above,) = {path.rpartition("/")[0] for path in names}  # nothing moves from one folder to another
        folder = self._at(above)
        assert isinstance(folder, _Folder), above
        folder.change({path.rpartition("/")[2]: node for path, node in names.items()})

    def _walk(
        self, folder: _Folder, chance: random.Random | None, above: str = ""
    ) -> Iterator[tuple[str, bytes | None]]:
        for name, node in (folder.entries if chance is None else folder.after_power_cut(chance)).items():
            path = f"{above}{name}"
            if isinstance(node, _Folder):
                yield path, None
                yield from self._walk(node, chance, f"{path}/")
            else:
                yield path, bytes(node.content) if chance is None else node.after_power_cut(chance)


def is_kept(name: str) -> bool:
    """Whether a file means anything after a crash: SQLite makes its -shm file anew."""
    return not name.endswith("-shm")


def fingerprint(tree: Tree) -> bytes:
    """The same for equal trees, another for others."""
    digest = hashlib.blake2b()
    for name, content in sorted(tree.items()):
        digest.update(repr((name, None if content is None else hashlib.blake2b(content).digest())).encode())
    return digest.digest()


def read_tree(folder: Path) -> Tree:
    """A folder as it is."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if is_kept(path.name)}
    return {name: None if path.is_dir() else path.read_bytes() for name, path in found.items()}


def write_tree(tree: Tree, folder: Path) -> None:
    """Makes `folder` as `tree` says."""
    folder.mkdir()
    for name, content in tree.items():  # a folder comes before what it holds
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)


def _put(content: bytearray, offset: int, data: bytes) -> None:
    _resize(content, max(len(content), offset))
    content[offset : offset + len(data)] = data


def _resize(content: bytearray, length: int) -> None:
    if length < len(content):
        del content[length:]
    else:
        content.extend(bytes(length - len(content)))


def _pieces(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start < len(data):
        end = min(start + _PIECE - (offset + start) % _PIECE, len(data))
        yield offset + start, data[start:end]
        start = end


def _rename(entries: dict[str, _File | _Folder], names: Mapping[str, _File | _Folder | None]) -> None:
    for name, node in names.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node
