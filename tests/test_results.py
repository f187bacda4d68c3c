"""Done and measured are one fact; every row says what it is a result of."""

import json
from datetime import UTC, datetime

import numpy as np
import pyarrow.parquet as pq
import pytest

from medssl import results
from medssl.report import tables
from medssl.spec import Sweep
from medssl.store import Store

SWEEP = Sweep(
    name="t",
    method=["none", "simclr"],
    dataset=["phantom/cells", "phantom/organs"],
    backbone="vit/tiny-14",
    seed=range(2),
    epochs=1,
    eval="knn",
    subset_seed=[0, 1],
    label_fraction=[0.1, 1.0],
)
ABOUT = {"code": "0.1.0", "dataset_md5": "d", "device": "test", "finished_at": datetime.now(UTC)}


def put(store, cell, auroc=0.75):
    metrics = {"auroc": auroc, "accuracy": 0.5}
    arrays = {
        "scores": np.float32([[0.25, 0.75], [1, 0], [0.5, 0.5]]),
        "target": np.uint8([[0, 1], [1, 0], [1, 0]]),
    }
    results.save(store, cell, metrics, arrays, ABOUT)
    return arrays


def test_a_cell_is_missing_until_it_is_saved(tmp_path):
    store, cells = Store(tmp_path), SWEEP.cells()
    assert results.missing(cells, store) == cells
    put(store, cells[3])
    assert results.missing(cells, store) == cells[:3] + cells[4:]


def test_a_row_holds_the_whole_spec_and_where_it_came_from(tmp_path):
    store, cell = Store(tmp_path), SWEEP.cells()[-1]
    put(store, cell)
    row = results.table(store).to_pylist()[0]
    assert row["cell"] == cell.id
    assert row["encoder"] == cell.encoder.id
    for name in ("method", "dataset", "backbone", "init", "views", "seed", "learning_rate"):
        assert row[name] == getattr(cell.encoder, name)
    for name in ("eval", "target", "label_fraction", "subset_seed"):
        assert row[name] == getattr(cell, name)
    assert json.loads(row["recipe"]) == dict(cell.encoder.recipe)
    assert json.loads(row["settings"]) == dict(cell.settings)
    assert (row["metric"], row["value"], row["code"]) == ("auroc", 0.75, "0.1.0")
    assert row["pretrain_s"] is None  # not told: no number rather than a false one


def test_predictions_are_kept_to_the_bit(tmp_path):
    store, cell = Store(tmp_path), SWEEP.cells()[0]
    arrays = put(store, cell)
    read = results.predictions(store, cell)
    assert read.keys() == arrays.keys()
    assert all(
        np.array_equal(read[k], arrays[k]) and read[k].dtype == arrays[k].dtype for k in read
    )
    with pytest.raises(ValueError, match="run its sweep first"):
        results.predictions(store, SWEEP.cells()[1])


def test_a_cell_is_not_done_before_its_predictions_are(tmp_path, monkeypatch):
    store, cell = Store(tmp_path), SWEEP.cells()[0]
    order = []
    write = Store.write
    monkeypatch.setattr(Store, "write", lambda s, n, c: (order.append(n), write(s, n, c)))
    put(store, cell)
    assert order == [f"predictions/{cell.id}.parquet", f"rows/{cell.id}.parquet"]


def zeroed(content: bytes, start: int) -> bytes:
    return content[:start] + bytes(64) + content[start + 64 :]


@pytest.mark.parametrize("harm", [lambda c: b"", lambda c: b"PAR1 torn", lambda c: c[:-9]])
def test_a_broken_file_is_named_with_a_remedy_and_can_be_set_aside(tmp_path, harm):
    store, cells = Store(tmp_path), SWEEP.cells()
    put(store, cells[0])
    put(store, cells[1])
    name = f"rows/{cells[1].id}.parquet"
    store.write(name, harm(store.read(name)))
    with pytest.raises(results.Broken, match=rf"{cells[1].id}\.parquet cannot be read .* run the"):
        results.table(store)
    assert results.set_aside_broken(cells, store) == [name]
    assert cells[1] in results.missing(cells, store)
    assert cells[0] not in results.missing(cells, store)
    assert results.table(store)["cell"].unique().to_pylist() == [cells[0].id]


def test_wherever_a_file_is_harmed_it_is_broken_or_still_right(tmp_path):
    store, cell = Store(tmp_path), SWEEP.cells()[0]
    put(store, cell)
    name = f"rows/{cell.id}.parquet"
    whole, right = store.read(name), results.table(store)
    found = set()
    for start in range(0, len(whole), 64):
        store.write(name, zeroed(whole, start))
        try:
            found.add(results.table(store).equals(right))
        except results.Broken:
            found.add("broken")
    assert found <= {True, "broken"}
    assert "broken" in found


def test_a_cell_without_a_metric_is_not_done(tmp_path):
    store, cell = Store(tmp_path), SWEEP.cells()[0]
    with pytest.raises(ValueError, match="knn yielded no metric"):
        results.save(store, cell, {}, {}, {})
    assert results.missing([cell], store) == [cell]


def test_a_table_of_cells_is_in_their_order_and_holds_no_others(tmp_path):
    store, cells = Store(tmp_path), SWEEP.cells()
    for cell in cells[:5]:
        put(store, cell)
    wanted = [cells[4], cells[1], cells[9]]
    found = results.table(store, wanted)["cell"].to_pylist()
    assert found == [cells[4].id] * 2 + [cells[1].id] * 2


class Counted(Store):
    """Knows which files were opened."""

    def _read(self, name):
        self.opened = [*getattr(self, "opened", []), name]
        return super()._read(name)


@pytest.fixture
def gathered(tmp_path, monkeypatch):
    """A store whose rows have been read, and its cells; what is few is one."""
    monkeypatch.setattr(results, "FEW", 1)
    store, cells = Counted(tmp_path), SWEEP.cells()
    for i, cell in enumerate(cells[:-1]):
        put(store, cell, auroc=i / 100)
    results.table(store, cells)
    store.opened = []
    return store, cells


def values(rows) -> list[float]:
    return results.only(rows, "auroc")["value"].to_pylist()


def test_rows_are_opened_once_and_then_read_from_one_file(gathered):
    store, cells = gathered
    assert values(results.table(store, cells)) == [i / 100 for i in range(len(cells) - 1)]
    assert store.opened == ["rows.parquet"]
    put(store, cells[-1], auroc=0.5)
    assert values(results.table(store, cells[::-1]))[:2] == [0.5, (len(cells) - 2) / 100]
    assert store.opened[1:] == ["rows.parquet", f"rows/{cells[-1].id}.parquet"]
    assert results.table(store).num_rows == 2 * len(cells)


def test_what_is_measured_anew_set_aside_or_deleted_is_so_in_the_table(gathered):
    store, cells = gathered
    put(store, cells[1], auroc=0.999)
    store.set_aside(f"rows/{cells[2].id}.parquet")
    store.delete(f"rows/{cells[3].id}.parquet")
    left = [0, 0.999, *(i / 100 for i in range(4, len(cells) - 1))]
    assert values(results.table(store, cells)) == left
    assert values(results.table(store, cells)) == left  # by the file that was written just now


def test_one_row_of_each_cell(gathered, tmp_path):
    store, cells = gathered
    rows = results.one_of_each(results.table(store, cells))
    assert rows["cell"].to_pylist() == [cell.id for cell in cells[:-1]]
    assert rows.equals(results.only(results.table(store, cells), "auroc"))
    assert not results.one_of_each(results.table(Store(tmp_path / "none"))).num_rows


@pytest.mark.parametrize("few", [0, 1, 2])
def test_as_many_cells_as_are_few_are_read_like_others(tmp_path, monkeypatch, few):
    store, cells = Store(tmp_path), SWEEP.cells()
    monkeypatch.setattr(results, "FEW", len(cells) - 1 + few)
    for cell in cells:
        put(store, cell)
    assert results.table(store, cells).num_rows == 2 * len(cells)
    assert results.table(store, cells).num_rows == 2 * len(cells)
    assert store.has("rows.parquet") == (few == 0)


def test_a_file_that_broke_since_is_found(gathered):
    store, cells = gathered
    name = f"rows/{cells[4].id}.parquet"
    content = bytearray(store.read(name))
    content[len(content) // 4] ^= 1
    store.write(name, bytes(content))
    with pytest.raises(results.Broken, match=cells[4].id):
        results.table(store, cells)
    assert results.set_aside_broken(cells, store) == [name]
    assert len(values(results.table(store, cells))) == len(cells) - 2


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing", "of another version"])
def test_the_one_file_may_be_lost_or_broken(gathered, content):
    store, cells = gathered
    before = results.table(store, cells)
    if isinstance(content, str):  # whose columns are others
        old = pq.read_table(store.root / "rows.parquet")
        pq.write_table(old.drop_columns(["code"]), tmp := store.root / "o")
        content = tmp.read_bytes()
    store.write("rows.parquet", content)
    assert results.table(store, cells) == before
    assert pq.read_table(store.root / "rows.parquet").num_rows == before.num_rows


def test_a_store_to_read_from_alone_is_read(gathered, monkeypatch):
    store, cells = gathered
    store.delete("rows.parquet")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Store, "_write", refuse)
    assert len(values(results.table(store, cells))) == len(cells) - 1


def test_the_one_file_is_plain_parquet(gathered):
    pandas = pytest.importorskip("pandas")
    store, cells = gathered
    frame = pandas.read_parquet(store.root / "rows.parquet")
    means = frame[frame.metric == "auroc"].groupby("method").value.mean()
    assert means.index.tolist() == ["none", "simclr"]
    assert frame.cell.nunique() == len(cells) - 1


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_exports_hold_every_row(tmp_path, suffix):
    store = Store(tmp_path / "store")
    put(store, SWEEP.cells()[0])
    path = tmp_path / f"out{suffix}"
    results.export(results.table(store), path)
    if suffix == ".parquet":
        assert pq.read_table(path).schema.equals(results.ROW)
    else:
        assert len(path.read_text().splitlines()) == 3


@pytest.fixture
def rows(tmp_path):
    """AUROC 0.6 for none, 0.8 for simclr; seed 1 is 0.1 above seed 0, subset 1 0.02 above 0."""
    store = Store(tmp_path)
    for cell in SWEEP.cells():
        value = 0.8 if cell.encoder.method == "simclr" else 0.6
        put(store, cell, value + 0.1 * cell.encoder.seed + 0.02 * cell.subset_seed)
    return results.table(store, SWEEP.cells()).to_pylist()


def test_a_summary_averages_subsets_then_seeds(rows):
    (table,) = tables.summaries(rows)
    assert table.title == "knn auroc"
    assert table.header == ["target", "method", "10%", "100%"]
    assert table.rows[0] == ["phantom/cells", "none", "0.660 ± 0.071", "0.650 ± 0.071"]
    assert table.rows[1] == ["phantom/cells", "simclr", "0.860 ± 0.071", "0.850 ± 0.071"]
    assert [row[0] for row in table.rows] == ["phantom/cells"] * 2 + ["phantom/organs"] * 2
    assert "2 pretraining seeds" in table.caption
    assert "backbone vit/tiny-14" in table.caption


def test_what_was_not_measured_is_a_dash_and_one_seed_has_no_spread(rows):
    one = [r for r in rows if r["seed"] == 0 and r["subset_seed"] == 0]
    few = [r for r in one if not (r["method"] == "none" and r["label_fraction"] == 1)]
    (table,) = tables.summaries(few)
    assert table.rows[0][2:] == ["0.600", "-"]


def test_an_axis_that_varies_is_a_column(rows):
    other = [{**r, "learning_rate": 1.0} for r in rows if r["method"] == "simclr"]
    (table,) = tables.summaries(rows + other)
    assert table.header == ["target", "learning_rate", "method", "10%", "100%"]
    assert [row[1] for row in table.rows[:3]] == ["-", "0.0003", "1"]


def test_markdown_and_latex_are_whole(rows):
    text = tables.markdown(tables.summaries(rows))
    assert "| phantom/cells | simclr | 0.860 ± 0.071 | 0.850 ± 0.071 |" in text
    moco = [{**r, "method": "moco_v3"} for r in rows if r["method"] == "simclr"]
    tex = tables.latex(tables.summaries(moco))
    assert r"moco\_v3 & 0." in tex
    assert r" $\pm$ " in tex
    assert r"10\% & 100\% \\" in tex
    assert tex.count("\\begin{tabular}{llrr}") == tex.count("\\end{tabular}") == 1


def test_a_caption_says_what_is_not_the_default(rows):
    (table,) = tables.summaries(rows)
    assert "sampling" not in table.caption
    assert "early_stop" not in table.caption
    changed = {"sampling": "balanced", "early_stop": "collapse"}
    trained = [r | changed if r["method"] != "none" else r for r in rows]
    (table,) = tables.summaries(trained)
    assert table.caption.endswith(", sampling balanced, early_stop collapse")
    (table,) = tables.summaries([r for r in rows if r["method"] == "none"])
    assert "sampling" not in table.caption


def test_seeds_that_agree_to_the_last_digit_have_no_spread_and_the_caption_says_so(rows):
    assert "no ±" not in tables.summaries(rows)[0].caption
    one_file = {"init": "imagenet", "init_sha256": "abc", "init_left_random": "", "notes": ""}
    same = [{**r, **one_file, "value": 0.6 if r["method"] == "none" else r["value"]} for r in rows]
    (table,) = tables.summaries(same)
    assert table.rows[0] == ["phantom/cells", "none", "0.600", "0.600"]
    assert table.rows[1][2:] == ["0.860 ± 0.071", "0.850 ± 0.071"]
    seeds = "mean ± sd over 2 pretraining seeds, no ± where they agree to the last digit; "
    assert seeds in table.caption
    said = ["none on vit/tiny-14: init imagenet is one encoder for all 2 seeds"]
    assert tables.notes(same) == said
    stem = [{**r, "init_left_random": "conv1.weight"} for r in same]
    assert not any("one encoder for all" in note for note in tables.notes(stem))
    own = [{**r, "init_sha256": f"{r['seed']}"} for r in same]  # supervised, one for each seed
    assert tables.notes(own) == []


def test_markdown_and_latex_end_with_the_notes_escaped(rows):
    found, notes = tables.summaries(rows), ["moco_v2 on x: init file:~/a_*.pth left 5% & `b|c`"]
    assert tables.markdown(found).count("note") == tables.latex(found).count("note") == 0
    text = tables.markdown(found, notes)
    said = r"note: moco\_v2 on x: init file:\~/a\_\*.pth left 5% & \`b\|c\`"
    assert text.splitlines()[-1] == said
    assert text.startswith(tables.markdown(found))
    tex = tables.latex(found, notes)
    said = r"note: moco\_v2 on x: init file:\textasciitilde{}/a\_*.pth left 5\% \& `b|c`"
    assert tex.splitlines()[-1] == rf"{{\footnotesize {said}\par}}"
    assert tex.startswith(tables.latex(found))


def test_images_of_other_sets_are_kept_beside_the_targets(tmp_path):
    store, cell = Store(tmp_path), SWEEP.cells()[0]
    arrays = {
        "knn:phantom/xray": np.float32([0.5, np.nan, 3]),  # NaN is a value, and no absence
        "knn": np.float32([1, 2]),
        "knn:phantom/fundus": np.float32([7]),
        "pair:phantom/fundus": np.float32([[8, 9]]),
        "target": np.uint8([[0, 1], [1, 0]]),
    }
    results.save(store, cell, {"auroc": 0.5}, arrays, ABOUT)
    read = results.predictions(store, cell)
    assert read.keys() == arrays.keys()
    for key, a in arrays.items():
        assert np.array_equal(read[key], a, equal_nan=True)
        assert read[key].dtype == a.dtype
    kept = pq.read_table(store.root / f"predictions/{cell.id}.parquet")
    sets = ["phantom/cells"] * 2 + ["phantom/xray"] * 3 + ["phantom/fundus"]
    assert kept["set"].to_pylist() == sets
    assert kept["image"].to_pylist() == [0, 1, 0, 1, 2, 0]
    assert kept["target"].to_pylist()[2:] == [None] * 4


def test_predictions_without_sets_are_the_targets(tmp_path):
    """As they were written before an evaluation asked for images of other sets."""
    store, cell = Store(tmp_path), SWEEP.cells()[0]
    arrays, name = put(store, cell), f"predictions/{cell.id}.parquet"
    old = pq.read_table(store.root / name).drop_columns("set")
    pq.write_table(old, store.root / name)
    read = results.predictions(store, cell)
    assert all(np.array_equal(read[k], arrays[k]) for k in arrays)


def test_the_rows_of_one_metric(tmp_path):
    store = Store(tmp_path)
    for cell in SWEEP.cells()[:3]:
        put(store, cell)
    found = results.only(results.table(store), "accuracy")
    assert found["metric"].to_pylist() == ["accuracy"] * 3
    assert results.only(results.table(store), "none").num_rows == 0
