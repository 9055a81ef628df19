"""What becomes of containers when the docker command or its daemon gives way; no daemon needed."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from common.failures import ConfigurationError
from tests.helpers import eventually
from workers.sandboxes.docker import container, provider, tail
from workers.sandboxes.docker.client import Docker
from workers.sandboxes.docker.container import Container
from workers.sandboxes.docker.images import Image
from workers.sandboxes.docker.provider import DockerProvider
from workers.sandboxes.docker.removal import Removal, remove
from workers.sandboxes.protocol import SandboxStartError, SandboxUnavailable
from workers.sandboxes.spec import SandboxSpec

IMAGE = Image(reference="image", id="sha256:" + "0" * 64, digest="image@sha256:1", env={})
Command = Callable[..., str]
SILENT = "exec </dev/null >/dev/null; exec sleep 60"
"""The wire ends, the command does not."""
AWAY = "echo 'error during connect: connection refused' >&2; exit 1"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Make a docker command: what it does for each of its words, e.g. `run`."""
    monkeypatch.setattr(container, "EXIT_PATIENCE", 0.2)
    monkeypatch.setattr(container, "LOG_PATIENCE", 5.0)
    monkeypatch.setattr(container, "END_PATIENCE", 2.0)

    def make(**words: str) -> str:
        words = {"image": f"echo '{IMAGE.model_dump_json()}'", "rm": "echo", "ps": ":", **words}
        cases = "\n".join(f"{word}) {does};;" for word, does in words.items())
        file = tmp_path / "docker"
        draft = tmp_path / "draft"
        draft.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}\nesac\n')
        draft.chmod(0o755)
        draft.rename(file)
        return str(file)

    return make


@pytest.fixture
async def starting(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Container]]:
    """The containers that tests start; none of their commands may stay."""
    made: list[Container] = []
    init = Container.__init__

    def noted(self: Container, *given: Any) -> None:
        init(self, *given)
        made.append(self)

    monkeypatch.setattr(Container, "__init__", noted)
    yield made
    for one in made:
        assert one._process is None or one._process.poll() is not None, "a command was left"
        assert one._complaints is None or one._complaints._reading < 0, "a pipe was left"


def a_provider(command: str) -> DockerProvider:
    found = DockerProvider(image="image", command=command)
    found._images["image"] = IMAGE
    return found


# -- the command itself ---------------------------------------------------------------------------


async def test_a_command_that_cannot_be_executed_is_the_operators_to_mend(
    tmp_path: Path, starting: list[Container]
) -> None:
    broken = tmp_path / "docker"
    for content in ("#!/no/such/shell\n", "\0no program"):
        broken.write_text(content)
        broken.chmod(0o755)
        found = a_provider(str(broken))
        for doing in (found.probe, found.reap, lambda found=found: found.start(SandboxSpec())):
            with pytest.raises(ConfigurationError, match=f"{broken} cannot be executed"):
                await doing()
        assert found._starting == set()


async def test_a_host_without_descriptors_or_processes_is_worth_another_try(
    command: Command, starting: list[Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = a_provider(command())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    for where in ("os.pipe", "socket.socketpair", "subprocess.Popen"):
        with monkeypatch.context() as patch:
            patch.setattr(where, full)
            with pytest.raises(SandboxUnavailable, match=r"could not be started.*open files"):
                await found.start(SandboxSpec())
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "create_subprocess_exec", full)
        with pytest.raises(SandboxUnavailable, match=r"could not be started.*open files"):
            await found.reap()
    with monkeypatch.context() as patch:
        patch.setattr("workers.sandboxes.agent.source", full)
        with pytest.raises(SandboxUnavailable, match="open files"):
            await found.start(SandboxSpec())
    assert found._doubtful == set()
    assert found._starting == set()


async def test_a_command_that_cannot_be_watched_is_ended(
    command: Command, starting: list[Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(container, "burial", full)
    found = a_provider(command(run="exec sleep 60", rm=AWAY))
    with pytest.raises(SandboxUnavailable, match="open files"):
        await found.start(SandboxSpec())
    [one] = starting
    assert found._doubtful == {one.name}, "the daemon may have heard of it"


async def test_of_what_a_container_complains_about_the_last_is_kept(
    command: Command, starting: list[Container]
) -> None:
    """Its image's Python may write to stderr for ever."""
    flood = "head -c 4000000 /dev/zero | tr '\\0' a >&2; echo the last word >&2; exit 3"
    one = Container(Docker(command(run=flood)), "name", IMAGE, set())
    await one.start(["run"], b"")
    await eventually(lambda: not one.running, "it has ended")
    said = await one.log()
    assert said.endswith("the last word (docker: exit code 3)")
    assert one._complaints is not None
    assert len(one._complaints._kept) <= tail.KEPT
    await one.end()


# -- removing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("does", "removal"),
    [
        ('echo "$4"', Removal.DONE),
        ("echo 'Error: No such container: name' >&2", Removal.ABSENT),
        ("echo 'Error: No such container: name' >&2; exit 1", Removal.ABSENT),
        (AWAY, Removal.UNKNOWN),
        ("echo 'removal of container name is already in progress' >&2; exit 1", Removal.UNKNOWN),
        ("exec sleep 60", Removal.UNKNOWN),
    ],
)
async def test_a_removal_says_what_is_known(command: Command, does: str, removal: Removal) -> None:
    began = time.monotonic()
    assert await remove(Docker(command(rm=does)), "name", 0.5) is removal
    assert time.monotonic() - began < 2


async def test_a_name_is_forgotten_only_when_its_container_is_gone(
    command: Command, starting: list[Container]
) -> None:
    found = a_provider(command())
    assert await found.reap() == 0
    early = Container(found._docker, "early", IMAGE, found._doubtful)
    early._doubtful.add(early.name)
    command(rm=AWAY)
    assert await found.reap() == 0
    assert found._doubtful == {"early"}, "nobody said that it is gone"
    command(rm='echo "$4"')
    assert await found.reap() == 1
    assert found._doubtful == set()
    early._doubtful.add(early.name)
    command(rm="echo 'Error: No such container' >&2; exit 1")
    assert await found.reap() == 0
    assert found._doubtful == set()


async def test_a_daemon_that_goes_away_meanwhile_is_asked_again_by_the_reaper(
    command: Command, starting: list[Container]
) -> None:
    lost = "sleep 0.1; echo 'error during connect: EOF' >&2; exit 125"
    found = a_provider(command(run=lost, rm=AWAY))
    with pytest.raises(SandboxUnavailable, match="no Docker daemon answers"):
        await found.start(SandboxSpec())
    [one] = starting
    assert found._doubtful == {one.name}
    command(rm='echo "$4"')
    assert await found.reap() == 1


async def test_a_refused_start_leaves_no_doubt(command: Command, starting: list[Container]) -> None:
    refused = "echo 'Error response from daemon: no' >&2; exit 125"
    found = a_provider(command(run=refused))
    with pytest.raises(SandboxStartError):
        await found.start(SandboxSpec())
    assert found._doubtful == set()


async def test_the_reaper_removes_few_at_once(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = a_provider(command())
    found._doubtful.update(map(str, range(50)))
    under_way = most = 0

    async def slowly(*_: object) -> Removal:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return Removal.DONE

    monkeypatch.setattr(provider, "remove", slowly)
    assert await found.reap() == 50
    assert most == provider.AT_ONCE
    assert found._doubtful == set()


async def test_two_that_end_a_container_end_it_once(
    command: Command, starting: list[Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Container(Docker(command(run="exec cat")), "name", IMAGE, set())
    await one.start(["run"], b"")
    ended: list[str] = []
    end = Container._end

    async def noted(self: Container) -> None:
        ended.append(self.name)
        await end(self)

    monkeypatch.setattr(Container, "_end", noted)
    hasty = asyncio.create_task(one.end())
    await asyncio.sleep(0)
    hasty.cancel()
    await asyncio.gather(one.end(), one.end(), hasty, return_exceptions=True)
    await one.end()
    assert ended == ["name"]


async def test_an_end_is_bounded_whatever_docker_does(
    command: Command, starting: list[Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("EXIT_PATIENCE", 0.1), ("END_PATIENCE", 0.4)):
        monkeypatch.setattr(container, name, seconds)
    doubtful: set[str] = set()
    hung = Docker(command(run="exec sleep 60", rm="exec sleep 60"))
    one = Container(hung, "name", IMAGE, doubtful)
    await one.start(["run"], b"")
    began = time.monotonic()
    await one.end()
    assert time.monotonic() - began < 0.1 + 0.4 + 0.1 + 0.4 + 0.5
    assert doubtful == {"name"}


# -- starts that come to nothing ------------------------------------------------------------------


async def test_a_start_cancelled_while_it_asks_what_went_wrong_leaves_nothing(
    command: Command, starting: list[Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = a_provider(command(run=SILENT))
    asked = asyncio.Event()
    why = Container.why_not_started

    async def noted(self: Container) -> Exception:
        asked.set()
        return await why(self)

    monkeypatch.setattr(Container, "why_not_started", noted)
    start = asyncio.create_task(found.start(SandboxSpec()))
    async with asyncio.timeout(10):
        await asked.wait()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    [one] = starting
    assert one._writer is not None
    assert one._writer.is_closing()
    assert found._starting == set()


async def test_a_start_that_is_cancelled_twice_is_undone_all_the_same(
    command: Command, starting: list[Container]
) -> None:
    found = a_provider(command(run="exec sleep 60"))
    start = asyncio.create_task(found.start(SandboxSpec()))
    await eventually(lambda: bool(starting) and starting[0].running, "its command runs")
    start.cancel()
    await eventually(lambda: starting[0]._ending is not None, "it is undone")
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    await found.close()
    await eventually(lambda: found._starting == set(), "all is undone")


async def test_what_is_being_started_ends_with_its_provider(
    command: Command, starting: list[Container]
) -> None:
    found = a_provider(command(run="exec cat >/dev/null"))
    start = asyncio.create_task(found.start(SandboxSpec()))
    await eventually(lambda: bool(starting) and starting[0].running, "its command runs")
    await found.close()
    assert not starting[0].running
    with pytest.raises(SandboxUnavailable, match="closed meanwhile"):
        await start


async def test_a_start_that_still_looks_for_its_image_ends_with_its_provider(
    command: Command, starting: list[Container], tmp_path: Path
) -> None:
    described = '{"Id": "sha256:1", "RepoTags": ["image:latest"]}'
    waits = f"touch {tmp_path}/asked; until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    found = DockerProvider(image="image", command=command(image=f"{waits}; echo '{described}'"))
    start = asyncio.create_task(found.start(SandboxSpec()))
    await eventually((tmp_path / "asked").exists, "it looks for its image")
    await found.close()
    (tmp_path / "go").touch()
    with pytest.raises(SandboxUnavailable, match="closed meanwhile"):
        await start
    assert [one for one in starting if one._process is not None] == []
