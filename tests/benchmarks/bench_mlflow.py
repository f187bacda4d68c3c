"""How many requests, and how long, until MLflow has a sweep?

    python tests/benchmarks/bench_mlflow.py            # six minutes

A real `mlflow server` of two workers on a PostgreSQL, on this machine, and trials that seem to have
run: 200 of 50 epochs, brought by one driver with one request at a time and with several, by eight
drivers at once; and 1,000, brought, and then found to be there by another driver. Requests are
counted in the server's log. A run of MLflow's own has a request for each epoch.
Success: at most 5 requests a run, and 20 in all where everything is there.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from curves import EPOCHS, driver, mirror, sweep, train
from here import environment
from served import mlflow_server, postgres

from medssl import status, tracking
from medssl.store import Store

RUNS, MANY = 200, 1000
RESULTS = Path(__file__).parent / "results" / "mlflow_cpu.json"


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        postgres() as backend,
        mlflow_server(backend, folder := Path(name)) as address,
    ):
        os.environ["MLFLOW_TRACKING_URI"] = address
        log, cases = folder / "log", []

        def asked() -> int:
            return log.read_text().count('" 200 OK')

        def case(what: str, runs: int, do, *given) -> None:
            requests, start = asked(), time.perf_counter()
            do(*given)
            took = {"seconds": round(time.perf_counter() - start, 1), "runs": runs}
            cases.append({"case": what, **took, "requests": asked() - requests})
            print(cases[-1])

        def trained(name: str, runs: int):
            made, store = sweep(name, runs), Store(folder / name)
            train(made.cells(), store)
            return made, store

        def bring(made, store) -> None:
            assert mirror(made, store).sync(status.read(made.cells(), store), last=True)

        def eight(made, store) -> None:
            each = [driver(address, made, store.root, f"{n}/8") for n in range(1, 9)]
            for one in each:
                one.join()
                assert one.exitcode == 0

        tracking.MEET_S = 0  # a second, for once
        for at_once in (1, 4):
            tracking.AT_ONCE = at_once
            case(f"{at_once} at once", RUNS, bring, *trained(f"at once {at_once}", RUNS))
        case("eight drivers, from their start", RUNS, eight, *trained("eight drivers", RUNS))
        made, store = trained("many", MANY)
        case("a thousand", MANY, bring, made, store)
        case("a thousand that are there", MANY, bring, made, store)
    found = {"environment": environment(), "epochs": EPOCHS, "cases": cases}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(RESULTS)


if __name__ == "__main__":
    main()
