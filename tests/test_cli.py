"""The verbs, as a user types them; what a user gets wrong is a sentence and exit code 2."""

import os
import re
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pytest
from typer.testing import CliRunner

from medssl import __file__ as medssl_home
from medssl import plan, results
from medssl.cli import app
from medssl.store import Store

FILE = """
from medssl import Sweep

def sweep():
    return Sweep(
        name="t", method=["none", "simclr"], dataset="phantom/cells", backbone="vit/tiny-14",
        image_size=28, epochs=1, eval="knn", label_fraction=[0.1, 1.0],
        drop={"too easy": lambda cell: cell.encoder.method == "none" and cell.label_fraction == 1},
    )
"""


SERVER = """
import sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass

time.sleep(1)
server = HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Page)
print("the server listens", flush=True)
try:
    server.serve_forever()
except KeyboardInterrupt:
    print("the server ends")
    sys.exit(7)
"""


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "t.py"
    path.write_text(FILE)
    return str(path)


@pytest.fixture
def store(tmp_path, sweep):
    """With a result of every cell."""
    kept = Store(tmp_path / "store")
    for cell in plan.load(plan.Path(sweep)).cells():
        arrays = {"target": np.zeros((3, 2), np.uint8)}
        results.save(kept, cell, {"auroc": 0.75, "accuracy": 0.5}, arrays, {})
    return str(kept.root)


def medssl(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.output


def test_plan_says_what_is_done_what_is_dropped_and_why(sweep, store, tmp_path):
    code, out = medssl("plan", sweep, "--store", store)
    assert code == 0
    assert "t: 2 encoders, 3 cells, 3 done, 0 missing" in out
    assert "dropped 1 cells: too easy" in out
    code, out = medssl("plan", sweep, "--store", str(tmp_path / "new"))
    assert "3 missing; 2 encoders to make" in out


def test_table_on_the_terminal_and_in_every_format(sweep, store, tmp_path):
    code, out = medssl("table", sweep, "--store", store)
    assert code == 0
    assert "0.750" in out
    _, out = medssl("table", sweep, "--store", store, "--metric", "accuracy")
    assert "0.500" in out
    _, out = medssl("table", sweep, "--store", store, "--format", "markdown")
    assert "| phantom/cells | simclr | 0.750 | 0.750 |" in out
    _, out = medssl("table", sweep, "--store", store, "--format", "latex")
    assert "\\begin{tabular}" in out
    for kind in ("csv", "parquet", "markdown", "latex"):
        path = tmp_path / f"out.{kind}"
        code, _ = medssl("table", sweep, "--store", store, "--format", kind, "--out", str(path))
        assert code == 0
        assert path.stat().st_size > 50


def test_a_piped_table_has_no_blanks_at_line_ends_and_whole_notes(sweep, tmp_path):
    kept = Store(tmp_path / "store")
    for cell in plan.load(plan.Path(sweep)).cells():
        results.save(kept, cell, {"auroc": 0.75}, {}, {"notes": "queue 9 cut to 3, " * 12})
    _, out = medssl("table", sweep, "--store", str(kept.root))
    lines = out.splitlines()
    assert lines == [line.rstrip() for line in lines]
    assert any("phantom/cells" in line and line.endswith("0.750") for line in lines)
    assert sum("queue 9 cut to 3" in line for line in lines) == 2  # one of each method


@pytest.mark.parametrize("kind", ["csv", "parquet", "markdown", "latex"])
def test_a_table_is_written_whole_or_not_at_all(sweep, store, tmp_path, kind, monkeypatch):
    asked = ["table", sweep, "--store", store, "--format", kind, "--out"]
    code, out = medssl(*asked, str(tmp_path / "none" / f"t.{kind}"))
    assert code == 2
    assert f"no folder {tmp_path}/none for t.{kind}: make it, or name" in " ".join(out.split())
    assert not (tmp_path / "none").exists()
    (tmp_path / f"d.{kind}").mkdir()
    code, out = medssl(*asked, str(tmp_path / f"d.{kind}"))
    assert (code, "is a folder: name a file in it" in " ".join(out.split())) == (2, True)
    path, link = tmp_path / f"t.{kind}", tmp_path / f"link.{kind}"
    path.write_text("before")
    link.symlink_to(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("os.fsync", full)
        code, out = medssl(*asked, str(path))
    assert (code, path.read_text()) == (2, "before")
    assert "No space left on device" in out
    assert medssl(*asked, str(link))[0] == 0  # what the link points to is written
    assert link.is_symlink()
    assert path.stat().st_size > 50


def test_a_metric_of_one_set_is_a_table_and_not_in_the_list_of_names(sweep, tmp_path):
    kept = Store(tmp_path / "store")
    metrics = {"auroc": 0.75, "ssd/auroc": 0.5} | {f"ssd/auroc:a/{k}": k / 1000 for k in range(99)}
    for cell in plan.load(plan.Path(sweep)).cells():
        results.save(kept, cell, metrics, {}, {})
    _, out = medssl("table", sweep, "--store", str(kept.root), "--metric", "ssd/auroc:a/42")
    assert "knn ssd/auroc:a/42" in out
    assert "0.042" in out
    code, out = medssl("table", sweep, "--store", str(kept.root), "--metric", "ssd")
    told = "choose from auroc, ssd/auroc; or of one set or group, as ssd/auroc:a/0"
    assert (code, told in " ".join(out.split()), "a/42" in out) == (2, True, False)


@pytest.mark.parametrize("kind", ["terminal", "markdown", "latex"])
def test_every_table_tells_the_notes(sweep, tmp_path, kind):
    kept = Store(tmp_path / "store")
    for cell in plan.load(plan.Path(sweep)).cells():
        results.save(kept, cell, {"auroc": 0.75}, {}, {"notes": "queue 9 cut to 3"})
    _, out = medssl("table", sweep, "--store", str(kept.root), "--format", kind)
    assert "note: simclr on vit/tiny-14: queue 9 cut to 3 (1 encoder)" in out


def test_a_filter_that_fails_is_a_sentence(sweep, store):
    file = plan.Path(sweep)
    file.write_text(file.read_text().replace("cell.encoder.method", "cell.method"))
    for verb in ("plan", "table", "status", "run"):
        code, out = medssl(verb, sweep, "--store", store)
        assert (code, "Traceback" in out) == (2, False)
        assert "drop 'too easy' failed on a cell: AttributeError" in " ".join(out.split())


def test_a_run_with_nothing_to_do_prints_the_table_and_starts_nothing(sweep, store, monkeypatch):
    from medssl import sweep as engine

    monkeypatch.setattr(engine, "run", None)  # a call would be an error
    code, out = medssl("run", sweep, "--store", store)
    assert code == 0, out
    assert "3 done, 0 missing" in out
    assert "0.750" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["table", "{sweep}", "--metric", "aurok"],
            "no metric 'aurok' in this sweep: choose from acc",
        ),
        (["table", "{sweep}", "--format", "csv"], "name it with --out FILE"),
        (["table", "{sweep}", "--format", "csv", "--out", "x.txt"], "does not end in .csv"),
        (["plan", "nowhere.py"], "no sweep at nowhere.py"),
        (
            ["data", "fetch", "medmnist/pathmnst"],
            "no 'pathmnst' in medmnist: did you mean pathmnist?",
        ),
    ],
)
def test_a_mistake_is_a_sentence(sweep, store, arguments, sentence):
    arguments = [a.format(sweep=sweep) for a in arguments]
    if arguments[0] == "table":
        arguments += ["--store", store]
    code, out = medssl(*arguments)
    assert code == 2
    assert sentence in " ".join(out.split())


def test_its_version_and_commit_are_told():
    code, out = medssl("--version")
    assert code == 0
    assert re.fullmatch(r"medssl \d+\.\d+\.\d+(\+\S+)?\n", out)


def test_a_plan_is_of_the_part_that_is_asked_for(tmp_path):
    file = tmp_path / "six.py"
    given = "method='simclr', dataset='phantom/cells', backbone='vit/tiny-14', seed=range(6)"
    file.write_text(f"from medssl import Sweep\ndef sweep(): return Sweep(name='six', {given})\n")

    def encoders(*more: str) -> int:
        _, out = medssl("plan", str(file), "--store", str(tmp_path / "store"), *more)
        return int(re.search(r"(\d+) encoders", out)[1])

    parts = [encoders("--shard", f"{n}/2") for n in (1, 2)]
    assert all(parts)
    assert sum(parts) == encoders() == 6


def test_a_folder_without_files_is_not_verified(tmp_path):
    code, out = medssl("data", "verify", "--data", str(tmp_path))
    assert code == 2
    assert f"no MedMNIST files in {tmp_path}" in out


def test_an_empty_store_is_told(sweep, tmp_path):
    empty = str(tmp_path / "empty")
    assert medssl("table", sweep, "--store", empty) == (0, f"no results yet in {empty}\n")
    code, out = medssl("ui", "--store", empty)
    assert code == 2
    assert "run a sweep first" in " ".join(out.split())


@pytest.mark.data
def test_data_is_listed_and_verified(data, tmp_path):
    _, out = medssl("data", "list", "--data", str(data))
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if "/" in line}
    assert lines["medmnist/breastmnist"] == ["here", "here", "-", "-"]
    assert lines["medmnist/pathmnist"] == ["-"] * 4
    assert lines["phantom/xray"] == ["here"] * 4
    code, out = medssl("data", "verify", "--data", str(data))
    assert code == 0
    assert "0 wrong" in out
    (tmp_path / "breastmnist.npz").write_bytes((data / "breastmnist.npz").read_bytes()[:-1])
    code, out = medssl("data", "verify", "--data", str(tmp_path))
    assert code == 1
    assert "1 files in" in out
    assert "1 wrong" in out


def test_ui_points_to_the_tracking_server_that_is_set(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5001")
    assert medssl("ui", "--store", str(tmp_path)) == (
        0,
        "MLflow is at http://127.0.0.1:5001 (MLFLOW_TRACKING_URI)\n",
    )


def test_a_broken_row_file_is_measured_anew_and_not_taken_for_done(sweep, store, monkeypatch):
    from medssl import sweep as engine

    kept, cells = Store(store), plan.load(plan.Path(sweep)).cells()
    kept.write(f"rows/{cells[0].id}.parquet", b"PAR1 torn")
    asked = []
    monkeypatch.setattr(engine, "run", lambda cells, *rest: asked.extend(cells) or {})
    code, out = medssl("run", sweep, "--store", store)
    assert asked == cells[:1]
    assert f"rows/{cells[0].id}.parquet cannot be read: it was set aside" in out
    assert code == 130  # this engine measured nothing


def test_what_a_budget_left_is_no_failure(sweep, tmp_path, monkeypatch):
    from medssl import sweep as engine

    asked = []

    def run(cells, *rest):
        asked.append(rest[-1])
        return {cell.encoder.id: engine.BUDGET for cell in cells}

    monkeypatch.setattr(engine, "run", run)
    place = str(tmp_path / "new")
    code, out = medssl("run", sweep, "--store", place, "--budget-hours", "1.5")
    assert (code, asked) == (0, [5400])
    assert "2 trials were not begun, for it would exceed the budget; run the sweep again" in out
    assert "failed" not in out
    code, out = medssl("plan", sweep, "--store", place, "--price", "2")
    assert "no price: this store has measured nothing like it yet" in out


@pytest.mark.parametrize(
    ("device", "gpu", "told"),
    [
        ("AMD EPYC (CPU)", "None", "about 30 minutes of AMD EPYC (CPU)"),
        ("NVIDIA H200", "None", "about 30 GPU-minutes of NVIDIA H200"),
        ("NVIDIA H200", "lambda encoder: 0.5", "about 15 GPU-minutes of NVIDIA H200"),
        (
            "NVIDIA H200",
            "lambda encoder: 0.5 if encoder.method == 'simclr' else 0",
            "about 13 GPU-minutes of NVIDIA H200",
        ),
    ],
)
def test_a_plan_counts_the_share_of_a_gpu_that_is_asked_for(tmp_path, device, gpu, told):
    file, store = tmp_path / "t.py", Store(tmp_path / "store")
    text = FILE.replace("from medssl import", "from medssl import Resources,")
    file.write_text(text.replace("drop=", f"resources=Resources(gpu={gpu}), seed=[0, 1], drop="))
    cells = plan.load(file).cells()
    of_first = [cell for cell in cells if cell.encoder.seed == 0]
    for cell in of_first:
        pretrain_s = 1200 * (cell.encoder.method == "simclr")
        about = {"device": device, "encoder_device": device, "notes": ""}
        about |= {"eval_s": 200, "pretrain_s": pretrain_s, "finished_at": datetime.now(UTC)}
        results.save(store, cell, {"auroc": 0.5}, {}, about)
    _, out = medssl("plan", str(file), "--store", str(store.root), "--price", "2")
    assert told in out


def test_brackets_in_a_path_are_printed(sweep, store, tmp_path):
    from shutil import copytree

    odd = tmp_path / "[lab]" / "store"
    copytree(store, odd)
    _, out = medssl("run", sweep, "--store", str(odd))
    assert f"store   {odd}" in out
    assert f"--store '{odd}'" in out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def sweep(:", "line 1: SyntaxError"),
        ("import nothing_of_the_kind", "line 1: ModuleNotFoundError"),
        ("x = 1\ndef sweep(): return Sweep()", "line 2: NameError: name 'Sweep' is not defined"),
        (
            "from medssl import Sweep\ndef sweep():\n    return Sweep(name='a', learning_rates=1)",
            "line 3: TypeError: Sweep.__init__() got an unexpected keyword argument "
            "'learning_rates': did you mean learning_rate? choose from name, method",
        ),
    ],
)
def test_a_sweep_that_cannot_be_read_is_a_sentence_with_its_line(tmp_path, text, sentence):
    path = tmp_path / "s.py"
    path.write_text(text)
    code, out = medssl("plan", str(path))
    assert code == 2
    assert sentence in " ".join(out.split())
    assert "Traceback" not in out


def test_the_line_of_a_mistake_is_told_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/s.py").write_text(
        "from medssl import Sweep\n\ndef sweep():\n"
        "    return Sweep(\n        name='a',\n        learning_rates=[1, 2],\n    )\n"
    )
    monkeypatch.chdir(tmp_path)
    assert "sub/s.py, line 4: TypeError" in " ".join(medssl("plan", "sub/s.py")[1].split())
    (tmp_path / "link.py").symlink_to("sub/s.py")
    assert "link.py, line 4: TypeError" in " ".join(medssl("plan", "link.py")[1].split())


def test_a_mistake_in_an_imported_file_is_told_at_the_import(tmp_path, monkeypatch):
    (tmp_path / "broken_part.py").write_text("x = 1\ny = (\n")
    (tmp_path / "s.py").write_text("import os\n\nimport broken_part\n")
    monkeypatch.syspath_prepend(tmp_path)
    out = " ".join(medssl("plan", str(tmp_path / "s.py"))[1].split())
    assert "s.py, line 3: SyntaxError: '(' was never closed (broken_part.py, line 2)" in out


def test_a_store_that_cannot_be_written_to_is_told_before_anything_starts(sweep, tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    for verb in ("run", "plan", "status", "table"):
        code, out = medssl(verb, sweep, "--store", str(file))
        assert code == 2
        assert "Not a directory" in out or f"written to the store {file}" in out
        assert "Ray" not in out


def test_a_half_done_table_says_so(sweep, store):
    kept, cells = Store(store), plan.load(plan.Path(sweep)).cells()
    kept.delete(f"rows/{cells[0].id}.parquet")
    assert "1 of 3 cells have no result yet" in medssl("table", sweep, "--store", store)[1]


def test_numbers_of_a_wide_table_are_never_cut(tmp_path):
    from io import StringIO

    from rich.console import Console

    from medssl.cli import _grid
    from medssl.report.tables import Summary

    names = ["medmnist/organamnist+organcmnist"] * 4
    wide = Summary("t", [*"abcd", "1%", "100%"], [[*names, "0.891 ± 0.012", "0.991 ± 0.002"]], "")
    for width in (1000, 80):
        screen = Console(file=StringIO(), width=width)
        screen.print(_grid(wide))
        assert "0.891 ± 0.012" in screen.file.getvalue()
        assert "0.991 ± 0.002" in screen.file.getvalue()


def test_ui_takes_a_database_of_its_own(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr("os.execve", lambda path, command, env: called.append(command))
    monkeypatch.setattr("os.fork", lambda: 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    assert medssl("ui", "--store", str(tmp_path))[0] == 0
    assert f"sqlite:///{tmp_path}/other.db" in called[0]


def test_ui_says_where_it_is_once_it_answers_and_ends_with_ctrl_c(tmp_path):
    """MLflow's own server takes ten seconds to start; this stands in for it."""
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow/__init__.py").touch()
    (tmp_path / "mlflow/__main__.py").write_text(SERVER)
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "medssl", "ui", "--store", str(tmp_path), "--port", str(port)]
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{plan.Path(medssl_home).parents[1]}"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  # ignored behind &
    with subprocess.Popen(command, env=env, preexec_fn=heard, **output) as asked:
        try:
            lines = [asked.stdout.readline().strip() for _ in range(3)]
            assert lines == [
                f"starting MLflow on {tmp_path} (Ctrl-C to stop)",
                "the server listens",
                f"MLflow on {tmp_path} is at http://127.0.0.1:{port}",
            ]
            code, out = medssl("ui", "--store", str(tmp_path), "--port", str(port))
            assert code == 2
            assert f"port {port} cannot be used (Address already in use)" in " ".join(out.split())
            asked.send_signal(signal.SIGINT)
            assert asked.wait(120) == 7  # the server's own exit code: we have become it
            assert asked.stdout.read() == "the server ends\n"
        finally:
            asked.kill()


def test_methods_are_listed_with_paper_cost_and_settings():
    from medssl import registry

    code, out = medssl("methods")
    assert code == 0
    for name in registry.names("methods"):
        assert name in out
    _, out = medssl("methods", "dino")
    assert "Caron et al. 2021" in out
    assert "prototypes" in out
    assert "65,536" in out
    assert "from 0 to 1" in out
    assert "has no settings" in medssl("methods", "none")[1]
    code, out = medssl("methods", "dyno")
    assert code == 2
    assert "no 'dyno' among methods: did you mean dino? choose from" in out


def test_logs_of_an_encoder_by_the_first_letters_of_its_id(tmp_path):
    kept = Store(tmp_path)
    kept.write("logs/ab12.log", b"2026-11-21 epoch 1: loss=5\n")
    kept.write("logs/ab34.log", b"other")
    assert medssl("logs", "ab1", "--store", str(tmp_path)) == (0, "2026-11-21 epoch 1: loss=5\n")
    code, out = medssl("logs", "ab", "--store", str(tmp_path))
    assert (code, "2 logs of 'ab'" in out, "ab12, ab34" in out) == (2, True, True)
    code, out = medssl("logs", "x", "--store", str(tmp_path))
    assert (code, "0 logs of 'x'" in out) == (2, True)


def test_a_part_without_encoders_is_refused(sweep, tmp_path):
    outs = [medssl("run", sweep, "--store", str(tmp_path), "--shard", f"{i}/99") for i in (1, 2)]
    assert {code for code, _ in outs} == {2}
    assert all(
        re.search(r"part \d of 99 of sweep 't' has no encoders: it has 2", o) for _, o in outs
    )
    code, out = medssl("run", sweep, "--shard", "4/3")
    assert (code, "shard '4/3': it is PART/OF" in out) == (2, True)
