"""MLflow as it is deployed: its command, its environment and its users, from the manifests alone,
on a real PostgreSQL. Only addresses are other ones. A sweep logs through it as its user, and loses
nothing when it is killed meanwhile."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import api
import psycopg2
import pytest
import served
from mlflow import MlflowClient
from runs import Runs, ended

from medssl import results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(served.initdb() is None, reason="no PostgreSQL here"),
]
ADDRESS = "postgresql+psycopg2://medssl@medssl-postgres:5432/mlflow"
PASSWORDS = {"PGPASSWORD": "0" * 32, "ADMIN_PASSWORD": "1" * 32, "SWEEP_PASSWORD": "2" * 32}


class Tracking:
    """The pod medssl-mlflow, as processes of this machine."""

    def __init__(self, folder, database: str, secrets: dict[str, str] | None = None):
        self.secrets = secrets or PASSWORDS
        objects = api.rendered("targets/kind")
        (deployed,) = (e for e in objects if e["kind"] == "Deployment")
        (told,) = (
            e
            for e in objects
            if (e["kind"], e["metadata"]["name"]) == ("ConfigMap", "medssl-mlflow")
        )
        pod = deployed["spec"]["template"]["spec"]
        (self.users,), (self.server,) = pod["initContainers"], pod["containers"]
        self.folder, self.database, self.port = folder, database, served.free_port()
        for name, text in told["data"].items():
            (folder / name).write_text(self.here(text))

    def here(self, text: str) -> str:
        text = text.replace(ADDRESS, self.database).replace("/etc/medssl", str(self.folder))
        return text.replace("/artifacts", str(self.folder / "artifacts")).replace(
            "/home/medssl", str(self.folder)
        )

    def environment(self, container: dict) -> dict[str, str]:
        """What the container is given, and nothing of ours but the way to Python."""
        found = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        for each in container["env"]:
            secret = self.secrets.get(each["name"], "3" * 32)
            found[each["name"]] = self.here(each["value"]) if "value" in each else secret
        return found

    def make_users(self, **changed: str) -> str:
        command = [sys.executable, *map(self.here, self.users["command"][1:])]
        env = self.environment(self.users) | changed
        return subprocess.run(
            command, env=env, cwd=self.folder, capture_output=True, text=True, check=True
        ).stdout

    @contextlib.contextmanager
    def serving(self):
        """Until it is killed, as a node whose power fails."""
        words = [*self.server["command"][1:], *self.server["args"]]
        words = [w.replace("0.0.0.0", "127.0.0.1").replace("5000", str(self.port)) for w in words]
        env = self.environment(self.server)
        with open(self.folder / "log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words],
                **{"env": env, "cwd": self.folder, "stdout": log, "stderr": log},
                start_new_session=True,
            )
        try:
            until = time.monotonic() + 120
            while self.ask("/health") != 200:
                assert process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < until
                time.sleep(0.2)
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)

    def ask(self, path: str, user="", password="", host="localhost:5000", sent=None) -> int | dict:
        """The status, or what is answered where that is 200."""
        headers = {"Host": host, "Content-Type": "application/json"}
        if user:
            both = base64.b64encode(f"{user}:{password}".encode()).decode()
            headers["Authorization"] = f"Basic {both}"
        body = json.dumps(sent).encode() if sent else None
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers)
        try:
            with urllib.request.urlopen(asked, timeout=20) as answer:
                text = answer.read()
                return json.loads(text) if sent else answer.status
        except urllib.error.HTTPError as refused:
            return refused.code
        except OSError:
            return 0


LIST = "/api/2.0/mlflow/experiments/search?max_results=5"


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    with served.postgres() as database:
        made = Tracking(tmp_path_factory.mktemp("mlflow"), database)
        assert made.make_users().splitlines() == ["admin: made", "medssl: made"]
        with made.serving():
            yield made


NAMES = "medssl-mlflow", "medssl-mlflow.medssl", "medssl-mlflow.medssl.svc.cluster.local"


def test_it_answers_to_its_names_with_and_without_a_port_and_to_no_other(tracking):
    for name in (*NAMES, "localhost", "127.0.0.1"):
        for host in (name, f"{name}:5000"):
            assert tracking.ask(LIST, "medssl", "2" * 32, host) == 200, host
    for host in ("evil.example", "evil.example:5000", "medssl-mlflow:80", "medssl-mlflow.default"):
        assert tracking.ask(LIST, "medssl", "2" * 32, host) == 403, host
        assert tracking.ask("/health", host=host) == 200  # a probe names the pod's address


def test_nobody_comes_in_without_a_password(tracking):
    assert tracking.ask(LIST) == 401
    for user, password in (
        ("medssl", "wrong"),
        ("admin", "2" * 32),
        ("admin", "password1234"),  # MLflow's own, of old
        ("admin", "password"),
    ):
        assert tracking.ask(LIST, user, password) == 401
    assert tracking.ask(LIST, "admin", "1" * 32) == 200


def test_a_sweep_s_user_sees_what_is_its_own_and_is_no_admin(tracking):
    create, get = "/api/2.0/mlflow/experiments/create", "/api/2.0/mlflow/experiments/get"
    theirs = tracking.ask(create, "admin", "1" * 32, sent={"name": "theirs"})["experiment_id"]
    mine = tracking.ask(create, "medssl", "2" * 32, sent={"name": "mine"})["experiment_id"]
    assert tracking.ask(f"{get}?experiment_id={mine}", "medssl", "2" * 32) == 200
    assert tracking.ask(f"{get}?experiment_id={theirs}", "medssl", "2" * 32) == 403
    another = {"username": "another", "password": "4" * 32}
    assert tracking.ask("/api/2.0/mlflow/users/create", "medssl", "2" * 32, sent=another) == 403


def test_no_password_is_an_argument_and_none_is_in_the_log(tracking):
    told = (tracking.folder / "log").read_text()
    for process in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if process.isdigit():
                with open(f"/proc/{process}/cmdline", errors="replace") as command:
                    told += command.read()
    for password in (*PASSWORDS.values(), "3" * 32):
        assert password not in told


def test_a_changed_secret_is_a_changed_password(tracking):
    """The pod starts anew: users.py runs again, and the server need not know."""
    said = tracking.make_users(SWEEP_PASSWORD="5" * 32).splitlines()
    assert said == ["admin: is there", "medssl: has a new password"]
    assert tracking.ask(LIST, "medssl", "5" * 32) == 200
    assert tracking.make_users().splitlines() == ["admin: is there", "medssl: has a new password"]


def test_the_assistant_runs_no_command_in_the_pod(tracking):
    assistant = "/ajax-api/3.0/mlflow/assistant/config"
    assert tracking.ask(assistant) == 401
    code = """
import asyncio
from mlflow.assistant.config import PermissionsConfig
from mlflow.assistant.providers.tool_executor import execute_tool
command, all = {"command": "echo from the shell"}, PermissionsConfig(full_access=True)
print(asyncio.run(execute_tool("Bash", command, permissions=all)))
"""
    env = tracking.environment(tracking.server)

    def ran(env: dict[str, str]) -> bool:
        command = [sys.executable, "-c", code]
        out = subprocess.run(command, env=env, cwd=tracking.folder, capture_output=True, text=True)
        return "from the shell" in out.stdout

    assert not ran(env)
    del env["MLFLOW_ENABLE_ASSISTANT_SANDBOX"]
    assert ran(env)  # as it would be


def logged_in(tracking):
    """A way to it that gives the password to each request, as a browser does that was told it."""

    def answer(handler):
        sent = handler.rfile.read(int(handler.headers.get("Content-Length", 0))) or None
        given = base64.b64encode(f"medssl:{'2' * 32}".encode()).decode()
        headers = {"Authorization": f"Basic {given}", "Host": "localhost:5000"}
        headers["Content-Type"] = handler.headers.get("Content-Type", "")
        address = f"http://127.0.0.1:{tracking.port}{handler.path}"
        try:
            got = urllib.request.urlopen(urllib.request.Request(address, sent, headers))
        except urllib.error.HTTPError as refused:
            got = refused
        with got:
            handler.send_response(got.status)
            handler.send_header("Content-Type", got.headers.get("Content-Type", ""))
            handler.end_headers()
            handler.wfile.write(got.read())

    return served.served(answer)


def test_its_pages_open_in_a_browser_and_show_a_run(tracking, tmp_path):
    if not (chromium := shutil.which("chromium")):
        pytest.skip("no Chromium here: on Debian, apt-get install chromium")
    user = "medssl", "2" * 32
    create, log = "/api/2.0/mlflow/experiments/create", "/api/2.0/mlflow/runs/create"
    experiment = tracking.ask(create, *user, sent={"name": "looked-at"})["experiment_id"]
    run = {"experiment_id": experiment, "run_name": "simclr seed 0", "start_time": 1}
    tracking.ask(log, *user, sent=run)
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    quiet += ["--window-size=1300,800", f"--screenshot={tmp_path}/seen.png", "--dump-dom"]
    with logged_in(tracking) as address:
        page = f"{address.rpartition('/')[0]}/#/experiments/{experiment}/runs"
        for _ in range(3):  # a page that is still being drawn on a busy machine
            command = [chromium, *quiet, "--virtual-time-budget=30000", page]
            seen = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
            if "simclr seed 0" in seen:
                break
    assert "looked-at" in seen
    assert "simclr seed 0" in seen


EPOCHS = 8
CHANGES = f"name='deployed', method=SIMCLR, epochs={EPOCHS}, seed=[0, 1], label_fraction=1.0"


def as_user(monkeypatch, tracking, user: str, password: str) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    return MlflowClient(tracking_uri=f"http://127.0.0.1:{tracking.port}")


def encoders(client: MlflowClient) -> list:
    """Their runs, as far as this user sees them."""
    if not (experiment := client.get_experiment_by_name("deployed")):
        return []
    found = client.search_runs([experiment.experiment_id])
    return [run for run in found if "medssl.encoder" in run.data.tags]


@pytest.fixture
def database():
    with served.postgres() as address:
        yield address


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_sweep_logs_through_it_and_loses_nothing_when_it_is_killed(
    database, tmp_path, monkeypatch
):
    folder = tmp_path / "mlflow"
    folder.mkdir()
    names = (*PASSWORDS, "MLFLOW_FLASK_SERVER_SECRET_KEY")
    tracking = Tracking(folder, database, {name: os.urandom(16).hex() for name in names})
    tracking.make_users()
    env = {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{tracking.port}",
        "MLFLOW_TRACKING_USERNAME": "medssl",
        "MLFLOW_TRACKING_PASSWORD": tracking.secrets["SWEEP_PASSWORD"],
    }
    runs = Runs(tmp_path / "sweep", CHANGES, env)
    with tracking.serving():
        driver = runs.start()
        client = as_user(monkeypatch, tracking, "medssl", tracking.secrets["SWEEP_PASSWORD"])
        until = time.monotonic() + 300
        while not any("loss" in run.data.metrics for run in encoders(client)):
            assert driver.poll() is None, driver.stdout.read()
            assert time.monotonic() < until
            time.sleep(0.5)
    time.sleep(6)  # away for longer than the mirror's pace
    assert driver.poll() is None, "the sweep was over before its server was killed"
    try:
        with tracking.serving():
            code, out = ended(driver)
            assert code == 0, out
            assert results.missing(runs.cells, runs.store) == []

            found = encoders(client)
            assert len(found) == 2
            for run in found:
                assert run.info.status == "FINISHED"
                steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
                assert sorted(steps) == sorted(set(steps))
                assert len(steps) == EPOCHS
                assert any("knn" in name for name in run.data.metrics)
            assert any((folder / "artifacts").rglob("*.png"))  # by way of the server

            for name in client.search_experiments():
                assert name.name in ("deployed", "Default")
            admin = as_user(monkeypatch, tracking, "admin", tracking.secrets["ADMIN_PASSWORD"])
            assert len(encoders(admin)) == 2
    finally:
        if driver.poll() is None:
            driver.send_signal(signal.SIGKILL)

    places = {"what the driver said": out, "log": (folder / "log").read_text()}
    with psycopg2.connect(database.replace("+psycopg2", "")) as to, to.cursor() as asked:
        asked.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for (table,) in asked.fetchall():
            asked.execute(f'SELECT t::text FROM "{table}" t')
            places[f"table {table}"] = "\n".join(row for (row,) in asked.fetchall())
    to.close()
    assert "deployed" in places["table experiments"]
    for file in (tmp_path / "sweep").rglob("*"):
        if file.is_file():
            places[str(file)] = file.read_bytes().decode(errors="replace")
    secrets = tracking.secrets.values()
    assert {place for place, text in places.items() for word in secrets if word in text} == set()
