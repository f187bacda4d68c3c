"""The results table: one Parquet file per finished cell, so "done" and "measured" are one fact.

    rows/CELL.parquet          a row per metric: the whole spec, the value, where it came from
    predictions/CELL.parquet   a row per test image: its target, and what the evaluation kept of it;
                               and of images of other sets, where it asked for them
    rows.parquet               all of rows/ in one file, as far as it has been read: quick to read
                               again, and nothing that cannot be made again

A cell without a file was not measured: there is no row of a failed cell, and no 0.0 instead of one.
Pages carry checksums, which are compared when they are read.
"""

import contextlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from medssl._files import whole
from medssl.ranges import split
from medssl.spec import Cell, EncoderSpec
from medssl.store import Store

KEPT = "rows.parquet"
FEW = 100  # cells whose files are opened rather than rows.parquet, which is made of more than that
SOME, MANY = 300, 5000  # files that are opened to learn from, and rows
READERS, AT_ONCE = 8, 1000  # threads, since a bucket's answers take their time; files in memory

_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}


def _columns(spec: type) -> list[tuple[str, pa.DataType]]:
    return [
        (f.name, _TYPES.get(split(f.type)[0], pa.string()))
        for f in fields(spec)
        if f.name != "encoder"
    ]


_SPEC, _CELL = _columns(EncoderSpec), _columns(Cell)

ROW = pa.schema(
    [
        ("cell", pa.string()),  # content addresses, see spec.py
        ("encoder", pa.string()),
        *_SPEC,  # recipe and settings as JSON; with a search, what it chose
        *_CELL,
        ("metric", pa.string()),  # of the test split; val_ marks the validation split
        ("value", pa.float64()),
        ("code", pa.string()),  # version and commit that evaluated
        ("encoder_code", pa.string()),  # version and commit that pretrained
        ("encoder_device", pa.string()),  # where it was pretrained, which need not be where judged
        ("encoder_precision", pa.string()),
        ("encoder_versions", pa.string()),
        ("dataset_md5", pa.string()),  # of the files pretrained on
        ("task", pa.string()),  # MedMNIST's, of the target: what its scores mean
        ("target_md5", pa.string()),  # of the files it read, in the order of `Cell.datasets`
        ("init_sha256", pa.string()),  # of the weights file, empty for random
        ("init_left_random", pa.string()),  # what of the encoder it did not hold: a stem
        ("device", pa.string()),  # where the features of the test split were made
        ("precision", pa.string()),  # of its matrix products: bf16 | float32
        ("threads", pa.int64()),
        ("versions", pa.string()),  # of libraries, as JSON
        ("notes", pa.string()),  # what a reader of its numbers should know of the pretraining
        ("contamination", pa.string()),  # test images that are among those learned from, or nearly
        ("labelled", pa.int64()),  # training images whose labels were known
        ("scarce", pa.string()),  # classes that have fewer training images than `shots` asks
        ("collapsed", pa.bool_()),  # its features lay on a line at the end, see monitor.py
        ("pretrain_s", pa.float64()),  # seconds in the training loop, over all attempts
        ("views_per_s", pa.float64()),  # while pretraining; 0 where there was none
        ("mfu", pa.float64()),  # then, operations a second as a share of what the device could do
        ("peak_gib", pa.float64()),  # of a GPU's memory, that pretraining held at most
        ("eval_s", pa.float64()),  # of this evaluation, and of features that it was first to need
        ("finished_at", pa.timestamp("us", "UTC")),
    ]
)


class Broken(ValueError):
    """A file of rows that cannot be read."""


def save(
    store: Store,
    cell: Cell,
    metrics: Mapping[str, float],
    arrays: Mapping[str, np.ndarray],
    about: Mapping[str, object],
) -> None:
    """Predictions first, then the rows, whose file says that the cell is done.

    An array "NAME" has a row per test image of the target, one "NAME:SET" a row per image of SET.
    ValueError where there is no metric: a file without rows would say that nothing is missing.
    """
    if not metrics:
        raise ValueError(f"{cell.eval} yielded no metric")
    if arrays:
        store.write(f"predictions/{cell.id}.parquet", _parquet(_images(arrays, cell.target)))
    spec = {f.name: getattr(cell.encoder, f.name) for f in fields(cell.encoder)}
    spec |= {f.name: getattr(cell, f.name) for f in fields(cell) if f.name != "encoder"}
    spec |= {k: json.dumps(dict(spec[k])) for k in ("recipe", "settings")}
    spec["search"] = str(spec["search"] or "")
    shared = {"cell": cell.id, "encoder": cell.encoder.id, **spec, **about}
    rows = [{**shared, "metric": metric, "value": value} for metric, value in metrics.items()]
    store.write(f"rows/{cell.id}.parquet", _parquet(pa.Table.from_pylist(rows, schema=ROW)))


def missing(cells: Iterable[Cell], store: Store) -> list[Cell]:
    """The cells that have no rows yet."""
    done = store.names("rows", ".parquet")
    return [cell for cell in cells if cell.id not in done]


def table(store: Store, cells: Iterable[Cell] | None = None) -> pa.Table:
    """All rows, or those of `cells` in their order; Broken, with its name, for a torn file."""
    rows, broken = collected(store, cells)
    for name, why in broken.items():
        raise Broken(
            f"{store.root}/{name} cannot be read ({why}): run the sweep again, which measures that "
            f"one cell anew"
        )
    return rows


def history(store: Store, columns: Sequence[str]) -> pa.Table:
    """Columns of a row of each cell, whatever sweep it was for: to learn from, not to report.

    Of those that rows.parquet has, MANY at most; of others SOME are opened; evenly of all. What
    cannot be read is left out, since it is told, and mended, elsewhere.
    """
    columns = list(dict.fromkeys(("cell", *columns)))
    try:
        content = store.read(KEPT) or b""
        kept = one_of_each(
            pq.ParquetFile(pa.BufferReader(content)).read(columns, use_threads=False)
        )
        kept = kept.select(columns)
    except (pa.ArrowException, KeyError, OSError):  # another version's, or not there
        kept = _none().select(columns)
    known = set(kept["cell"].to_pylist())
    if len(kept) > MANY:
        kept = kept.take(np.arange(0, len(kept), -(-len(kept) // MANY)))
    fresh = sorted(id for id in store.names("rows", ".parquet") if id not in known)
    parts = [kept]
    for id in fresh[:: -(-len(fresh) // SOME) or 1]:
        with contextlib.suppress(ValueError, OSError):
            if content := store.read(f"rows/{id}.parquet"):
                parts.append(_read(content).slice(0, 1).select(columns))
    return pa.concat_tables(parts)


def set_aside_broken(cells: Iterable[Cell], store: Store) -> list[str]:
    """Renames row files of the cells that cannot be read, so that they are missing; their names."""
    _, broken = collected(store, cells)
    for name in broken:
        store.set_aside(name)
    return list(broken)


def collected(store: Store, cells: Iterable[Cell] | None) -> tuple[pa.Table, dict[str, str]]:
    """Rows of the cells in their order, and what is wrong with the files that cannot be read.

    Of more than FEW cells only those are opened that rows.parquet has not, or not as they are now.
    """
    asked = None if cells is None else [cell.id for cell in cells]
    few = asked is not None and len(asked) <= FEW
    stamps = {} if few else store.stamps("rows", ".parquet")
    there = store.names("rows", ".parquet") if few else stamps.keys()
    wanted = sorted(there) if asked is None else [id for id in asked if id in there]
    kept, known = (_none(), {}) if few else _kept(store)
    stale = {id for id, stamp in known.items() if stamps.get(id) != stamp}
    parts, broken = [_of(kept, [id for id in known if id not in stale]) if stale else kept], {}
    fresh = [id for id in wanted if id not in known or id in stale]
    for start in range(0, len(fresh), AT_ONCE):
        names = [f"rows/{id}.parquet" for id in fresh[start : start + AT_ONCE]]
        with ThreadPoolExecutor(READERS) as pool:
            contents = list(pool.map(store.read, names))
        for name, content in zip(names, contents, strict=True):
            try:
                parts += [] if content is None else [_read(content)]  # None: it was there just now
            except ValueError as why:
                broken[name] = str(why)
    rows = pa.concat_tables(parts).combine_chunks()
    if not few and len(parts) > FEW:
        with contextlib.suppress(OSError):  # a store to read from alone
            _keep(store, rows, stamps)
    return _of(rows, wanted), broken


def _kept(store: Store) -> tuple[pa.Table, dict[str, str]]:
    """What rows.parquet holds, and the stamps of the files that it was made of."""
    try:
        content = store.read(KEPT) or b""
        rows = _read(content)
        if not pq.read_schema(pa.BufferReader(content)).equals(ROW):
            return _none(), {}  # another version's, which may have dropped what it did not know
        return rows, json.loads(rows.schema.metadata[b"medssl.stamps"])
    except (ValueError, TypeError, KeyError):  # broken, of another version, or not there
        return _none(), {}


def _keep(store: Store, rows: pa.Table, stamps: Mapping[str, str]) -> None:
    made_of = {id: stamps[id] for id in rows["cell"].unique().to_pylist()}
    told = rows.replace_schema_metadata({"medssl.stamps": json.dumps(made_of)})
    store.write(KEPT, _parquet(told, compression="zstd"))


def _of(rows: pa.Table, cells: Sequence[str]) -> pa.Table:
    """The rows of these cells, in their order."""
    place = pc.index_in(rows["cell"], value_set=_strings(cells))
    order = pc.sort_indices(place.filter(place.is_valid()))
    picked = rows.filter(place.is_valid())
    in_order = len(order) < 2 or pc.all(pc.less(order[:-1], order[1:])).as_py()
    return picked if in_order else picked.take(order)


def _none() -> pa.Table:
    return pa.Table.from_batches([], schema=ROW)  # `empty_table` would import pandas too


def one_of_each(rows: pa.Table) -> pa.Table:
    """The first row of each cell: what all of its rows say."""
    cell = rows["cell"]
    others = rows.slice(1).filter(pc.not_equal(cell.slice(1), cell.slice(0, max(0, len(cell) - 1))))
    return pa.concat_tables([rows.slice(0, 1), others])


def _strings(texts: Sequence[str]) -> pa.Array:
    """As `pa.array` would, which imports pandas: half a second of a plan."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    buffers = pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))
    return pa.StringArray.from_buffers(len(encoded), *buffers)


def only(rows: pa.Table, *metrics: str) -> pa.Table:
    """The rows of some metrics: an evaluation may have a thousand, and a dict of each is slow."""
    return rows.filter(pc.field("metric").isin(metrics))


def predictions(store: Store, cell: Cell) -> dict[str, np.ndarray]:
    """What was kept of every image, by the names that `save` was given.

    "target" (N, K); of a classifier "scores" (N, K); of ood "mahalanobis" (N,) for the test images
    of the target, "mahalanobis:medmnist/dermamnist" (M,) for another set's, and so on.
    """
    content = store.read(f"predictions/{cell.id}.parquet")
    if content is None:
        raise ValueError(f"no predictions of cell {cell.id} in {store.root}: run its sweep first")
    read, found = pq.read_table(pa.BufferReader(content)), {}
    if "set" not in read.column_names:  # written when an evaluation had the target's images alone
        read = read.add_column(0, "set", pa.array([cell.target] * len(read)))
    for name in read["set"].unique().to_pylist():
        part = read.filter(pc.field("set") == name)
        for column in part.column_names[2:]:
            if not part[column].null_count:
                key = column if name == cell.target else f"{column}:{name}"
                found[key] = np.stack(part[column].to_numpy())
    return found


def export(rows: pa.Table | list[dict], path: Path) -> None:
    """Every row, as .parquet or .csv; of dicts, a column without any value is one of numbers.

    A file that was there stays until the new one is whole.
    """
    if isinstance(rows, list):
        rows = pa.Table.from_pylist(rows)
        none = [f.with_type(pa.float64()) if pa.types.is_null(f.type) else f for f in rows.schema]
        rows = rows.cast(pa.schema(none))
    with whole(path.resolve()) as file:
        if path.suffix == ".csv":
            pyarrow.csv.write_csv(rows, file)
        else:
            pq.write_table(rows, file)


def _read(content: bytes) -> pa.Table:
    """The rows of a file, null in columns it has not; ValueError where there are none to be had."""
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        rows = file.read(use_threads=False)
        if not rows.schema.equals(ROW):
            had = rows.schema.names
            none = {f.name: pa.nulls(len(rows), f.type) for f in ROW if f.name not in had}
            columns = [rows[n].cast(f.type) if (n := f.name) in had else none[n] for f in ROW]
            rows = pa.table(columns, schema=ROW.with_metadata(rows.schema.metadata))
    except (pa.ArrowException, OSError) as broken:  # both are raised, by where the damage is
        raise ValueError(broken) from None
    if not rows.num_rows:
        raise ValueError("it has no rows")
    return rows


def _images(arrays: Mapping[str, np.ndarray], target: str) -> pa.Table:
    """A row per image, set by set, the target's first; null where nothing was kept of a set's."""
    sets: dict[str, dict[str, pa.Array]] = defaultdict(dict)
    for key, a in sorted(arrays.items(), key=lambda pair: ":" in pair[0]):
        name, _, of = key.partition(":")
        ends = np.arange(len(a) + 1, dtype=np.int32) * a[0].size
        column = pa.array(a) if a.ndim == 1 else pa.ListArray.from_arrays(ends, a.ravel())
        sets[of or target][name] = column
    parts = []
    for of, columns in sets.items():
        n = len(next(iter(columns.values())))
        own = {"set": pa.array([of] * n), "image": pa.array(range(n), pa.int32())}
        parts.append(pa.table({**own, **columns}))
    return pa.concat_tables(parts, promote_options="default")


def _parquet(rows: pa.Table, compression: str = "snappy") -> bytes:
    file = io.BytesIO()
    pq.write_table(rows, file, compression=compression, write_page_checksum=True)
    return file.getvalue()
