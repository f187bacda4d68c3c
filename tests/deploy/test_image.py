"""The image: what its Dockerfile says, and, where it takes minutes, what it does."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import image
import pytest
import yaml
from packaging.requirements import Requirement

import medssl
from medssl import plan, results
from medssl.store import open_store

ROOT = image.ROOT
SCRIPT = ROOT / "deploy" / "image" / "build"
COMMIT = "abc1234"
SWEEP = """
from medssl import Sweep

def sweep():
    return Sweep(
        name="tiny", method=["none", ("simclr", {"hidden_dim": 64, "out_dim": 32})],
        dataset="phantom/cells", backbone="vit/tiny-14", image_size=28, epochs=1, eval="knn",
        label_fraction=[0.1, 1.0],
    )
"""


def locked() -> dict[str, str]:
    """Every package of the lock, by its version here."""
    found = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        asked = Requirement(line)
        if not asked.marker or asked.marker.evaluate():
            found[asked.name.lower()] = str(asked.specifier).removeprefix("==")
    return found


def manifests() -> str:
    return "\n".join(file.read_text() for file in sorted((ROOT / "deploy").rglob("*.yaml")))


def test_one_version_of_ray_is_in_the_lock_the_image_and_the_manifests():
    import tomllib

    ray = locked()["ray"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bound,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert bound.specifier.contains(ray)
    for file in (ROOT / "Dockerfile", SCRIPT):  # which take it from the lock, and have no other
        assert not re.search(r"\bray(\[\w+\])?\s*[=~<>]=", file.read_text()), file
    told = set(re.findall(r"rayVersion:\s*\"?([^\s\"]+)", manifests()))
    assert told == {ray}
    assert set(re.findall(r"rayproject/ray:([^\s]+)", manifests())) <= {ray}


def test_the_version_is_one_in_code_labels_and_manifests():
    label = re.search(r'image\.version="([^"]+)"', "\n".join(image.texts("LABEL")))[1]
    assert label == medssl.__version__
    assert set(re.findall(r"image:\s*medssl:(\S+)", manifests())) == {medssl.__version__}


def test_the_dockerfile_runs_the_script_and_nothing_else_as_root():
    words = [step.word for step in image.steps()]
    assert words.count("FROM") == 1
    for text in image.texts("RUN"):
        first, *rest = text.split(" && ")
        assert re.fullmatch(r'/build/build (environment /build|code "\$\{COMMIT\}")', first)
        assert set(rest) <= {"rm -r /build"}
    assert words.index("USER") > max(n for n, word in enumerate(words) if word == "RUN")
    assert image.texts("USER") == ["1000:1000"]
    assert not {"ENTRYPOINT", "ADD", "VOLUME", "EXPOSE"} & set(words)  # KubeRay brings commands
    assert subprocess.run(["sh", "-n", SCRIPT], check=False).returncode == 0
    assert SCRIPT.stat().st_mode & 0o111


def test_the_base_is_pinned_and_no_host_or_secret_is_named():
    (base,) = image.texts("FROM")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", base)
    files = (ROOT / "Dockerfile").read_text(), SCRIPT.read_text()
    for text in files:
        assert "latest" not in text
        assert "://" not in text
        assert not re.search(r"\b[a-z0-9-]+\.(io|com|org|dev|net)/", text)
    for text in [*image.texts("ARG"), *image.texts("ENV"), *image.texts("LABEL")]:
        assert not re.search(r"password|secret|token|_key", text, re.I), text


def test_what_is_sent_is_the_code_and_no_more():
    sent = image.sent()
    for name in ("medssl/__init__.py", "medssl/methods/simclr.py", "sweeps/full_grid.py"):
        assert name in sent
    tops = {Path(name).parts[0] for name in sent}
    assert tops == {"medssl", "sweeps", "deploy", "pyproject.toml", "requirements.lock"} | {
        "LICENSE",
        "README.md",
    }
    assert [name for name in sent if name.startswith("deploy/")] == ["deploy/image/build"]


NOBODYS = """
.git/config .env medssl/__pycache__/a.pyc medssl-store/rows/a.parquet id_rsa .venv/bin/python
deploy/base/secret.yaml sweeps/breastmnist.npz tests/runs.py
"""


@pytest.mark.parametrize("name", NOBODYS.split())
def test_what_is_nobodys_business_is_not_sent(name):
    assert image._ignored(name, ROOT)


def test_every_source_that_the_dockerfile_copies_is_sent():
    for text in image.texts("COPY"):
        *sources, _ = text.split()
        for source in sources:
            assert source == "." or source in image.sent()


def test_an_image_knows_its_commit_without_git(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "medssl", tmp_path / "medssl")
    monkeypatch.setattr(medssl, "__file__", str(tmp_path / "medssl" / "__init__.py"))
    assert plan.code_version().startswith(f"{medssl.__version__}+files.")
    (tmp_path / "medssl" / "COMMIT").write_text(f"{COMMIT}\n")
    assert plan.code_version() == f"{medssl.__version__}+{COMMIT}"
    (tmp_path / "medssl" / "COMMIT").unlink()


@pytest.fixture(scope="module")
def root():
    """The image's, built by its own steps; and nothing was written there since."""
    if why := image.unable():
        pytest.skip(why)
    made = image.build(COMMIT)
    try:
        stamp = made / "built"
        stamp.touch()
        time.sleep(0.05)
        yield made
        changed = ["find", made, "-xdev", "-newerct", f"@{stamp.stat().st_ctime + 0.01:.3f}"]
        done = subprocess.run(changed, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == []
    finally:
        image.remove(made)


pods = pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(1200)  # slow: begun early


def marked(test):
    for mark in pods:
        test = mark(test)
    return test


@marked
def test_the_image_holds_what_a_pod_needs_and_no_more(root):
    site = next((root / "opt/venv/lib").glob("python3.*/site-packages"))
    have = {
        re.sub(r"[-_.]+", "-", name).lower(): version
        for info in site.glob("*.dist-info")
        for name, version in [info.name.removesuffix(".dist-info").rsplit("-", 1)]
    }
    lock = {re.sub(r"[-_.]+", "-", name): version for name, version in locked().items()}
    assert {name: lock.get(name) for name in have} == have
    assert {"torch", "ray", "mlflow", "solo-learn", "psycopg2-binary", "kubernetes"} <= set(have)
    assert not {"pytest", "ruff", "moto", "lightly", "pre-commit", "uv", "pip"} & set(have)

    for tool in ("cc", "gcc", "c++", "make", "git", "uv", "pip"):
        assert not list(root.glob(f"usr/*bin/{tool}")) + list(root.glob(f"opt/venv/bin/{tool}"))
    for tool in ("usr/bin/bash", "usr/bin/wget", "opt/venv/bin/medssl", "opt/venv/bin/ray"):
        assert (root / tool).exists()
    for left in ("root/.cache", "tmp/*", "var/lib/apt/lists/*", "build", "app/.git", "app/tests"):
        assert not list(root.glob(left)), left
    assert (root / "app/sweeps/full_grid.py").exists()

    sources = [p for p in site.rglob("*.py") if p.parts[-2] in ("ray", "torch", "mlflow", "timm")]
    for source in [*sources, *(root / "app/medssl").rglob("*.py")]:
        assert list((source.parent / "__pycache__").glob(f"{source.stem}.*.pyc")), source
    of_user = ["find", root, "-xdev", "-uid", "1000", "-o", "-xdev", "-perm", "-o+w", "-type", "f"]
    found = subprocess.run(of_user, capture_output=True, text=True, check=True).stdout.split()
    own = {str(root / name) for name in ("home/medssl", "store", "data", "artifacts")}
    assert {name for name in found if not name.startswith(f"{root}/home/medssl/")} == own


@marked
def test_commands_of_pods_run_as_nobody_on_a_root_that_cannot_be_written(root, tmp_path):
    ask = "id -u; id -G; touch /app/x /opt/venv/x /x /sweep/x /etc/x; cat /proc/self/status"
    told = image.run(root, tmp_path, ask).stdout
    assert told.startswith("1000\n1000\n")
    assert told.count("Read-only file system") == 5
    for field in ("CapPrm", "CapEff", "CapBnd"):
        assert f"{field}:\t0000000000000000" in told
    assert "NoNewPrivs:\t1" in told

    ray, mlflow = locked()["ray"], locked()["mlflow"]
    told = image.run(root, tmp_path, "bash -lc 'ray --version'; mlflow --version; which python")
    assert told.stdout.splitlines() == [
        f"ray, version {ray}",
        f"mlflow, version {mlflow}",
        "/opt/venv/bin/python",
    ]
    done = image.run(root, tmp_path, "medssl doctor", {"MEDSSL_STORE": "/store"})
    assert done.returncode == 0, done.stdout
    python = re.match(r"python:(\d+\.\d+)", image.texts("FROM")[0])[1]
    assert f"medssl {medssl.__version__}+{COMMIT}, Python {python}." in done.stdout
    assert "missing" not in done.stdout


# As KubeRay does it: `ray start` in bash, probes, the submitter's pod
JOB = """
ray start --head --block --num-cpus=2 --num-gpus=0 --dashboard-host=0.0.0.0 \
  --object-store-memory=200000000 >/tmp/head.log 2>&1 &
ask() { wget --tries 1 -T 5 -q -O- "http://localhost:$1"; }
for second in $(seq 120); do
  if ask 52365/api/healthz && ask 8265/api/gcs_healthz; then break; fi
  sleep 1
done
ask 52365/api/local_raylet_healthz
if ! ray job status --address http://127.0.0.1:8265 tiny >/dev/null 2>&1; then
  ray job submit --address http://127.0.0.1:8265 --no-wait --submission-id tiny \
    -- medssl run /sweep/tiny.py --failed-is-done
fi
ray job logs --address http://127.0.0.1:8265 --follow tiny
ray job status --address http://127.0.0.1:8265 tiny
RAY_AUTH_TOKEN=wrong ray job list --address http://127.0.0.1:8265 2>&1 | tail -3
echo "holds the token: $(printenv RAY_AUTH_TOKEN |
  grep -rlsF -f - /tmp /home/medssl /store /proc/[0-9]*/cmdline)."
"""


@marked
def test_a_head_in_the_image_is_given_a_sweep_which_fills_its_table(root, tmp_path):
    (tmp_path / "sweep").mkdir()
    file = tmp_path / "sweep" / "tiny.py"
    file.write_text(SWEEP)
    told = yaml.safe_load((ROOT / "deploy/base/settings.yaml").read_text())["data"]
    del told["MLFLOW_TRACKING_URI"]  # another test's
    told |= {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}  # beside other tests
    told |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex()}
    done = image.run(root, tmp_path, JOB, told, timeout=600)
    probes = "raylet: success gcs: success" + "success" * 2  # /api/healthz says both
    assert " ".join(done.stdout.split()).startswith(probes), done.stdout
    assert "Job 'tiny' succeeded" in done.stdout, done.stdout
    assert "Invalid authentication token" in done.stdout
    assert "holds the token: ." in done.stdout
    assert told["RAY_AUTH_TOKEN"] not in done.stdout
    kept = open_store(tmp_path / "store")
    assert results.missing(plan.load(file).cells(), kept) == []
    rows = results.table(kept).to_pylist()
    assert {row["code"] for row in rows} == {f"{medssl.__version__}+{COMMIT}"}
