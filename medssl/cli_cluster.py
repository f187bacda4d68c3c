"""The front desk for clusters: Kubernetes (`medssl cluster`), or any Ray (`medssl submit`)."""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from medssl.cli import STORE, SweepFile, _console, _sentences, _told, app

cluster_app = typer.Typer(
    no_args_is_help=True, help="A sweep on Kubernetes: up, check, submit, status, logs, ui, ..."
)
app.add_typer(cluster_app, name="cluster")

Context = Annotated[
    str | None, typer.Option(help="Of the kubeconfig; its current one, if left out.")
]
Namespace = Annotated[str, typer.Option(help="Of the cluster, in which medssl is.")]
JobName = Annotated[
    str | None,
    typer.Argument(metavar="[JOB]", help="Its name, its sweep's, or that's file; else the newest."),
]
BudgetHours = Annotated[
    float | None,
    typer.Option(metavar="HOURS", min=0, help="GPU-hours, as of `medssl run`."),
]
HERE = "medssl"
DAYS = 14  # after which a job is ended, whatever it does


@cluster_app.command()
def up(
    target: Annotated[Path, typer.Argument(help="Folder of deploy/targets.")],
    image: Annotated[
        str | None, typer.Option(help="NAME:TAG to use for the image medssl, where you pushed it.")
    ] = None,
    context: Context = None,
) -> None:
    """Set up a cluster, or bring it up to date: secrets, MLflow, and what sweeps need."""
    with _sentences():
        from medssl import cluster

        objects = cluster.render(target, image)
        names = [body["metadata"]["name"] for body in objects if body["kind"] == "Namespace"]
        if len(names) != 1:
            raise ValueError(f"{target} has {len(names)} Namespaces: one is what medssl is in")
        cluster.Cluster(context, names[0]).up(objects, typer.echo)


@cluster_app.command()
def check(context: Context = None, namespace: Namespace = HERE) -> None:
    """What a sweep needs of the cluster, and how to get what is missing. Changes nothing."""
    with _sentences():
        from medssl import cluster

        raise typer.Exit(_told(cluster.Cluster(context, namespace).check()))


@cluster_app.command()
def submit(
    sweep: SweepFile,
    budget_hours: BudgetHours = None,
    again: Annotated[bool, typer.Option("--again", help="Though it has ended well.")] = False,
    days: Annotated[float, typer.Option(min=0.01, help="After which it is ended.")] = DAYS,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be applied, and stop.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended.")] = False,
    context: Context = None,
    namespace: Namespace = HERE,
) -> None:
    """Run a sweep as a RayJob. The same sweep and code again is the same job."""
    with _sentences():
        from medssl import cluster, rayjob
        from medssl import plan as planning

        text, asked = _alone(sweep), planning.load(sweep)
        _plan(asked)
        there, code = cluster.Cluster(context, namespace), planning.code_version()
        shape = there.shape()
        rayjob.fit(asked, rayjob.groups(shape))
        name, of = rayjob.name(asked.name, code, text), rayjob.labels(asked.name, code)
        more = () if budget_hours is None else ("--budget-hours", f"{budget_hours:g}")
        file = rayjob.config_map(name, namespace, of, sweep, text)
        until_s = int(days * 86400)
        told = (name, namespace, of, sweep.name, shape, until_s, more, there.queue())
        job = rayjob.ray_job(*told)
        if dry_run:
            import yaml

            typer.echo(yaml.safe_dump_all([file, job], sort_keys=False), nl=False)
            return
        did = there.submit(file, job, again)
        count = len(asked.cells())
        typer.echo(
            {
                "made": f"job {name}: submitted, {count} cells",
                "changed": f"job {name}: changed; what already runs goes on as it was",
                "as it was": f"job {name} was submitted before: nothing has changed",
                "ended": f"job {name} has ended well before: --again runs it once more",
            }[did]
        )
        typer.echo(f"follow it: medssl cluster status --watch, medssl cluster logs {name}")
        if wait:
            raise typer.Exit(_follow(there, name))


@cluster_app.command()
def status(
    job: JobName = None,
    watch: Annotated[bool, typer.Option("--watch", help="Until it has ended.")] = False,
    store: Annotated[
        str,
        typer.Option(
            envvar="MEDSSL_STORE", help="Where a sweep's file is named: as it is seen from here."
        ),
    ] = "",
    context: Context = None,
    namespace: Namespace = HERE,
) -> None:
    """What runs, what waits and why; of a sweep's file, how far it is."""
    with _sentences():
        from medssl import cluster

        there = cluster.Cluster(context, namespace)
        found = _jobs(there, job)
        for each in found:
            _show(each)
        if not found:
            typer.echo("no jobs: medssl cluster submit SWEEP")
        if job and Path(job).is_file():
            _show_cells(Path(job), store or there.settings().get("MEDSSL_STORE", ""))
        if watch and found:
            raise typer.Exit(_follow(there, found[0].name))


@cluster_app.command()
def logs(
    job: JobName = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it has ended.")] = False,
    context: Context = None,
    namespace: Namespace = HERE,
) -> None:
    """What a job's driver has said."""
    with _sentences():
        from medssl import cluster

        there = cluster.Cluster(context, namespace)
        for line in there.log(_one(there, job).name, follow=follow):
            typer.echo(line)


@cluster_app.command()
def ui(
    mlflow_port: Annotated[int, typer.Option(help="On this machine, for MLflow.")] = 5000,
    ray_port: Annotated[int, typer.Option(help="On this machine, for Ray's dashboard.")] = 8265,
    context: Context = None,
    namespace: Namespace = HERE,
) -> None:
    """MLflow and Ray's dashboard, on this machine alone, until Ctrl-C."""
    with _sentences():
        from medssl import cluster

        there, servers = cluster.Cluster(context, namespace), []
        secret = f"kubectl -n {namespace} get secret NAME -o jsonpath='{{.data.KEY}}' | base64 -d"
        for what, select, remote, local, key in (
            ("MLflow", "app.kubernetes.io/component=mlflow", 5000, mlflow_port, "medssl-mlflow"),
            ("Ray's dashboard", "ray.io/node-type=head", 8265, ray_port, "medssl-ray"),
        ):
            if pod := there.running(select):
                servers.append(there.forward(pod, remote, local))
                typer.echo(f"{what}: http://127.0.0.1:{local}  (Secret {key})")
            else:
                typer.echo(f"{what}: no pod of it runs")
        if not servers:
            raise typer.Exit(1)
        typer.echo(f"passwords and token: {secret}")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


@cluster_app.command()
def stop(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its name, or its sweep's.")],
    context: Context = None,
    namespace: Namespace = HERE,
) -> None:
    """End a job and its nodes. What is finished is kept; submit the sweep again to go on."""
    with _sentences():
        from medssl import cluster

        there = cluster.Cluster(context, namespace)
        name = _one(there, job).name
        there.stop(name)
        typer.echo(f"job {name}: ended; what it finished is in the store")


@cluster_app.command()
def down(
    everything: Annotated[
        bool, typer.Option("--everything", help="Volumes, secrets and the namespace too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    context: Context = None,
    namespace: Namespace = HERE,
) -> None:
    """End all that runs or costs: jobs, MLflow, PostgreSQL. Volumes are kept, unless told."""
    with _sentences():
        from medssl import cluster

        there = cluster.Cluster(context, namespace)
        if everything and not yes:
            told = f"Delete namespace {namespace} with all results, curves and secrets in it?"
            typer.confirm(f"{told} (on {there.server})", abort=True)
        there.down(everything, typer.echo)


@app.command(name="submit")
def submit_to_ray(
    sweep: SweepFile,
    address: Annotated[str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="http://HEAD:8265")],
    store: Annotated[
        str | None, typer.Option(help="As the cluster's nodes see it; else their MEDSSL_STORE.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="As the cluster's nodes see it; else their MEDMNIST_ROOT.")
    ] = None,
    working_dir: Annotated[
        Path | None,
        typer.Option(help="To be sent too, where medssl is not installed there: a checkout."),
    ] = None,
    budget_hours: BudgetHours = None,
) -> None:
    """Run a sweep on a Ray cluster that is there, as `ray job submit` does."""
    with _sentences():
        from medssl import plan as planning
        from medssl import rayjob, remote

        text, asked = _alone(sweep), planning.load(sweep)
        _plan(asked)
        name = rayjob.name(asked.name, planning.code_version(), text)
        hours = None if budget_hours is None else f"{budget_hours:g}"
        options = {"--store": store, "--data": data, "--budget-hours": hours}
        more = [part for key, value in options.items() if value for part in (key, value)]
        did = remote.submit(address, name, sweep, text, more, working_dir)
        typer.echo(f"job {name}: {did}")
        typer.echo(f"follow it: ray job logs --address {address} --follow {name}")


def _alone(sweep: Path) -> str:
    """The text of a sweep's file, which travels alone; ValueError where it needs others."""
    from medssl import plan as planning

    text = sweep.read_text() if sweep.is_file() else ""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / sweep.name
        copy.write_text(text)
        try:
            planning.load(copy)
        except ValueError as no:
            planning.load(sweep)  # whose own fault it may be
            raise ValueError(
                f"{sweep} alone is what the cluster gets, and alone it fails ({no}): put what it "
                f"needs into the file"
            ) from None
    return text


def _plan(asked) -> None:
    """ValueError for a sweep that could not run anywhere; data and weights are the cluster's."""
    from medssl import plan as planning
    from medssl.store import open_store

    with tempfile.TemporaryDirectory() as folder:
        found = planning.make(asked, open_store(folder), None)
    if found.problems:
        raise ValueError("; ".join(found.problems))


def _jobs(there, job: str | None) -> list:
    from medssl import plan as planning
    from medssl import rayjob

    found = there.jobs()
    if job and Path(job).is_file():
        job = planning.load(Path(job)).name
    if job:
        named = [each for each in found if job in (each.name, each.sweep)]
        found = named or [each for each in found if each.sweep == rayjob.slug(job)]
        if not found:
            raise ValueError(f"no job {job!r}: `medssl cluster status` lists those there are")
    return found


def _one(there, job: str | None):
    found = _jobs(there, job)
    if not found:
        raise ValueError("no jobs: submit one with `medssl cluster submit SWEEP`")
    return found[0]


def _show(job) -> None:
    typer.echo(f"{job.name}  {_state(job)}")
    for pod in job.pods:
        typer.echo(f"    {pod}")
    for remedy in job.remedies:
        typer.echo(f"    {remedy}")
    if job.last:
        typer.echo(f"    {job.last}")


def _show_cells(sweep: Path, store: str) -> None:
    """How far a sweep is, where its store is a bucket, or a folder that is seen from here."""
    from medssl import plan as planning
    from medssl import status as state
    from medssl import watch
    from medssl.store import open_store

    if "://" not in store and not Path(store or STORE).is_dir():
        typer.echo(f"its store is {store or 'not known'}, in the cluster: see its last line above")
        return
    cells = planning.load(sweep).cells()
    _console().print(watch.render(state.read(cells, open_store(store or STORE))))


def _state(job) -> str:
    state = " ".join(filter(None, (job.phase or "not seen by KubeRay yet", job.status)))
    tried = f", after {job.failed} clusters that failed" if job.failed else ""
    return f"{state}{tried}" + (f": {job.message}" if job.message else "")


def _follow(there, name: str) -> int:
    for job in there.follow(name, typer.echo):
        typer.echo(f"{time.strftime('%H:%M:%S')} {job.name}  {_state(job)}")
    return 0 if job.ok else 1
