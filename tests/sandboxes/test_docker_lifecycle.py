"""No container stays behind, whoever is killed, and whoever is killed is noticed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.helpers import eventually
from tests.sandboxes import docker_bed
from tests.sandboxes.docker_bed import containers, docker
from tests.sandboxes.docker_bed import provider as provider
from workers.sandboxes.agent_sandbox import AgentSandbox
from workers.sandboxes.docker import container, owners
from workers.sandboxes.docker.container import Container
from workers.sandboxes.docker.provider import DockerProvider
from workers.sandboxes.processes import ProcessMark
from workers.sandboxes.protocol import SandboxLost, SandboxStartError, SandboxUnavailable
from workers.sandboxes.spec import Limits, SandboxSpec

pytestmark = pytest.mark.docker

REPOSITORY = Path(__file__).parents[2]
OWNER = """
import asyncio, sys
from workers.sandboxes.docker.provider import DockerProvider
from workers.sandboxes.spec import SandboxSpec

async def main():
    provider = DockerProvider(image=sys.argv[1])
    sandboxes = [await provider.start(SandboxSpec()) for _ in range(2)]
    running = [asyncio.create_task(s.exec("trap '' TERM; sleep 60")) for s in sandboxes]
    print("ready", flush=True)
    await asyncio.gather(*running)

asyncio.run(main())
"""


def keeper(sandbox: AgentSandbox) -> subprocess.Popen[bytes]:
    """Return the docker command that keeps a sandbox."""
    jail = sandbox._jail
    assert isinstance(jail, Container)
    assert jail._process is not None
    return jail._process


async def runs_a_command(container: str) -> None:
    def listing() -> bool:
        return len(docker("top", container, "-o", "pid").splitlines()) > 2

    await eventually(listing, "the command runs", within=5)


async def test_a_killed_owner_takes_its_containers_along(provider: DockerProvider) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, docker_bed.base_image()],
        cwd=REPOSITORY, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert owner.stdout is not None
    assert await asyncio.to_thread(owner.stdout.readline) == b"ready\n"
    left = containers(owner.pid)
    assert len(left) == 2
    for one in left:
        await runs_a_command(one)
    assert await provider.reap() == 0, "the owner lives"
    keepers = children(owner.pid)
    assert len(keepers) == 2
    owner.kill()
    await eventually(lambda: containers(owner.pid) == [], "the containers are gone", within=10)
    await eventually(
        lambda: not any(mark.alive() for mark in keepers), "no docker command is left", within=10
    )
    owner.stdout.close()
    owner.wait()
    assert await provider.reap() == 0


def children(pid: int) -> list[ProcessMark]:
    found = []
    for folder in Path("/proc").iterdir():
        mark = ProcessMark.of(int(folder.name)) if folder.name.isdigit() else None
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if mark is not None and parent == str(pid):
            found.append(mark)
    return found


def dead_owner() -> ProcessMark:
    process = subprocess.Popen(["true"])
    process.wait()
    return ProcessMark(pid=process.pid, started=1)


def someones(owner: ProcessMark, **changed: str) -> dict[str, str]:
    """Return the marks of somebody else's container; ``changed`` are some of its marks."""
    marks = owners.marks(600, {})
    marks |= {owners.PID: str(owner.pid), owners.STARTED: str(owner.started)}
    return marks | {f"{owners.MARK}{key}": value for key, value in changed.items()}


def create(name: str, marks: Mapping[str, str], *, start: bool = False) -> str:
    """Make a container without an agent; returns its id."""
    labels = [part for key, value in marks.items() for part in ("--label", f"{key}={value}")]
    how = ("run", "--detach") if start else ("create",)
    image = docker_bed.base_image()
    return docker(*how, "--name", name, "--network", "none", *labels, image, "sleep", "60").strip()


async def test_the_reaper_ends_what_dead_owners_left_and_nothing_else(
    provider: DockerProvider,
) -> None:
    sandbox = await provider.start(SandboxSpec())
    dead = dead_owner()
    past = str(int(time.time() - owners.SLACK - 10))
    left = [
        create(f"{owners.NAME}t-never-started", someones(dead)),
        create(f"{owners.NAME}t-runs", someones(dead), start=True),
        create(f"{owners.NAME}t-abroad-late", someones(dead, host="elsewhere", expires=past)),
    ]
    kept = [
        create(f"{owners.NAME}t-abroad", someones(dead, host="elsewhere")),
        create(f"{owners.NAME}t-prolonged", someones(ProcessMark.own(), expires=past)),
        create(f"{owners.NAME}t-odd", someones(dead, pid="x")),
        create("t-from-an-image-of-ours", someones(dead)),
    ]
    try:
        assert await provider.reap() == len(left)
        there = docker("ps", "--all", "--quiet", "--no-trunc").split()
        assert set(left) & set(there) == set()
        assert set(kept) <= set(there)
        assert (await sandbox.exec("echo on")).stdout == "on\n"
        assert await provider.reap() == 0
    finally:
        docker("rm", "--force", *left, *kept, check=False)


async def test_a_container_killed_from_outside_is_lost_and_says_so(
    provider: DockerProvider,
) -> None:
    for victim in ("container", "docker command"):
        sandbox = await provider.start(SandboxSpec())
        (one,) = containers()
        running = asyncio.create_task(sandbox.exec("sleep 60"))
        await runs_a_command(one)
        if victim == "container":
            docker("kill", one)
        else:
            keeper(sandbox).kill()
        with pytest.raises(SandboxLost, match="lost"):
            await asyncio.wait_for(running, 15)
        assert not await sandbox.is_alive()
        with pytest.raises(SandboxLost):
            await sandbox.read_file("x")
        assert containers() == [], "it is cleaned up at once"


async def test_a_kill_is_not_taken_for_what_an_earlier_program_did(
    provider: DockerProvider,
) -> None:
    """That one ran out of memory, and its sandbox went on."""
    sandbox = await provider.start(SandboxSpec(limits=Limits(memory_mb=64)))
    assert (await sandbox.run_python("x = bytearray(200 << 20)")).status == "oom"
    assert (await sandbox.run_python("print('on')")).stdout == "on\n"
    (one,) = containers()
    running = asyncio.create_task(sandbox.exec("sleep 60"))
    await runs_a_command(one)
    docker("kill", one)
    with pytest.raises(SandboxLost) as lost:
        await asyncio.wait_for(running, 15)
    assert lost.type is SandboxLost, lost.value


async def test_what_is_being_started_ends_with_its_provider(provider: DockerProvider) -> None:
    await provider._find(docker_bed.base_image())
    starts = [asyncio.create_task(provider.start(SandboxSpec())) for _ in range(3)]
    await eventually(lambda: containers() != [], "containers are made", within=10)
    await provider.close()
    for start in starts:
        with pytest.raises(SandboxUnavailable, match="closed meanwhile"):
            await start
    assert containers() == []
    assert provider._doubtful == set()


async def test_a_frozen_container_is_lost_in_time_and_removed(
    provider: DockerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.sandboxes.agent_sandbox.GRACE", 0.3)
    sandbox = await provider.start(SandboxSpec())
    (one,) = containers()
    docker("pause", one)
    began = time.monotonic()
    with pytest.raises(SandboxLost, match="did not answer"):
        await sandbox.exec("true", timeout=0.2)
    assert time.monotonic() - began < 15
    assert containers() == []


async def test_an_agent_that_is_told_nonsense_ends(provider: DockerProvider) -> None:
    sandbox = await provider.start(SandboxSpec())
    jail = sandbox._jail
    assert isinstance(jail, Container)
    assert jail._writer is not None
    jail._writer.write(b"\xff\xff\xff\xff")
    await eventually(lambda: containers() == [], "the container is gone", within=10)
    with pytest.raises(SandboxLost, match="gone"):
        await sandbox.exec("true")


@pytest.mark.parametrize("delay", [0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3])
async def test_a_start_that_is_cancelled_leaves_nothing(
    provider: DockerProvider, delay: float
) -> None:
    await provider._find(docker_bed.base_image())  # so that it is the container that is cancelled
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(delay):
            await provider.start(SandboxSpec())
            await asyncio.Event().wait()
    await provider.close()
    assert containers() == []
    assert provider._doubtful == set()
    assert not children(os.getpid())


async def test_provider_close_ends_every_sandbox(provider: DockerProvider) -> None:
    sandboxes = await asyncio.gather(*(provider.start(SandboxSpec()) for _ in range(3)))
    assert len(containers()) == 3
    began = time.monotonic()
    await provider.close()
    assert time.monotonic() - began < 5
    assert containers() == []
    assert not any([await sandbox.is_alive() for sandbox in sandboxes])


async def test_a_container_that_could_not_be_removed_is_the_next_reapers(
    provider: DockerProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Docker stops answering while a frozen container is to be closed."""
    monkeypatch.setattr(container, "EXIT_PATIENCE", 0.3)
    monkeypatch.setattr(container, "END_PATIENCE", 0.3)
    sandbox = await provider.start(SandboxSpec())
    (one,) = containers()
    docker("pause", one)
    real = shutil.which("docker")
    assert real is not None
    broken = tmp_path / "docker"
    broken.write_text("#!/bin/sh\nexec sleep 60\n")
    broken.chmod(0o755)
    monkeypatch.setattr(provider._docker, "_command", str(broken))
    began = time.monotonic()
    await sandbox.close()
    assert time.monotonic() - began < 5
    assert keeper(sandbox).poll() is not None
    assert containers() == [one]
    with pytest.raises(SandboxUnavailable, match="did not end within"):
        monkeypatch.setattr("workers.sandboxes.docker.client.PATIENCE", 0.3)
        await provider._docker.run("ps", patience=0.3)
    monkeypatch.setattr(provider._docker, "_command", real)
    assert await provider.reap() == 1
    assert containers() == []
    assert await provider.reap() == 0


async def test_without_a_daemon_trying_later_may_help(
    provider: DockerProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await provider._find(docker_bed.base_image())
    here = os.environ["DOCKER_HOST"]
    for nowhere in (f"unix://{tmp_path}/nothing", "tcp://127.0.0.1:9"):
        monkeypatch.setenv("DOCKER_HOST", nowhere)
        fresh = DockerProvider(image=docker_bed.base_image())
        for doing in (fresh.probe, fresh.reap, lambda: provider.start(SandboxSpec())):
            with pytest.raises(SandboxUnavailable, match="no Docker daemon answers"):
                await doing()
        await fresh.close()
    monkeypatch.setenv("DOCKER_HOST", here)


async def test_a_wrong_limit_is_told_with_dockers_own_words(provider: DockerProvider) -> None:
    spec = SandboxSpec()
    limits = spec.limits.model_copy(update={"memory_mb": -20})
    with pytest.raises(SandboxStartError, match=r"[Mm]emory limit"):
        await provider.start(spec.model_copy(update={"limits": limits}))


@pytest.mark.parametrize("command", ["/usr/bin/docker", "/usr/local/bin/docker"])
async def test_old_and_new_docker_commands_will_do(command: str) -> None:
    if not Path(command).exists():
        pytest.skip("not on this machine")
    provider = DockerProvider(image=docker_bed.base_image(), command=command)
    async with await provider.start(SandboxSpec(labels={"task": "t\n1"})) as sandbox:
        (one,) = containers()
        labels = docker("inspect", "--format", "{{json .Config.Labels}}", one)
        assert '"trajectory-fleet.spec.task":"t?1"' in labels
        assert (await sandbox.run_python("print(6 * 7)")).stdout == "42\n"
    assert (await provider.probe()).broken == ()
    assert await provider.reap() == 0
    assert containers() == []
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
