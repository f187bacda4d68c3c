"""A file is there whole or not at all, whoever is killed, cut off or late.

    draft beside the name -> written -> forced to disk -> renamed

Names of drafts begin with a dot and are nobody's but the writer's, so that two writers do not meet;
one that was killed leaves its draft. A download is a file like any other, once all of it has come.
"""

import contextlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

STALLED_S = 20  # seconds without a byte, after which a download has failed


def cache() -> Path:
    """The user's folder for what can be had again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medssl"


@contextlib.contextmanager
def whole(path: Path, exclusive: bool = False) -> Iterator[BinaryIO]:
    """A file to write, which takes the name `path` when the block ends; an error leaves none.

    Of two writers the last one's stays; if exclusive the first's, and FileExistsError says so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.draft")
    try:
        with open(draft, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        (_claim if exclusive else os.replace)(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def download(url: str, path: Path, wrong: Callable[[Path], list[str]]) -> None:
    """Puts what `url` sends under `path`, if all of it came and `wrong` finds nothing in the draft.

    OSError with the reason, which may pass.
    """
    asked = urllib.request.Request(url, headers={"User-Agent": "medssl"})
    try:
        with urllib.request.urlopen(asked, timeout=STALLED_S) as sent, whole(path) as draft:
            shutil.copyfileobj(sent, draft, 1 << 20)
            size, came = sent.headers.get("Content-Length"), draft.tell()
            if size and int(size) != came:
                raise OSError(f"{came} of {size} bytes came")
            draft.flush()
            if problems := wrong(Path(draft.name)):
                raise OSError(problems[0])
    except (OSError, http.client.HTTPException) as failed:
        if isinstance(failed, urllib.error.HTTPError):
            failed.close()  # the page that says so
        why = str(failed) if type(failed) is OSError else f"{type(failed).__name__}: {failed}"
        raise OSError(
            f"the download of {url} failed ({why}): try again, or put the file at {path} by hand"
        ) from failed


def _claim(draft: Path, path: Path) -> None:
    """Gives the draft the name `path`; FileExistsError where another file has it."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links: look, then rename, with a moment in between
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(draft, path)
