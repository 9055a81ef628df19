"""What the tests with containers share: the daemon, images made on the spot, what is left over.

The fixtures are imported by name into the modules that use them.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from tests.sandboxes.hostile_host import Host
from workers.sandboxes.docker import owners
from workers.sandboxes.docker.provider import DockerProvider
from workers.sandboxes.protocol import Sandbox

REPOSITORY = Path(__file__).parents[2]


def base_image() -> str:
    """Return the image that scripts/test-docker.sh made: Debian with python3 and venv."""
    image = os.environ.get("FLEET_TEST_IMAGE")
    assert image, "these tests are run by scripts/test-docker.sh"
    return image


def docker(*arguments: str, stdin: bytes = b"", check: bool = True) -> str:
    done = subprocess.run(
        ["docker", *arguments], input=stdin, capture_output=True, timeout=120, check=False
    )
    assert not check or done.returncode == 0, done.stderr.decode()
    return done.stdout.decode() + ("" if check else done.stderr.decode())


def image_of(tag: str, files: Mapping[str, bytes], *changes: str) -> str:
    """Make an image of nothing but these files, which are executable; returns its name."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    options = [part for change in changes for part in ("--change", change)]
    docker("import", *options, "-", f"fleet-test/{tag}", stdin=tar.getvalue())
    return f"fleet-test/{tag}"


def derived(tag: str, *lines: str) -> str:
    """Build an image on top of the base image; returns its name."""
    text = "\n".join((f"FROM {base_image()}", *lines))
    docker("build", "--quiet", "--tag", f"fleet-test/{tag}", "-", stdin=text.encode())
    return f"fleet-test/{tag}"


def build_worker() -> str:
    """Build compose/worker.Dockerfile on the base image, as an operator would; returns its name."""
    bundle = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    said = ""
    for command in dict.fromkeys((shutil.which("docker"), "/usr/bin/docker")):
        # Some docker commands have BuildKit inside, some need a plugin, which a machine may lack.
        done = subprocess.run(
            [str(command), "build", "--quiet", "--file", "compose/worker.Dockerfile",
             "--build-arg", f"PYTHON_IMAGE={base_image()}", "--secret",
             f"id=ca_bundle,src={bundle if Path(bundle).is_file() else os.devnull}",
             "--tag", "fleet-test/worker", "."],
            cwd=REPOSITORY, env={**os.environ, "DOCKER_BUILDKIT": "1"}, capture_output=True,
            text=True, timeout=600, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return "fleet-test/worker"
        said += done.stderr
    raise AssertionError(said)


def containers(pid: int | None = None) -> list[str]:
    """Return the ids of all sandboxes of one process of this host: by default, this one."""
    marks = ("--filter", f"label={owners.PID}={pid or os.getpid()}")
    return docker("ps", "--all", "--quiet", "--no-trunc", *marks).split()


@pytest.fixture
async def provider(untouched_host: Host, records: Path) -> AsyncIterator[DockerProvider]:
    records.mkdir()  # the hostile suite expects to find the folder beside its canary
    provider = DockerProvider(image=base_image())
    yield provider
    await provider.close()
    assert containers() == [], "a container was left behind"


@pytest.fixture
def quirks() -> frozenset[str]:
    return frozenset({"environment"})


@pytest.fixture
def wreck() -> Callable[[Sandbox], Awaitable[None]]:
    """Kill the only container there is."""

    async def kill(sandbox: Sandbox) -> None:
        docker("kill", *containers())

    return kill
