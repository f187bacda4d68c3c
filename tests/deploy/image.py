"""The Dockerfile carried out without Docker, on a bare Debian in namespaces of its own.

    root = build(commit)               # FROM, COPY, RUN as they stand in the Dockerfile
    run(root, folder, "medssl doctor") # as its USER, with its ENV, on a read-only root, offline

A bare Debian of the base image's release stands in for the image: the same packages, and Debian's
Python for the image's. It is kept in ~/.cache/medssl-root; packages are hard links to uv's cache,
so that a build costs a minute and little disk. Nothing writes to what they link to: the root is
read-only from then on. Mounts are of a namespace that ends with its command; outside there are
never any.
"""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
KEPT = Path.home() / ".cache" / "medssl-root"
BARE = "python3,python3-venv,ca-certificates"  # what the base image has and a bare Debian has not
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")  # of this machine's way to its registries
NEEDED_GIB = 10

MOUNTS = """
set -eu
mount --bind "$ROOT" "$ROOT"
mount -t proc proc "$ROOT/proc"
mount -t tmpfs -o mode=755 dev "$ROOT/dev"
for name in null zero full random urandom; do
  touch "$ROOT/dev/$name"
  mount --bind "/dev/$name" "$ROOT/dev/$name"
done
ln -s /proc/self/fd "$ROOT/dev/fd"
"""
BUILD = (
    MOUNTS
    + """
exec env -i PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin $GIVEN \
  chroot "$ROOT" /bin/sh -c "$COMMAND"
"""
)
RUN = (
    MOUNTS
    + """
mkdir "$ROOT/dev/shm"
mount -t tmpfs -o mode=1777 shm "$ROOT/dev/shm"
mount -t tmpfs -o mode=1777 tmp "$ROOT/tmp"
mount -t tmpfs -o uid=1000,gid=1000,mode=700 home "$ROOT/home/medssl"
for name in store data sweep; do mount --bind "$FOLDER/$name" "$ROOT/$name"; done
mount -o remount,ro,bind "$ROOT/sweep"
mount -o remount,ro,bind "$ROOT"
"$PYTHON" -c "$LOOPBACK"
exec chroot "$ROOT" setpriv --reuid=$USER --regid=$USER --clear-groups --no-new-privs \
  --bounding-set=-all --inh-caps=-all env -i --chdir="$HERE" $GIVEN bash -c "$COMMAND"
"""
)
LOOPBACK = (  # a namespace's own is down: SIOCSIFFLAGS, IFF_UP | IFF_RUNNING
    "import fcntl, socket, struct; fcntl.ioctl("
    "socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8914, struct.pack('16sh14x', b'lo', 65))"
)


class Step(NamedTuple):
    word: str  # FROM, COPY, RUN, ...
    text: str


def steps(file: Path = ROOT / "Dockerfile") -> list[Step]:
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Step(*line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def texts(word: str) -> list[str]:
    return [step.text for step in steps() if step.word == word]


def environment() -> dict[str, str]:
    pairs = [pair for text in texts("ENV") for pair in shlex.split(text)]
    return dict(pair.split("=", 1) for pair in pairs)


def release() -> str:
    """Debian's, of the base image."""
    return re.search(r"-slim-(\w+)$", texts("FROM")[0])[1]


def sent(folder: Path = ROOT) -> list[str]:
    """What `docker build` sends, by .dockerignore, of the files that git has or would take."""
    asked = ["git", "-C", folder, "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(name for name in files if (folder / name).exists() and not _ignored(name, folder))


def _ignored(name: str, folder: Path) -> bool:
    """The last rule that fits a path, or a folder that it is in, decides."""
    ignored, parts = False, name.split("/")
    ahead = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    for line in (folder / ".dockerignore").read_text().splitlines():
        rule = line.strip()
        if rule and not rule.startswith("#"):
            pattern = rule.removeprefix("!").removeprefix("**/")
            of = parts if rule.removeprefix("!").startswith("**/") else ahead
            if any(fnmatch.fnmatchcase(each, pattern) for each in of):
                ignored = not rule.startswith("!")
    return ignored


def unable() -> str:
    """Why this machine cannot do it; "" where it can."""
    if os.getuid() != 0:
        return "needs root, to mount and to chroot"
    for tool in ("mmdebstrap", "unshare", "chroot", "git"):
        if not shutil.which(tool):
            return f"no {tool} here: apt-get install mmdebstrap util-linux git"
    spaces = [*SPACES, "--net", "mount", "-t", "tmpfs", "none", "/mnt"]
    tried = subprocess.run(spaces, capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"`{shlex.join(spaces)}` is not permitted here: {tried.stderr.strip()}"
    KEPT.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(KEPT).free / 2**30) < NEEDED_GIB:
        return f"{free:.0f} GiB free in {KEPT}, {NEEDED_GIB} needed"
    return ""


SPACES = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts"]


def bare() -> Path:
    """A tar of the bare Debian, made once."""
    kept = KEPT / f"{release()}.tar"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=KEPT) as folder:
            made = Path(folder) / "root.tar"
            command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={BARE}"]
            subprocess.run([*command, release(), made], check=True)
            made.rename(kept)
    return kept


def build(commit: str) -> Path:
    """The image's root; `remove` it. Prints what its steps print."""
    root = Path(tempfile.mkdtemp(prefix="root-", dir=KEPT))
    try:
        subprocess.run(["tar", "-xf", bare(), "-C", root], check=True)
        cache = Path(os.environ.get("UV_CACHE_DIR") or Path.home() / ".cache" / "uv")
        if cache.is_dir() and cache.stat().st_dev == root.stat().st_dev:
            (root / "root" / ".cache").mkdir()
            subprocess.run(["cp", "-al", cache, root / "root/.cache/uv"], check=True)
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        (root / "etc/hosts").write_text("127.0.0.1 localhost\n")  # as container runtimes do
        shutil.copy(CERTIFICATES, root / "certificates.crt")
        given = {"PIP_CERT": "/certificates.crt", "SSL_CERT_FILE": "/certificates.crt"}
        given |= {name: os.environ[name] for name in ("PIP_INDEX_URL",) if name in os.environ}
        given |= {"COMMIT": commit}
        for step in steps():
            if step.word == "COPY":
                *sources, to = step.text.split()
                for source in sources:
                    _copy(source, root / to.lstrip("/"), to.endswith("/"))
            elif step.word == "RUN":
                _in_namespaces(BUILD, root, step.text, given)
        (root / "certificates.crt").unlink()
        return root
    except BaseException:
        remove(root)
        raise


def _copy(source: str, to: Path, into: bool) -> None:
    if (ROOT / source).is_file():
        at = to / Path(source).name if into else to
        at.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / source, at)
        return
    for name in sent():
        if source == "." or name.startswith(f"{source}/"):
            at = to / os.path.relpath(name, source)
            at.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, at)


def run(
    root: Path, folder: Path, command: str, more: dict[str, str] | None = None, timeout: int = 300
) -> subprocess.CompletedProcess:
    """A command of bash's as the image's user; `folder` holds store, data and sweep."""
    for name in ("store", "data", "sweep"):
        (folder / name).mkdir(exist_ok=True, parents=True)
        os.chown(folder / name, 1000, 1000)
    given = environment() | (more or {})
    user, _, group = texts("USER")[-1].partition(":")
    assert user == group
    told = {"FOLDER": str(folder), "USER": user, "HERE": texts("WORKDIR")[-1]}
    told |= {"PYTHON": sys.executable, "LOOPBACK": LOOPBACK}
    return _in_namespaces(RUN, root, command, given, told, ["--net"], timeout)


def _in_namespaces(
    script: str,
    root: Path,
    command: str,
    given: dict[str, str],
    told: dict[str, str] | None = None,
    more: list[str] | None = None,
    timeout: int = 600,
) -> subprocess.CompletedProcess:
    """Where it is a step of the build, CalledProcessError if it fails."""
    assert not any(re.search(r"\s", value) for value in given.values()), given
    variables = " ".join(f"{name}={value}" for name, value in given.items())
    env = os.environ | (told or {})
    env |= {"ROOT": str(root), "GIVEN": variables, "COMMAND": command}
    done = subprocess.run(
        [*SPACES, *(more or []), "sh", "-c", script],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    if script is BUILD:
        print(done.stdout)
        done.check_returncode()
    return done


def remove(root: Path) -> None:
    assert root.parent == KEPT
    subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)
