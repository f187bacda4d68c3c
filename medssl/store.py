"""Everything that outlives a process, as whole files under names that say what they are.

    encoders/ID.safetensors   features/ID/IMAGES-SPLIT-ENCODER.safetensors   checkpoints/ID[-FIT].pt
    rows/CELL.parquet         predictions/CELL.parquet            progress/ID.json   logs/ID.log
    inits/NAME.sha256         which file was meant by the name of an init, see weights.py
    diverged/ID.txt                          what is not worth another try, see search.py
    rows.parquet   audits/SPLITS.json   drivers/SWEEP.json   see results.py, audit.py, alone.py

A file appears whole or not at all: in a folder it is written beside its name, forced to disk, then
renamed; in a bucket it is there once its upload has ended. Two processes that write the same name
write the same content, to the last digits of their machines, so either may win; of an encoder the
first does (`exclusive`), and what is made of it carries the digest of the file that it was made of.
"""

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from medssl._files import cache, whole

AWAY_S = 180  # seconds for which a sweep waits for a store that has gone away
PAUSE_S = 15  # between two attempts at a store that does not answer, at most
LASTING = FileExistsError, FileNotFoundError, PermissionError, NotADirectoryError
PART = 5_000_000  # bytes, that pyarrow sends in one request
BUCKETS = {"s3": "S3FileSystem", "gs": "GcsFileSystem"}  # of pyarrow.fs


def open_store(address: Path | str, patience_s: float = 0) -> "Store":
    """The store in a folder, or at s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.

    ValueError for another scheme, or keys in the address.
    """
    kind = Bucket if "://" in str(address) else Store
    return kind(address, patience_s)


class Store:
    """A folder of named, whole files. Names are relative, with forward slashes.

    A disk that does not answer is asked again for `patience_s` seconds, then OSError is raised.
    """

    def __init__(self, root: Path | str, patience_s: float = 0):
        self.root = Path(root).expanduser().resolve()
        self.patience_s = patience_s

    @property
    def address(self) -> str:
        """What `open_store` makes the same store of, on any machine."""
        return str(self.root)

    @property
    def beside(self) -> Path:
        """The folder for what only the driver needs: MLflow's SQLite file, Ray's scratch."""
        return self.root

    def read(self, name: str) -> bytes | None:
        """The content of `name`, or None where it is not there."""
        return self._asked(self._read, name)

    def has(self, name: str) -> bool:
        return self._asked(self._has, name)

    def write(self, name: str, content: bytes, exclusive: bool = False) -> None:
        """Puts `content` under `name`, whole or not at all.

        If exclusive, FileExistsError where the name is taken. Of two writers in a folder one gets
        it; of two in a bucket both do, where they come within the same moment.
        """
        self._asked(self._write, name, content, exclusive)

    def set_aside(self, name: str) -> None:
        """Renames a file that cannot be read, so that it counts as missing and can be looked at."""
        with contextlib.suppress(FileNotFoundError):  # another reader was first
            self._asked(self._rename, name, f"{name}.broken")

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._asked(self._delete, name)

    def names(self, folder: str, suffix: str) -> set[str]:
        """What is in `folder`, without its suffix; drafts of killed writers are not there."""
        return {f.removesuffix(suffix) for f in self._asked(self._list, folder) if _is(f, suffix)}

    def stamps(self, folder: str, suffix: str) -> dict[str, str]:
        """The same, each with what changes when its file does."""
        found = self._asked(self._stat, folder)
        return {f.removesuffix(suffix): stamp for f, stamp in found if _is(f, suffix)}

    def _asked(self, do: Callable, *asked):
        began, pause_s = time.monotonic(), 1.0
        while True:
            try:
                return do(*asked)
            except LASTING:
                raise
            except OSError:
                if time.monotonic() + pause_s > began + self.patience_s:  # as it is by now
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S)

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def _has(self, name: str) -> bool:
        return (self.root / name).is_file()

    def _write(self, name: str, content: bytes, exclusive: bool) -> None:
        with whole(self.root / name, exclusive) as draft:
            draft.write(content)

    def _rename(self, name: str, to: str) -> None:
        (self.root / name).replace(self.root / to)

    def _delete(self, name: str) -> None:
        (self.root / name).unlink()

    def _list(self, folder: str) -> list[str]:
        try:
            return os.listdir(self.root / folder)
        except FileNotFoundError:
            return []

    def _stat(self, folder: str) -> list[tuple[str, str]]:
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root / folder) as files:
            for file in files:
                with contextlib.suppress(FileNotFoundError):  # it was there a moment ago
                    at = file.stat()
                    found.append((file.name, f"{at.st_mtime_ns}-{at.st_size}"))
        return found


class Bucket(Store):
    """The same in a bucket, s3://BUCKET/PREFIX?region=...&endpoint_override=..., by pyarrow.

    Keys are found where the provider's own tools look for them, and never in the address.
    """

    def __init__(self, address: str, patience_s: float = 0):
        place = urlsplit(str(address))
        options = dict(parse_qsl(place.query))
        if place.scheme not in BUCKETS:
            known = " or ".join(f"{scheme}://BUCKET/PREFIX" for scheme in BUCKETS)
            raise ValueError(f"no store at {place.scheme}://: name a folder, or {known}")
        if place.username or place.password or any("key" in o or "token" in o for o in options):
            raise ValueError(
                f"an address with keys would be in logs: leave them out of {place.scheme}://... "
                f"and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_"
                f"CREDENTIALS"
            )
        if not place.hostname:
            raise ValueError(f"no bucket in {address}: {place.scheme}://BUCKET/PREFIX")
        self.root = f"{place.scheme}://{place.netloc}{place.path.rstrip('/')}"
        self.patience_s = patience_s
        self._address, self._prefix = str(address), f"{place.netloc}{place.path.rstrip('/')}"
        from pyarrow import fs

        if place.scheme == "s3":  # one request for a small file, and errors where they happen
            options |= {"allow_delayed_open": True, "background_writes": False}
        else:
            options |= {"retry_time_limit": timedelta(seconds=PAUSE_S)}  # else a quarter of an hour
        try:
            self._fs = getattr(fs, BUCKETS[place.scheme])(**options)
        except TypeError as wrong:
            raise ValueError(f"{self.root}: {wrong}") from None

    @property
    def address(self) -> str:
        return self._address

    @property
    def beside(self) -> Path:
        return cache() / "stores" / hashlib.sha256(self.root.encode()).hexdigest()[:12]

    def _at(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _read(self, name: str) -> bytes | None:
        try:
            with self._fs.open_input_stream(self._at(name), compression=None) as file:
                return file.read()
        except FileNotFoundError:
            return None

    def _has(self, name: str) -> bool:
        return self._fs.get_file_info(self._at(name)).is_file

    def _write(self, name: str, content: bytes, exclusive: bool) -> None:
        if exclusive and self._has(name):
            raise FileExistsError(f"{self.root}/{name}")
        folder, _, last = name.rpartition("/")
        draft = f"{folder}/.{last}.{uuid.uuid4().hex[:8]}.draft" if len(content) > PART else name
        file = self._fs.open_output_stream(self._at(draft), compression=None)
        file.write(content)
        file.close()
        if draft != name:  # pyarrow ends an upload that failed when its stream is collected
            self._fs.move(self._at(draft), self._at(name))

    def _rename(self, name: str, to: str) -> None:
        try:
            self._fs.move(self._at(name), self._at(to))
        except OSError:  # S3's, which is no FileNotFoundError
            if self._has(name):
                raise
            raise FileNotFoundError(f"{self.root}/{name}") from None

    def _delete(self, name: str) -> None:
        self._fs.delete_file(self._at(name))

    def _list(self, folder: str) -> list[str]:
        return [name for name, _ in self._stat(folder)]

    def _stat(self, folder: str) -> list[tuple[str, str]]:
        from pyarrow import fs

        found = self._fs.get_file_info(fs.FileSelector(self._at(folder), allow_not_found=True))
        return [(f.base_name, f"{f.mtime_ns}-{f.size}") for f in found if f.is_file]


def _is(file: str, suffix: str) -> bool:
    return file.endswith(suffix) and file[0] != "."
