"""The directory of a device: what must outlive a restart.

    objects/<sha256>        complete, verified artifacts and states
    partial/<sha256>/       an object on its way: reference, hash list, data, have-bitmap
    work.json               the offer that the device has taken
    update/                 the finished update, its report, the size of its parts
    export/                 the files of the export in hand by their names: links to the objects
    lock                    held by the running device

A file that matters is written whole or not at all. The have-bitmap is a hint: after a restart each
block that it names is checked again, so that no order of disk writes can leave a bad block behind.
"""

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, TypeVar

from sparsyfed.edge_runtime.errors import ConfigurationError, FormatError
from sparsyfed.edge_runtime.files import write_atomic
from sparsyfed.edge_runtime.json_message import Message
from sparsyfed.edge_runtime.messages import (
    HASH_LIST_INDEX,
    BlockBytes,
    Export,
    ObjectReference,
    Offer,
    Report,
)
from sparsyfed.edge_runtime.transfer import block_size, verify_block

AnyMessage = TypeVar("AnyMessage", bound=Message)

_COPY_BYTES = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldReport(Message):
    """What lies beside a held update: its report, and the bytes of each part but the last."""

    report: Report
    part_bytes: BlockBytes


class DeviceStorage:
    """Files of one device. Raises ConfigurationError if the directory can't be used or is in use."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._objects = self.directory / "objects"
        self._partial = self.directory / "partial"
        self._update = self.directory / "update"
        self._export = self.directory / "export"
        self._open_partial: PartialObject | None = None
        try:
            for folder in (self._objects, self._partial):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = (self.directory / "lock").open("w")
        except OSError as error:
            raise ConfigurationError(f"cannot use the directory {directory}: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigurationError(
                f"the directory {directory} is in use by another device: give each its own"
            ) from error

    def close(self) -> None:
        """Release the directory; what arrived stays on disk."""
        if self._open_partial is not None:
            self._open_partial.close()
        self._lock.close()

    def object_path(self, object_id: str) -> Path | None:
        """File of a complete object, or None."""
        path = self._objects / object_id
        return path if path.is_file() else None

    def partial(self, reference: ObjectReference) -> "PartialObject":
        """The object on its way, with the blocks that an earlier run left and that still verify.

        One is open at a time: this closes the one before.
        """
        if self._open_partial is not None:
            self._open_partial.close()
        self._open_partial = PartialObject(self._partial / reference.id, reference)
        return self._open_partial

    def complete(self, partial: "PartialObject") -> Path | None:
        """Move an object with all its blocks to the complete ones.

        Returns None if its sha256 is not the referenced one: then nothing of it is kept.
        """
        digest = partial.digest()
        if digest != partial.reference.id:
            partial.discard()
            return None
        target = self._objects / partial.reference.id
        partial.move_data(target)
        return target

    def keep_objects(self, ids: Iterable[str]) -> None:
        """Remove all objects, complete or partial, but these."""
        wanted = set(ids)
        for path in self._objects.iterdir():
            if path.name not in wanted:
                path.unlink()
        for path in self._partial.iterdir():
            if path.name not in wanted:
                shutil.rmtree(path)

    def lay_out(self, export: Export) -> Path:
        """Give the objects of an export, all of them complete, their names; return what a session opens."""
        shutil.rmtree(self._export, ignore_errors=True)
        self._export.mkdir()
        for file in export.files:
            # Not a hard link: Android does not let an app make them.
            (self._export / file.name).symlink_to(Path("..") / "objects" / file.object.id)
        return self._export if export.opened is None else self._export / export.opened

    @property
    def work(self) -> Offer | None:
        """The offer that the device has taken and not finished. A damaged file counts as none."""
        return _read_message(self.directory / "work.json", Offer)

    def save_work(self, offer: Offer) -> None:
        """Keep the taken offer over a restart."""
        write_atomic(self.directory / "work.json", offer.to_json())

    def drop_work(self) -> None:
        """Forget the taken offer."""
        (self.directory / "work.json").unlink(missing_ok=True)

    @property
    def held(self) -> HeldReport | None:
        """Report of the finished update on disk, or None.

        A damaged update counts as none and is removed.
        """
        held = _read_message(self._update / "report.json", HeldReport)
        if held is None:
            return None
        data = self._update / "update.sfs"
        if (
            not data.is_file()
            or hashlib.sha256(data.read_bytes()).hexdigest() != held.report.sha256
        ):
            self.drop_held()
            return None
        return held

    def hold(self, update: bytes, held: HeldReport) -> None:
        """Keep a finished update. The report is written last: without it there is no update."""
        self.drop_held()
        self._update.mkdir(exist_ok=True)
        write_atomic(self._update / "update.sfs", update)
        write_atomic(self._update / "report.json", held.to_json())

    def held_slice(self, start: int, size: int) -> bytes:
        """Up to `size` bytes of the held update from `start` on."""
        with (self._update / "update.sfs").open("rb") as stream:
            stream.seek(start)
            return stream.read(size)

    def drop_held(self) -> None:
        """Remove the held update, its report first."""
        (self._update / "report.json").unlink(missing_ok=True)
        (self._update / "update.sfs").unlink(missing_ok=True)


class PartialObject:
    """An object whose blocks arrive one by one, on disk.

    Takes `reference.size` bytes of disk and, in memory, the hash list (32 bytes a block) and one
    bit a block.
    """

    def __init__(self, directory: Path, reference: ObjectReference) -> None:
        self.reference = reference
        self._directory = directory
        self._hashes = b""
        self._have = bytearray(-(-reference.blocks // 8))
        self.received = 0
        """Number of blocks that are there."""
        if _read_message(directory / "reference.json", ObjectReference) != reference:
            # Another block size is another set of blocks.
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            write_atomic(directory / "reference.json", reference.to_json())
        self._data = self._open_data()
        self._bitmap = _open_for_update(directory / "have")
        self._resume()

    def _open_data(self) -> BinaryIO:
        data = _open_for_update(self._directory / "data")
        data.truncate(self.reference.size)
        return data

    def _resume(self) -> None:
        self._bitmap.seek(0)
        noted = self._bitmap.read(len(self._have)).ljust(len(self._have), b"\0")
        with suppress(FileNotFoundError, FormatError):
            hashes = (self._directory / "hashes").read_bytes()
            verify_block(self.reference, b"", HASH_LIST_INDEX, hashes)
            self._hashes = hashes
        for index in range(self.reference.blocks if self._hashes else 0):
            if noted[index // 8] >> index % 8 & 1:
                self._data.seek(index * self.reference.block_bytes)
                data = self._data.read(block_size(self.reference, index))
                with suppress(FormatError):  # a block that does not verify is pulled again
                    verify_block(self.reference, self._hashes, index, data)
                    self._mark(index)
        self._write_bitmap()

    def has(self, index: int) -> bool:
        """Whether this block, or for HASH_LIST_INDEX the hash list, is there."""
        if index == HASH_LIST_INDEX:
            return bool(self._hashes)
        return bool(self._have[index // 8] >> index % 8 & 1)

    def missing(self) -> Iterable[int]:
        """Indices still to pull, rising; the hash list alone while it is not there."""
        if not self._hashes:
            return (HASH_LIST_INDEX,)
        return (index for index in range(self.reference.blocks) if not self.has(index))

    @property
    def is_complete(self) -> bool:
        """Whether every block is there."""
        return self.received == self.reference.blocks

    def store(self, index: int, data: bytes) -> None:
        """Check a block and write it.

        Raises FormatError if it is not the block that the hash list names.

        A block that is there already is left alone; one that comes before the hash list can't be checked
        and is not kept.
        """
        if index != HASH_LIST_INDEX and not 0 <= index < self.reference.blocks:
            raise FormatError(f"block: got index {index}, wanted below {self.reference.blocks}")
        if self.has(index) or not (self._hashes or index == HASH_LIST_INDEX):
            return
        verify_block(self.reference, self._hashes, index, data)
        if index == HASH_LIST_INDEX:
            write_atomic(self._directory / "hashes", data)
            self._hashes = data
            return
        self._data.seek(index * self.reference.block_bytes)
        self._data.write(data)
        self._data.flush()
        self._mark(index)
        self._write_bitmap()

    def _mark(self, index: int) -> None:
        self._have[index // 8] |= 1 << index % 8
        self.received += 1

    def _write_bitmap(self) -> None:
        self._bitmap.seek(0)
        self._bitmap.write(self._have)
        self._bitmap.flush()

    def digest(self) -> str:
        """sha256 (hex) of the data as it lies on disk."""
        digest = hashlib.sha256()
        self._data.seek(0)
        while chunk := self._data.read(_COPY_BYTES):
            digest.update(chunk)
        return digest.hexdigest()

    def move_data(self, target: Path) -> None:
        """Rename the data to `target` and remove the rest."""
        os.fsync(self._data.fileno())
        self.close()
        (self._directory / "data").replace(target)
        shutil.rmtree(self._directory)

    def discard(self) -> None:
        """Remove everything."""
        self.close()
        shutil.rmtree(self._directory)

    def close(self) -> None:
        """Close the files; what arrived stays on disk."""
        self._data.close()
        self._bitmap.close()


def _open_for_update(path: Path) -> BinaryIO:
    """The file for reading and writing, made if it is not there."""
    path.touch()
    return path.open("r+b")


def _read_message(path: Path, kind: type[AnyMessage]) -> AnyMessage | None:
    """The message in a file; None if there is no file or it is damaged, which is logged."""
    try:
        return kind.from_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except FormatError as error:
        logger.warning("%s is damaged and is left aside: %s", path, error)
        return None
