"""A sweep that seems to have run: its curves and rows in a store; and drivers that mirror it.

Drivers are processes, which can be killed; they are forked by a server that has imported MLflow.
"""

import json
import multiprocessing
import os
import time

import numpy as np

from medssl import results, status, tracking
from medssl.report.overview import overview
from medssl.spec import Shard, Sweep
from medssl.store import Store

EPOCHS = 50
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["curves", "mlflow"])


def sweep(name: str, encoders: int) -> Sweep:
    given = {"method": "simclr", "dataset": "phantom/cells", "backbone": "vit/tiny-14"}
    return Sweep(
        name=name, **given, epochs=EPOCHS, seed=range(encoders), eval="knn", label_fraction=1.0
    )


def train(cells: list, store: Store, epochs: int = EPOCHS) -> None:
    """What trials would have left behind after so many epochs; after all of them, rows too."""
    for cell in cells:
        seed = cell.encoder.seed
        curve = [{"loss": 5 + seed - e / 100, "lr": 0.1, "seconds": 1.25} for e in range(epochs)]
        state = "finished" if epochs == EPOCHS else "pretraining"
        said = {"state": state, "curve": curve, "started": 1e9, "updated": time.time()}
        if epochs == EPOCHS:
            scores = {"scores": np.zeros((2, 2), np.float32)}
            results.save(store, cell, {"auroc": 0.5 + seed / 1000, "accuracy": 0.5}, scores, {})
        store.write(f"progress/{cell.encoder.id}.json", json.dumps(said).encode())


def mirror(asked: Sweep, store: Store) -> tracking.Mirror:
    cells = asked.cells()
    read = status.Reader(cells, store).read

    def told():
        rows = results.only(results.table(store, cells), "auroc").to_pylist()
        return overview(cells, read(), rows)

    return tracking.Mirror(asked.name, store, lambda trial: [], told, "0.1.0+abc")


def follow(address: str, asked: Sweep, root: str, shard: str) -> None:
    """A driver of a part of the sweep, as MLflow sees it: until all of its trials have finished."""
    os.environ["MLFLOW_TRACKING_URI"] = address
    store, part = Store(root), Shard.read(shard)
    cells = [cell for cell in asked.cells() if part.holds(cell.encoder)]
    to_server, read = mirror(asked, store), status.Reader(cells, store).read
    now = read()
    while any(trial.said.get("state") != "finished" for trial in now.trials):
        to_server.sync(now)
        time.sleep(0.1)
        now = read()
    raise SystemExit(0 if to_server.sync(now, last=True) else to_server.trouble)


def driver(*asked) -> multiprocessing.Process:
    process = processes.Process(target=follow, args=asked)
    process.start()
    return process
