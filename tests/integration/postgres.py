"""A PostgreSQL server of our own, on a Unix socket in a temporary folder; none where it is not installed."""

import contextlib
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import tempfile
import time

DEBIAN = pathlib.Path("/usr/lib/postgresql")
START_S = 30
STOP_S = 10
UNPRIVILEGED = ("postgres", "nobody")  # a server refuses to run as root


def binaries():
    """The folder with initdb and postgres, or None. Debian keeps it off the PATH."""
    found = [pathlib.Path(path).resolve().parent for path in filter(None, [shutil.which("initdb")])]
    found += [path.parent for path in sorted(DEBIAN.glob("*/bin/initdb"), reverse=True)]
    return next((folder for folder in found if (folder / "postgres").exists()), None)


def account():
    """Whom to run it as: ourselves, unless we are root."""
    if os.geteuid() != 0:
        return None
    for name in UNPRIVILEGED:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    return None


@contextlib.contextmanager
def server():
    """Yields what psycopg connects with. Raises RuntimeError if it does not start."""
    folder = binaries()
    user = account()
    # Not below pytest's tmp_path: a socket's path has 107 characters, and that folder is ours alone.
    with tempfile.TemporaryDirectory(prefix="crdtsync-pg-") as home:
        become = {}
        if user is not None:
            os.chown(home, user.pw_uid, user.pw_gid)
            become = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        data = f"{home}/data"
        common = {
            **become,
            "cwd": home,
            "stdin": subprocess.DEVNULL,
            "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"},
        }
        initdb = [folder / "initdb", "-D", data, "-U", "test", "-A", "trust", "-E", "UTF8", "--no-sync"]
        done = subprocess.run(initdb, capture_output=True, text=True, timeout=START_S, check=False, **common)
        if done.returncode:
            raise RuntimeError(f"initdb: {done.stderr}")
        settings = ["listen_addresses=", f"unix_socket_directories={home}", "fsync=off", "max_connections=20"]
        log = pathlib.Path(home, "log")
        with log.open("w") as output:
            process = subprocess.Popen(
                [folder / "postgres", "-D", data, *(word for setting in settings for word in ("-c", setting))],
                stdout=output,
                stderr=output,
                **common,
            )
        try:
            wait_for(pathlib.Path(home, ".s.PGSQL.5432"), process, log)
            yield f"host={home} user=test dbname=postgres"
        finally:
            process.send_signal(signal.SIGINT)  # "fast": closes connections, and ends
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(socket, process, log):
    """The socket appears once the server is ready to be asked; psycopg retries nothing."""
    deadline = time.monotonic() + START_S
    while "ready to accept connections" not in log.read_text() or not socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"postgres did not start: {log.read_text()}")
        time.sleep(0.02)
