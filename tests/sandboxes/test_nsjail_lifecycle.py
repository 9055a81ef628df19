"""Nothing stays behind, whoever is killed, and whoever is killed is noticed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from common.failures import ConfigurationError, FailureClass
from tests.helpers import eventually
from tests.sandboxes.hostile_host import descendants
from workers.sandboxes.agent_sandbox import AgentSandbox
from workers.sandboxes.channel import Channel
from workers.sandboxes.nsjail import cgroups
from workers.sandboxes.nsjail.provider import NsjailProvider
from workers.sandboxes.nsjail.records import Record, Records
from workers.sandboxes.processes import ProcessMark
from workers.sandboxes.protocol import (
    SandboxLost,
    SandboxProvider,
    SandboxSpent,
    SandboxStartError,
)
from workers.sandboxes.spec import Limits, SandboxSpec

REPOSITORY = Path(__file__).parents[2]

OWNER = """
import asyncio, sys
from pathlib import Path
from workers.sandboxes.nsjail.provider import NsjailProvider
from workers.sandboxes.spec import SandboxSpec

async def main():
    provider = NsjailProvider(records=Path(sys.argv[1]), use_cgroups=sys.argv[2] == "True")
    sandboxes = [await provider.start(SandboxSpec()) for _ in range(2)]
    running = [asyncio.create_task(s.exec("trap '' TERM; sleep 60")) for s in sandboxes]
    print("ready", flush=True)
    await asyncio.gather(*running)

asyncio.run(main())
"""

FILL = """
for folder in ("/work", "/tmp"):
    with open(folder + "/fill", "wb", buffering=0) as file:
        for _ in range(63): file.write(bytes(1 << 20))
"""


def noted(records: Path) -> list[Record]:
    return [Record.model_validate_json(file.read_bytes()) for file in records.glob("*.json")]


def dead_owner() -> ProcessMark:
    process = subprocess.Popen(["true"])
    process.wait()
    return ProcessMark(pid=process.pid, started=1)


@pytest.mark.parametrize("use_cgroups", [True, False])
async def test_a_killed_owner_takes_its_jails_along(records: Path, use_cgroups: bool) -> None:
    if use_cgroups and cgroups.find() is None:
        pytest.skip("this user may not make control groups here")
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(records), str(use_cgroups)],
        cwd=REPOSITORY, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert owner.stdout is not None
    assert await asyncio.to_thread(owner.stdout.readline) == b"ready\n"
    provider = NsjailProvider(records=records, use_cgroups=use_cgroups)
    assert await provider.reap() == 0, "the owner lives"
    left = noted(records)
    assert len(left) == 2
    jails = [record.jail for record in left]
    assert all(jail and jail.alive() for jail in jails)

    def living() -> list[int]:
        return [pid for jail in jails if jail for pid in descendants(jail.pid)]

    await eventually(lambda: len(living()) == 6, "agent, shell and sleep in each jail", within=5)
    inside = living()

    owner.kill()
    # Before anybody buries the owner: a zombie is as dead.
    await eventually(
        lambda: not any(jail and jail.alive() for jail in jails), "no jail lives", within=5
    )
    await eventually(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in inside),
        "nothing of them is left", within=5,
    )  # fmt: skip
    assert await provider.reap() == 2
    owner.stdout.close()
    owner.wait()
    assert list(records.iterdir()) == []
    folders = [folder for record in left if record.cgroup for folder in record.cgroup.folders]
    assert len(folders) == (4 if use_cgroups else 0)
    assert not any(folder.exists() for folder in folders)
    assert await provider.reap() == 0


async def runs_a_command(record: Record) -> None:
    """Wait until there is more in the jail than its agent."""
    assert record.jail is not None
    pid = record.jail.pid
    await eventually(lambda: len(descendants(pid)) >= 2, "the command runs", within=5)


async def test_the_reaper_kills_a_jail_that_outlived_its_owner(
    provider: SandboxProvider, records: Path
) -> None:
    sandbox = await provider.start(SandboxSpec(labels={"task": "t1"}))
    (record,) = noted(records)
    assert record.labels == {"task": "t1"}
    Records(records).update(record.model_copy(update={"owner": dead_owner()}))
    assert await provider.reap() == 1
    assert record.jail is not None
    assert not record.jail.alive()
    with pytest.raises(SandboxLost):
        await sandbox.exec("true")
    await sandbox.close()


async def test_the_reaper_spares_a_stranger_with_the_jails_pid(records: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        mark = ProcessMark.of(stranger.pid)
        assert mark is not None
        earlier = mark.model_copy(update={"started": mark.started - 1})
        book = Records(records)
        record = book.claim(dead_owner(), {})
        book.update(record.model_copy(update={"jail": earlier}))
        (records / "broken.json").write_text("{")
        assert await NsjailProvider(records=records).reap() == 1
        assert stranger.poll() is None
        stranger.kill()
    assert list(records.iterdir()) == []


async def test_a_killed_jail_is_lost_and_says_so(provider: SandboxProvider, records: Path) -> None:
    for victim in ("nsjail", "agent"):
        sandbox = await provider.start(SandboxSpec())
        (record,) = noted(records)
        assert record.jail is not None
        running = asyncio.create_task(sandbox.exec("sleep 60"))
        await runs_a_command(record)
        pid = record.jail.pid if victim == "nsjail" else descendants(record.jail.pid)[0]
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(SandboxLost, match="lost"):
            await asyncio.wait_for(running, 10)
        assert not await sandbox.is_alive()
        with pytest.raises(SandboxLost):
            await sandbox.read_file("x")
        assert noted(records) == [], "it is cleaned up at once"


async def test_a_stopped_agent_is_lost_in_time(
    provider: SandboxProvider, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.sandboxes.agent_sandbox.GRACE", 0.3)
    sandbox = await provider.start(SandboxSpec())
    (record,) = noted(records)
    assert record.jail is not None
    os.kill(descendants(record.jail.pid)[0], signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(SandboxLost, match="did not answer"):
        await sandbox.exec("true", timeout=0.2)
    assert time.monotonic() - began < 3
    assert noted(records) == []


async def test_an_agent_that_is_told_nonsense_ends(
    provider: SandboxProvider, records: Path
) -> None:
    for nonsense in (b"\xff\xff\xff\xff", b"\0\0\0\1{", b"\0\0\0\2[]", b'\0\0\0\x0b{"raw":"x"}'):
        sandbox = await provider.start(SandboxSpec())
        assert isinstance(sandbox, AgentSandbox)
        (record,) = noted(records)
        running = asyncio.create_task(sandbox.exec("sleep 60"))
        await runs_a_command(record)
        assert isinstance(sandbox._channel, Channel)
        sandbox._channel._writer.write(nonsense)
        with pytest.raises(SandboxLost, match="gone"):
            await asyncio.wait_for(running, 10)
    assert noted(records) == []


@pytest.mark.parametrize("labels", [1, 2, 3])
async def test_a_sandbox_closed_while_it_is_labelled_leaves_nothing(
    provider: SandboxProvider, records: Path, labels: int
) -> None:
    for close_first in (False, True):
        sandbox = await provider.start(SandboxSpec())
        (record,) = noted(records)
        noting = [sandbox.label({"attempt": str(n)}) for n in range(labels)]
        doing = [sandbox.close(), *noting] if close_first else [*noting, sandbox.close()]
        async with asyncio.timeout(5):
            ended = await asyncio.gather(*doing, return_exceptions=True)
        assert all(error is None or isinstance(error, SandboxLost) for error in ended), ended
        assert noted(records) == []
        assert record.jail is not None
        assert not record.jail.alive()
        assert not any(
            folder.exists() for folder in (record.cgroup and record.cgroup.folders) or ()
        )
        left = [task.get_name() for task in asyncio.all_tasks()]
        assert not [name for name in left if sandbox.id in name]


async def test_a_folder_of_records_that_was_tidied_away_is_made_again(
    provider: SandboxProvider, records: Path
) -> None:
    async with await provider.start(SandboxSpec()):
        pass
    for _ in range(2):
        shutil.rmtree(records)
        async with await provider.start(SandboxSpec()) as sandbox:
            assert (await sandbox.exec("echo well")).stdout == "well\n"
            assert len(noted(records)) == 1
    shutil.rmtree(records)
    assert await provider.reap() == 0


async def test_a_folder_of_records_that_cannot_be_made_refuses_the_start(
    provider: SandboxProvider, records: Path
) -> None:
    shutil.rmtree(records)
    records.write_text("in the way")
    with pytest.raises(SandboxStartError, match="no sandbox can be noted down"):
        await provider.start(SandboxSpec())
    records.unlink()
    records.mkdir(mode=0o700)


async def test_whoever_used_up_all_memory_is_told_so_from_then_on(records: Path) -> None:
    """Files count where a control group does: then not even the agent can go on."""
    if cgroups.find() is None:
        pytest.skip("this user may not make control groups here")
    provider = NsjailProvider(records=records)
    async with await provider.start(SandboxSpec(limits=Limits(memory_mb=64))) as sandbox:
        result = await sandbox.run_python(FILL)
        assert result.status == "oom", result
        first = None
        for call in (
            lambda: sandbox.write_file("x", bytes(1 << 20)),
            lambda: sandbox.exec("true"),
            lambda: sandbox.run_python("print(1)"),
            lambda: sandbox.read_file("x"),
            lambda: sandbox.list_dir(),
            lambda: sandbox.keep_alive(60),
            lambda: sandbox.label({"a": "b"}),
            lambda: sandbox.end_background(),
        ):
            with pytest.raises(SandboxSpent, match="out of memory") as spent:
                await call()
            first = first or str(spent.value)
            assert str(spent.value) == first
            assert spent.value.as_failure().failure_class is FailureClass.AGENT
        assert not await sandbox.is_alive()
    assert noted(records) == []


def test_an_environment_that_cannot_be_set_is_the_specs_fault() -> None:
    for env in ({"": "x"}, {"A=B": "x"}, {"A": "\0"}, {"A": "\ud800"}):
        with pytest.raises(ValidationError, match="environment variable"):
            SandboxSpec(env=env)


async def test_a_start_that_is_cancelled_leaves_nothing(
    provider: SandboxProvider, records: Path
) -> None:
    await provider.start(SandboxSpec())  # so that everything is looked up
    await provider.close()
    for delay in (0, 0.005, 0.015, 0.025):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(delay):
                await provider.start(SandboxSpec())
                await asyncio.sleep(60)
        await provider.close()
        assert noted(records) == []


async def test_a_jail_that_dies_while_its_files_are_put_in_is_ended_once(
    provider: SandboxProvider, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended twice, it would close descriptors that are somebody else's by then."""
    write = AgentSandbox.write_file

    async def write_into_a_dying_jail(
        self: AgentSandbox, path: str, data: bytes, *, mode: int = 0o644
    ) -> None:
        (record,) = noted(records)
        assert record.jail is not None
        inside = [ProcessMark.of(pid) for pid in descendants(record.jail.pid)]
        record.jail.send(signal.SIGKILL)
        await eventually(lambda: not any(one and one.alive() for one in inside), "it is dead")
        await write(self, path, data, mode=mode)

    monkeypatch.setattr(AgentSandbox, "write_file", write_into_a_dying_jail)
    with pytest.raises(SandboxStartError, match="agent is gone"):
        await provider.start(SandboxSpec(files={"x": b"x" * (1 << 20)}))
    assert noted(records) == []


async def test_a_trial_whose_maker_was_killed_is_swept_up(records: Path) -> None:
    """The look whether control groups can be made leaves none, whenever it ends."""
    parent = cgroups.find()
    if parent is None:
        pytest.skip("this user may not make control groups here")
    with subprocess.Popen(["sleep", "60"]) as maker:
        mark = ProcessMark.of(maker.pid)
        assert mark is not None
        trial = cgroups.child(parent, f"{cgroups.TRIAL}{mark.pid}-{mark.started}-0123abcd")
        trial.create(Limits())
        provider = NsjailProvider(records=records)
        await provider.reap()
        assert all(folder.exists() for folder in trial.folders), "its maker lives"
        maker.kill()
        maker.wait()
        await provider.reap()
    assert not any(folder.exists() for folder in trial.folders)


async def test_a_jail_that_cannot_start_says_what_nsjail_said(records: Path) -> None:
    provider = NsjailProvider(records=records, use_cgroups=False)
    # RLIMIT_AS far too small for the interpreter
    with pytest.raises(SandboxStartError, match=r"\[.+\]"):
        await provider.start(SandboxSpec(limits=Limits.model_construct(**{
            **Limits().model_dump(), "memory_mb": 1,
        })))  # fmt: skip
    assert noted(records) == []


async def test_without_an_interpreter_the_operator_is_told(records: Path) -> None:
    provider = NsjailProvider(records=records, python=Path("/nowhere/python3"))
    with pytest.raises(ConfigurationError, match="apt-get install -y python3"):
        await provider.start(SandboxSpec())


async def test_provider_close_ends_every_sandbox(provider: SandboxProvider, records: Path) -> None:
    sandboxes = [await provider.start(SandboxSpec()) for _ in range(3)]
    began = time.monotonic()
    await provider.close()
    assert time.monotonic() - began < 3
    assert noted(records) == []
    assert not any([await sandbox.is_alive() for sandbox in sandboxes])
