"""The conformance suite over the real OpenSandbox server and real containers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib import resources

import pytest

from common.failures import ConfigurationError
from tests.helpers import eventually
from tests.sandboxes import docker_bed, opensandbox_bed
from tests.sandboxes.opensandbox_conformance import *  # noqa: F403
from workers.sandboxes import opensandbox
from workers.sandboxes.opensandbox import labels, probe
from workers.sandboxes.protocol import (
    Sandbox,
    SandboxLost,
    SandboxProvider,
    SandboxStartError,
    SandboxUnsupported,
)
from workers.sandboxes.spec import Limits, SandboxSpec

pytestmark = pytest.mark.docker

OWNER = labels.of_this_process()[labels.OWNER]


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose sandboxes have no way out, set up as the docs say."""
    folder = tmp_path_factory.mktemp("opensandbox") / "closed"
    profile = resources.files("workers.sandboxes.docker").joinpath("seccomp.json").read_text()
    with (
        opensandbox_bed.closed_network() as network,
        opensandbox_bed.server(folder, network, seccomp=profile) as domain,
    ):
        yield domain


@pytest.fixture(scope="module")
def bridged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server as it comes, with Docker's bridge and without an egress sidecar."""
    folder = tmp_path_factory.mktemp("opensandbox") / "bridged"
    with opensandbox_bed.server(folder, "bridge") as domain:
        yield domain


@pytest.fixture
async def provider(closed: str) -> AsyncIterator[SandboxProvider]:
    settings = opensandbox_bed.settings(closed, network="closed", use_server_proxy=True)
    provider = opensandbox.make(settings)
    yield provider
    await provider.close()
    assert opensandbox_bed.containers(OWNER) == [], "a container was left behind"


@pytest.fixture
def wreck() -> Callable[[Sandbox], Awaitable[None]]:
    async def kill(sandbox: Sandbox) -> None:
        (container,) = opensandbox_bed.containers(OWNER)
        await asyncio.to_thread(docker_bed.docker, "kill", container)

    return kill


async def test_a_program_that_takes_all_memory_is_stopped_and_the_sandbox_goes_on(
    provider: SandboxProvider,
) -> None:
    async with await provider.start(SandboxSpec(limits=Limits(memory_mb=96))) as sandbox:
        result = await sandbox.run_python("x = bytearray(400 << 20)\nx[::4096] = x[1::4096]")
        assert result.status == "oom"
        assert (await sandbox.exec("echo on")).stdout == "on\n"


async def test_a_fork_bomb_hurts_nobody_else(provider: SandboxProvider) -> None:
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    async with (
        await provider.start(SandboxSpec()) as bombed,
        await provider.start(SandboxSpec()) as beside,
    ):
        running = asyncio.create_task(bombed.run_python(bomb, timeout=2))
        assert (await beside.exec("echo on")).stdout == "on\n"
        assert (await running).status == "timeout"
        assert (await bombed.exec("echo over")).stdout == "over\n"


async def test_programs_are_nobody_special(provider: SandboxProvider) -> None:
    async with await provider.start(SandboxSpec()) as sandbox:
        result = await sandbox.exec("id -u; grep -E '^(Cap|NoNew)' /proc/self/status | sort -u")
        user, *status = result.stdout.split("\n")
        assert int(user) >= 10_000
        assert {line.split()[1] for line in status if line.startswith("Cap")} == {"0" * 16}
        assert "NoNewPrivs:\t1" in status


NO_DEFAULT_ROUTE = """
import fcntl, socket, struct
any_address = struct.pack("HH12x", socket.AF_INET, 0)
route = bytes(8) + any_address * 3 + struct.pack("@H", 3)
fcntl.ioctl(socket.socket(), 0x890C, route.ljust(120, b"\\0"))  # SIOCDELRT
"""


async def test_the_host_is_found_where_no_route_leads_to_it(closed: str) -> None:
    """As in closed networks of later Docker: its address stays reachable."""
    with opensandbox_bed.closed_network("routeless") as network:
        program = f"{NO_DEFAULT_ROUTE}\nOUTSIDE = NEIGHBOUR = SERVER = ()\n{probe.LOOK}"
        image = docker_bed.base_image()
        options = ("--rm", "--cap-add", "NET_ADMIN", "--network", network)
        told = await asyncio.to_thread(
            docker_bed.docker, "run", *options, image, "python3", "-c", program
        )
    assert len(json.loads(told)["gateways"]) == 1


ABANDON = """
import asyncio, os, sys
from tests.sandboxes import opensandbox_bed
from workers.sandboxes import opensandbox
from workers.sandboxes.spec import SandboxSpec
async def main():
    settings = opensandbox_bed.settings(sys.argv[1], network="closed", use_server_proxy=True)
    await opensandbox.make(settings).start(SandboxSpec())
    print("started", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_what_a_killed_worker_leaves_is_ended_by_the_reaper(
    closed: str, provider: SandboxProvider
) -> None:
    before = set(docker_bed.docker("ps", "--quiet", "--no-trunc").split())
    worker = subprocess.Popen(
        [sys.executable, "-c", ABANDON, closed], stdout=subprocess.PIPE, env=dict(os.environ)
    )
    try:
        assert worker.stdout is not None
        assert await asyncio.to_thread(worker.stdout.readline) == b"started\n"
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait(5)
    assert await provider.reap() == 1
    assert await provider.reap() == 0

    def gone() -> bool:
        return set(docker_bed.docker("ps", "--quiet", "--no-trunc").split()) <= before

    await eventually(gone, "its container is gone")


async def test_a_server_that_cannot_limit_networks_starts_nothing(bridged: str) -> None:
    provider = opensandbox.make(opensandbox_bed.settings(bridged))
    with pytest.raises(ConfigurationError, match=r"egress\.image.*FLEET_OPENSANDBOX_NETWORK"):
        await provider.start(SandboxSpec())
    assert opensandbox_bed.containers(OWNER) == []
    await provider.close()


async def test_an_open_network_is_seen_from_inside(bridged: str) -> None:
    provider = opensandbox.make(opensandbox_bed.settings(bridged, network="closed"))
    report = await provider.probe()
    told = "; ".join(report.broken)
    assert "reach the execd of other sandboxes" in told
    assert "reach the host" in told
    await provider.close()
    assert opensandbox_bed.containers(OWNER) == []


async def test_on_a_server_set_up_well_only_the_disk_and_the_host_are_left(
    provider: SandboxProvider,
) -> None:
    broken = (await provider.probe()).broken
    others = [one for one in broken if "in /work" not in one and "in /tmp" not in one]
    # The rule of a firewall against the last one would be the host's, and outlive the tests.
    assert len(others) == 1, others
    assert others[0].startswith("network: programs reach the host of the sandboxes")


async def test_an_image_that_is_not_root_is_refused(provider: SandboxProvider) -> None:
    folder = "RUN mkdir /work && chown 1000:1000 /work"
    image = docker_bed.derived("opensandbox-user", folder, "USER 1000")
    with pytest.raises(SandboxUnsupported, match=r"opensandbox-user.* will not do: .*1000.*root"):
        await provider.start(SandboxSpec(image=image))


ASK_EXECD = """
import json, urllib.request
asked = urllib.request.Request(
    "http://127.0.0.1:44772/command", json.dumps({"command": "touch /etc/forged"}).encode()
)
try: print(urllib.request.urlopen(asked).status)
except OSError as refused: print(refused.code)
"""


async def test_the_execd_of_its_own_container_obeys_no_program(provider: SandboxProvider) -> None:
    async with await provider.start(SandboxSpec()) as sandbox:
        assert (await sandbox.run_python(ASK_EXECD)).stdout == "401\n"
        look = "import os; print(open('/proc/self/environ').read(), os.environ)"
        assert "EXECD" not in (await sandbox.run_python(look)).stdout


HOG = """
import os, time
open("/proc/self/oom_score_adj", "w").write("{score}")
for n in range({count}):
    if os.fork() == 0:
        x = bytearray({mb} << 20)
        for i in range(0, len(x), 4096): x[i] = 1
        time.sleep(1)
        os._exit(0)
raise SystemExit(any([os.wait()[1] for n in range({count})]))
"""


@pytest.mark.parametrize("score", ["0", "1000"])
async def test_programs_are_killed_for_want_of_memory_before_what_watches_them(
    provider: SandboxProvider, score: str
) -> None:
    async with await provider.start(SandboxSpec(limits=Limits(memory_mb=96))) as sandbox:
        scores = "import os; print(open('/proc/self/oom_score_adj').read(), os.getppid())"
        assert (await sandbox.run_python(scores)).stdout.startswith("500\n")
        # Few and large: of one score, the kernel takes the largest, which must be one of these.
        result = await sandbox.run_python(HOG.format(score=score, count=4, mb=60), timeout=20)
        assert result.status == "oom", result
        assert (await sandbox.exec("echo on")).stdout == "on\n"


async def test_many_small_programs_that_want_all_memory_end_alone_or_with_their_sandbox(
    provider: SandboxProvider,
) -> None:
    async with await provider.start(SandboxSpec(limits=Limits(memory_mb=96))) as sandbox:
        # None may be larger than what watches them: whom the kernel takes then is its affair.
        try:
            result = await sandbox.run_python(HOG.format(score=0, count=12, mb=20), timeout=20)
            assert result.status == "oom", result
            assert (await sandbox.exec("echo on")).stdout == "on\n"
        except SandboxLost:
            assert not await sandbox.is_alive()


async def test_a_wrong_key_and_a_missing_image_are_told_apart(closed: str) -> None:
    wrong = opensandbox.make(opensandbox_bed.settings(closed, api_key="wrong-4711"))
    with pytest.raises(ConfigurationError, match="FLEET_OPENSANDBOX_API_KEY") as refused:
        await wrong.start(SandboxSpec())
    assert "4711" not in str(refused.value)
    await wrong.close()
    provider = opensandbox.make(opensandbox_bed.settings(closed, network="closed"))
    with pytest.raises(SandboxStartError, match="fleet-test/no-such-image:1"):
        await provider.start(SandboxSpec(image="fleet-test/no-such-image:1"))
    await provider.close()
    assert opensandbox_bed.containers(OWNER) == []
