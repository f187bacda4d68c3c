"""Everything that outlives a process, as whole files under names that say what they are.

    encoders/ID.safetensors   features/ID/IMAGES-SPLIT-ENCODER.safetensors   checkpoints/ID[-FIT].pt
    rows/CELL.parquet         predictions/CELL.parquet            progress/ID.json   logs/ID.log
    inits/NAME.sha256         which file was meant by the name of an init, see weights.py

A file appears whole or not at all: it is written beside its name, forced to disk, then renamed. Two
processes that write the same name write the same content, to the last digits of their machines, so
either may win; of an encoder the first does (`exclusive`), and what is made of it carries the
digest of the file that it was made of.
"""

import contextlib
import os
from pathlib import Path

from medssl._files import whole


class Store:
    """A folder of named, whole files. Names are relative, with forward slashes."""

    def __init__(self, root: Path | str):
        self.root = Path(root).expanduser().resolve()

    def read(self, name: str) -> bytes | None:
        """The content of `name`, or None where it is not there."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def has(self, name: str) -> bool:
        return (self.root / name).is_file()

    def write(self, name: str, content: bytes, exclusive: bool = False) -> None:
        """Puts `content` under `name`, whole or not at all; OSError where the disk refuses.

        If exclusive, FileExistsError where the name is taken; of two writers, one gets it.
        """
        with whole(self.root / name, exclusive) as draft:
            draft.write(content)

    def set_aside(self, name: str) -> None:
        """Renames a file that cannot be read, so that it counts as missing and can be looked at."""
        path = self.root / name
        with contextlib.suppress(FileNotFoundError):  # another reader was first
            path.replace(path.with_name(f"{path.name}.broken"))

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def names(self, folder: str, suffix: str) -> set[str]:
        """What is in `folder`, without its suffix; drafts of killed writers are not there."""
        try:
            found = os.listdir(self.root / folder)
        except FileNotFoundError:
            return set()
        return {f.removesuffix(suffix) for f in found if f.endswith(suffix) and f[0] != "."}
