"""What `medssl submit` hands to Ray; what Ray does with it is in test_job.py."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray import job_submission
from typer.testing import CliRunner

from medssl import cli_cluster  # noqa: F401  its verb
from medssl.cli import app

GRID = """
from medssl import Sweep

def sweep():
    return Sweep(name="tiny", method="none", dataset="phantom/cells", backbone="resnet/10-3x3",
                 image_size=28, eval="knn")
"""


@pytest.fixture
def handed(monkeypatch):
    """What a Ray that has these jobs was asked to do; files are read before they are gone."""
    told = SimpleNamespace(jobs=[], deleted=[], submitted=[], sent={})

    class Client:
        def __init__(self, address: str):
            assert address == "http://head:8265"

        def list_jobs(self) -> list:
            return told.jobs

        def delete_job(self, name: str) -> None:
            told.deleted.append(name)

        def submit_job(self, **asked) -> None:
            told.submitted.append(asked)
            folder = Path(asked["runtime_env"]["working_dir"])
            files = (file for file in folder.rglob("*") if file.is_file())
            told.sent = {str(file.relative_to(folder)): file.read_text() for file in files}

    monkeypatch.setattr(job_submission, "JobSubmissionClient", Client)
    return told


def submit(folder: Path, *more: str) -> str:
    file = folder / "my sweep.py"
    file.write_text(GRID)
    asked = ["submit", str(file), "--address", "http://head:8265", *more]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    return done.output.splitlines()[0]


def test_the_sweep_s_file_travels_alone_and_options_as_they_are(tmp_path, handed):
    options = "--store", "s3://b/a folder", "--data", "/data", "--budget-hours", "0"
    assert submit(tmp_path, *options).endswith(": submitted")
    (asked,) = handed.submitted
    run = ["python", "-m", "medssl", "run", "sweep/my sweep.py"]
    assert shlex.split(asked["entrypoint"]) == [*run, *options]
    assert asked["submission_id"].startswith("tiny-")
    assert handed.sent == {"sweep/my sweep.py": GRID}


def test_a_checkout_travels_too_without_what_is_hidden_or_results(tmp_path, handed):
    checkout = tmp_path / "checkout"
    for name in ("medssl/x.py", "sweep/mine.py", ".git/config", "medssl-store/rows.parquet"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(name)
    submit(tmp_path, "--working-dir", str(checkout))
    assert set(handed.sent) == {"medssl/x.py", "sweep/mine.py", "sweep/my sweep.py"}


@pytest.mark.parametrize(
    ("status", "says", "anew"),
    [
        ("RUNNING", "is running already", False),
        ("PENDING", "is pending already", False),
        ("STOPPED", "submitted", True),
    ],
)
def test_a_job_that_runs_is_left_and_one_that_has_ended_is_made_anew(
    tmp_path, handed, status, says, anew
):
    submit(tmp_path)
    name = handed.submitted.pop()["submission_id"]
    another = SimpleNamespace(submission_id="another", status="RUNNING")
    handed.jobs = [another, SimpleNamespace(submission_id=name, status=status)]
    assert says in submit(tmp_path)
    assert handed.deleted == ([name] if anew else [])
    assert len(handed.submitted) == anew
