"""A sweep handed to a Ray cluster that is there already: `ray job submit`, with its sentences."""

import contextlib
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

ENDED = {"STOPPED", "SUCCEEDED", "FAILED"}


def submit(
    address: str,
    name: str,
    sweep: Path,
    text: str,
    options: Sequence[str] = (),
    working_dir: Path | None = None,
) -> str:
    """Has the cluster's head run `medssl run SWEEP`; "submitted", or that it runs already.

    With `working_dir` that folder travels too and is where Python looks first. One that has ended
    is submitted anew. ValueError where nothing answers, or it does not know us.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    from ray.job_submission import JobSubmissionClient

    with _sentences(address), tempfile.TemporaryDirectory() as folder:
        client = JobSubmissionClient(address)
        for job in client.list_jobs():
            if job.submission_id == name:
                if job.status not in ENDED:
                    return f"is {job.status.lower()} already; nothing was submitted"
                client.delete_job(name)
        sent = Path(folder) / "sent"
        if working_dir:
            hidden = shutil.ignore_patterns(".*", "__pycache__", "medssl-store")
            shutil.copytree(working_dir, sent, ignore=hidden)
        (sent / "sweep").mkdir(parents=True, exist_ok=True)
        (sent / "sweep" / sweep.name).write_text(text)
        command = ["python", "-m", "medssl", "run", f"sweep/{sweep.name}", *options]
        client.submit_job(
            entrypoint=shlex.join(command),
            submission_id=name,
            runtime_env={"working_dir": str(sent)},
        )
    return "submitted"


@contextlib.contextmanager
def _sentences(address: str):
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as no:  # of which we say the first sentence, and Ray a dozen
        told = re.split(r"\.* Ensure that|\n", str(no))[0]
        raise ValueError(
            f"{address} wants its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a "
            f"file that holds it ({told})"
        ) from None
    except ConnectionError as no:
        raise ValueError(
            f"no Ray answers at {address} ({str(no).partition(chr(10))[0]}): name the dashboard of "
            f"its head as http://HOST:8265, which `kubectl port-forward` brings here"
        ) from None
    except RuntimeError as no:
        raise ValueError(f"{address} refused the job: {str(no).partition(chr(10))[0]}") from None
