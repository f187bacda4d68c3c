"""How long is a sweep, beside its work? Forty trials of uneven length on two slots.

    python tests/benchmarks/bench_makespan.py            # minutes; longer trials: ... SCALE

Trials of one to forty times SCALE epochs, shuffled, through `sweep.run` on a Ray of two cores, with
nothing known of their lengths but the specs. Work is what pretraining and evaluating took on the
workers; ideal is its sum over two slots, or the longest trial. Where the rest went is told apart:
a process's start, imports, data, writing to the store, and what nobody counted (Ray, Tune, waiting
for the next trial), with Ray's own start in the driver.
Success: the makespan, Ray's start included, is at most 1.15 times the ideal.
"""

import functools
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from here import environment

RESULTS = Path(__file__).parent / "results" / "makespan_cpu.json"
SLOTS, TRIALS = 2, 40
TRAIN = 64  # images: an epoch is one update
FOLDER = "MEDSSL_MAKESPAN"  # where workers say what they spent


def hook() -> None:
    """In each of Ray's workers, before anything else: a trial's seconds, by what they went for."""
    from medssl import sweep as engine

    spent: Counter = Counter()
    born = time.time() - _age_s()
    real, first = engine._done, []

    def timed(name: str, do):
        @functools.wraps(do)
        def wrapped(*args, **more):
            began = time.perf_counter()
            inside = sum(spent.values())
            try:
                return do(*args, **more)
            finally:  # what is counted inside is not counted twice
                spent[name] += time.perf_counter() - began - (sum(spent.values()) - inside)

        return wrapped

    def done(*args):
        if not first:
            first.append(True)
            spent["process start"] += time.time() - born
            began = time.perf_counter()
            from medssl import datasets, trial
            from medssl.store import Store

            spent["imports"] += time.perf_counter() - began
            trial.pretrain = timed("pretraining", trial.pretrain)
            trial.evaluate = timed("evaluating", trial.evaluate)
            datasets.load = timed("data", datasets.load)
            Store.write = timed("writing", Store.write)
        began, before = time.perf_counter(), sum(spent.values())
        told = real(*args)
        spent["rest of trials"] += time.perf_counter() - began - (sum(spent.values()) - before)
        told_in = Path(os.environ[FOLDER], f"{os.getpid()}.json")
        told_in.write_text(json.dumps({"born": born, **spent}))
        return told

    engine._done = done


def _age_s() -> float:
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    return up_s - ticks / os.sysconf("SC_CLK_TCK")


def main(scale: int) -> None:
    from medssl import results
    from medssl import sweep as engine
    from medssl.spec import Resources, Sweep
    from medssl.store import open_store

    lengths = [scale * (1 + i) for i in range(TRIALS)]
    random.Random(0).shuffle(lengths)
    cells = Sweep(
        name="uneven",
        method=("simclr", {"hidden_dim": 256, "out_dim": 64}),
        dataset="phantom/lesions",
        backbone="vit/tiny-14",
        image_size=28,
        train_images=TRAIN,
        batch_size=64,
        epochs=lengths,
        eval=["knn", "linear_probe"],
        label_fraction=[0.1, 1.0],
    ).cells()
    with tempfile.TemporaryDirectory() as folder:
        import ray

        for name, value in (engine.DEFAULTS | {FOLDER: folder}).items():
            os.environ.setdefault(name, value)
        store, began = open_store(Path(folder) / "store"), time.perf_counter()
        ray.init(
            address="local",
            num_cpus=SLOTS,
            include_dashboard=False,
            object_store_memory=engine.OBJECT_STORE,
            log_to_driver=False,
            runtime_env={"worker_process_setup_hook": hook},
            _node_ip_address="127.0.0.2",
        )
        up_s = time.perf_counter() - began
        engine.run(cells, store, None, "bench", Resources(cpu=1), lambda _: None)
        whole_s = time.perf_counter() - began
        assert results.missing(cells, store) == []
        spent: Counter = Counter()
        for file in Path(folder).glob("*.json"):
            spent.update(json.loads(file.read_text()))
        rows = results.one_of_each(results.table(store)).to_pylist()
    del spent["born"]
    of_each: Counter = Counter()
    pretrain_s = {row["encoder"]: row["pretrain_s"] for row in rows}
    for row in rows:
        of_each[row["encoder"]] += row["eval_s"]
    of_each.update(pretrain_s)
    work_s = spent["pretraining"] + spent["evaluating"]
    ideal_s = max(work_s / SLOTS, max(of_each.values()))
    slots_s = SLOTS * whole_s
    spent["Ray's start, on both slots"] = SLOTS * up_s
    spent["nobody's: Ray, Tune, idle slots"] = slots_s - sum(spent.values())
    result = {
        "environment": environment(),
        "trials": TRIALS,
        "slots": SLOTS,
        "makespan_s": round(whole_s, 1),
        "ideal_s": round(ideal_s, 1),
        "ratio": round(whole_s / ideal_s, 3),
        "longest_trial_s": round(max(of_each.values()), 1),
        "seconds_of_slots": {name: round(s, 1) for name, s in spent.most_common()},
    }
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 1)
