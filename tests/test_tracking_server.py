"""A real `mlflow server` on a real PostgreSQL: many drivers write, and some are killed.

What is counted is counted in the database, where a number that was sent twice would be there twice.
"""

import importlib.util
import re
import time
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from curves import EPOCHS, driver, mirror, sweep, train
from mlflow import MlflowClient
from served import initdb, mlflow_server, postgres

from medssl import status
from medssl.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.long]


class Server(NamedTuple):
    address: str
    database: object
    log: object

    def asked(self, sql: str) -> list[tuple]:
        with self.database, self.database.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()

    def runs(self, name: str, tag: str = "medssl.encoder") -> list:
        client = MlflowClient(tracking_uri=self.address)
        if not (found := client.get_experiment_by_name(name)):
            return []
        runs = client.search_runs([found.experiment_id], max_results=1000)
        return [run for run in runs if tag in run.data.tags]

    def requests(self) -> int:
        return len(re.findall(r'"(?:GET|POST|PUT) /api', self.log.read_text()))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if not initdb():
        pytest.skip("no PostgreSQL on this machine: on Debian, apt-get install postgresql")
    if not importlib.util.find_spec("psycopg2"):
        pytest.skip(
            "no psycopg2, by which MLflow speaks to PostgreSQL: pip install psycopg2-binary"
        )
    import psycopg2

    folder = tmp_path_factory.mktemp("mlflow")
    with ExitStack() as running:
        backend = running.enter_context(postgres())
        address = running.enter_context(mlflow_server(backend, folder))
        database = psycopg2.connect(backend.replace("+psycopg2", ""))
        running.callback(database.close)
        yield Server(address, database, folder / "log")


def whole(server: Server, name: str, encoders: int) -> None:
    """Fails unless there is one finished run of each encoder, below one parent, whose curve has
    each epoch once."""
    runs = server.runs(name)
    assert len(runs) == len({run.data.tags["medssl.encoder"] for run in runs}) == encoders
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = server.runs(name, "medssl.sweep")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["sweep/done"] == encoders
    of_each = server.asked(f"""
        SELECT tags.value, metrics.key, count(*), count(DISTINCT step), min(step), max(step)
        FROM metrics JOIN tags USING (run_uuid) JOIN runs USING (run_uuid)
        JOIN experiments USING (experiment_id)
        WHERE experiments.name = '{name}' AND runs.lifecycle_stage = 'active'
        AND tags.key = 'medssl.encoder' GROUP BY tags.value, metrics.key
    """)
    points = {(encoder, key): tuple(found) for encoder, key, *found in of_each}
    once = (EPOCHS, EPOCHS, 1, EPOCHS)
    for run in runs:
        encoder, seed = run.data.tags["medssl.encoder"], int(run.data.params["seed"])
        assert points.pop((encoder, "loss")) == once
        assert points.pop((encoder, "lr")) == once
        assert points.pop((encoder, "seconds")) == once
        assert points.pop((encoder, "knn/auroc:1")) == (1, 1, 0, 0)
        assert points.pop((encoder, "knn/accuracy:1")) == (1, 1, 0, 0)
        assert run.data.metrics["loss"] == 5 + seed - (EPOCHS - 1) / 100
        assert run.data.metrics["knn/auroc:1"] == 0.5 + seed / 1000
    assert not points


def test_eight_drivers_bring_two_hundred_runs_while_they_train(server, tmp_path):
    store, asked = Store(tmp_path), sweep("many", 200)
    train(asked.cells()[:50], store, epochs=20)
    before = server.requests()
    drivers = [driver(server.address, asked, tmp_path, f"{n}/8") for n in range(1, 9)]
    while len(server.runs("many")) < 20:
        assert all(d.is_alive() for d in drivers)
        time.sleep(0.2)
    train(asked.cells(), store)
    for one in drivers:
        one.join(300)
        assert one.exitcode == 0
    whole(server, "many", 200)
    assert server.requests() - before < 200 * 6  # and not one for each of 10,000 epochs


def test_what_killed_drivers_began_is_gone_on_with(server, tmp_path):
    store, asked = Store(tmp_path), sweep("killed", 30)
    train(asked.cells(), store)
    for brought in (5, 12, 20):
        killed = driver(server.address, asked, tmp_path, "1/1")
        while len(server.runs("killed")) < brought:
            assert killed.is_alive()
        killed.kill()
        killed.join()
    last = driver(server.address, asked, tmp_path, "1/1")
    last.join(300)
    assert last.exitcode == 0
    whole(server, "killed", 30)


def test_two_drivers_of_the_same_trials_leave_one_run_of_each(server, tmp_path, monkeypatch):
    store, asked = Store(tmp_path), sweep("twice", 10)
    train(asked.cells(), store)
    drivers = [driver(server.address, asked, tmp_path, "1/1") for _ in range(2)]
    for one in drivers:
        one.join(300)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    assert mirror(asked, store).sync(status.read(asked.cells(), store), last=True)
    whole(server, "twice", 10)


def test_requests_are_few_and_nothing_is_printed(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    store, asked = Store(tmp_path), sweep("counted", 10)
    train(asked.cells(), store)
    now, before = status.read(asked.cells(), store), server.requests()
    assert mirror(asked, store).sync(now)
    first = server.requests()
    assert mirror(asked, store).sync(now)
    again = server.requests()
    assert first - before <= 4 * 10 + 8
    assert again - first <= 5
    assert capfd.readouterr().out == ""
