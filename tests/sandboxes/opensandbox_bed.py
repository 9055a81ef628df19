"""The real opensandbox-server on the Docker daemon of the tests, with a stand-in for its execd.

The server is the package from its index, in a virtual environment of its own: it shares no
dependency with us. Only execd, a Go program that exists as an image alone, is stood in for.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.sandboxes import docker_bed
from workers.sandboxes.opensandbox.settings import OpenSandboxSettings

KEY = "bed-key"
LOCK = Path(__file__).parents[2] / "requirements" / "opensandbox-server.lock"
EXECD = Path(__file__).parent / "execd"
INSTALL_PATIENCE, START_PATIENCE = 600, 60

CONFIG = """
[server]
host = "127.0.0.1"
port = {port}
api_key = "{key}"
[runtime]
type = "docker"
execd_image = "{execd}"
[store]
type = "sqlite"
path = "{folder}/store.db"
[docker]
network_mode = "{network}"
publish_host = "127.0.0.1"
pids_limit = 256
seccomp_profile = '''{seccomp}'''
[ingress]
mode = "direct"
"""


def binary() -> Path:
    """Return the server's program, installed from its lock file once for all runs."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    state = hashlib.sha256(LOCK.read_bytes() + sys.base_prefix.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("FLEET_TEST_CACHE", "/var/tmp"))
    folder = cache / f"fleet-opensandbox-server-{version}-{state}"
    program, done = folder / "bin" / "opensandbox-server", folder / ".complete"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        if uv := shutil.which("uv"):
            _run(uv, "venv", "-q", "--python", sys.executable, str(folder))
            python = ("--python", str(folder / "bin" / "python"))
            _run(uv, "pip", "install", "-q", *python, "--require-hashes", "-r", str(LOCK))
        else:
            _run(sys.executable, "-m", "venv", str(folder))
            pip = (str(folder / "bin" / "pip"), "install", "-q", "--disable-pip-version-check")
            _run(*pip, "--require-hashes", "-r", str(LOCK))
        done.touch()
    return program


def execd_image() -> str:
    """Make the image that the server copies execd from; returns its name."""
    name = "fleet-test/execd-standin"
    container = docker_bed.docker("create", docker_bed.base_image(), "/bin/true").strip()
    for part in ("execd", "bootstrap.sh"):
        docker_bed.docker("cp", str(EXECD / part), f"{container}:/{part}")
    docker_bed.docker("commit", container, name)
    docker_bed.docker("rm", container)
    return name


@contextmanager
def closed_network(kind: str = "closed") -> Iterator[str]:
    """A network with no way out, whose members cannot talk to each other."""
    name = f"fleet-test-{kind}-{os.getpid()}"
    apart = "com.docker.network.bridge.enable_icc=false"
    docker_bed.docker("network", "create", "--internal", "--opt", apart, name)
    try:
        yield name
    finally:
        docker_bed.docker("network", "rm", name, check=False)


@contextmanager
def server(folder: Path, network: str, seccomp: str = "") -> Iterator[str]:
    """A running server; yields its host and port. ``seccomp``: a profile, not its path."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True)
    config = folder / "config.toml"
    fields = {"port": port, "key": KEY, "execd": execd_image(), "network": network}
    config.write_text(CONFIG.format(folder=folder, seccomp=seccomp, **fields), "utf-8")
    passed = {name: os.environ[name] for name in ("PATH", "DOCKER_HOST") if name in os.environ}
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [binary(), "--config", config],
        env={**passed, "HOME": str(folder)},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
        log.close()


def settings(domain: str, **fields: object) -> OpenSandboxSettings:
    known = {"domain": domain, "api_key": KEY, "image": docker_bed.base_image()}
    return OpenSandboxSettings.model_validate({**known, **fields})


def containers(owner: str) -> list[str]:
    """Return the ids of all containers that the server holds for one owner."""
    marks = ("--filter", f"label=fleet.owner={owner}")
    return docker_bed.docker("ps", "--all", "--quiet", "--no-trunc", *marks).split()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended: {log.read_text()[-2000:]}"
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)  # another process: nothing to await
    raise AssertionError(f"the server does not answer: {log.read_text()[-2000:]}")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, timeout=INSTALL_PATIENCE, check=False)
    assert done.returncode == 0, f"{command[:2]}: {done.stderr.decode()[-2000:]}"
