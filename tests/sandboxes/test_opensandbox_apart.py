"""Programs on an OpenSandbox server are kept apart from what watches them, or nothing starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import islice

import pytest

from common.failures import ConfigurationError
from tests.sandboxes.opensandbox_fixtures import provider as provider
from tests.sandboxes.opensandbox_fixtures import standin as standin
from tests.sandboxes.opensandbox_standin import TOKEN, Box, Standin, events, refusing
from workers.sandboxes.opensandbox import guest, steps
from workers.sandboxes.protocol import (
    Sandbox,
    SandboxLost,
    SandboxProvider,
    SandboxSpent,
    SandboxUnsupported,
)
from workers.sandboxes.spec import Limits, SandboxSpec

COMMAND = "POST execd/command"
ASK_EXECD = """
import http.client, json
asked = http.client.HTTPConnection("127.0.0.1", 44772)
asked.request("POST", "/command", json.dumps({"command": "touch /etc/forged; id -u"}), {KEYS})
print(asked.getresponse().status)
"""


@pytest.fixture
async def sandbox(provider: SandboxProvider) -> AsyncIterator[Sandbox]:
    async with await provider.start(SandboxSpec()) as sandbox:
        yield sandbox


def only(standin: Standin) -> Box:
    (box,) = standin.boxes.values()
    return box


@pytest.mark.parametrize("keys", ["", f'"{TOKEN}": "guessed"'])
async def test_the_execd_of_its_own_sandbox_obeys_no_program(sandbox: Sandbox, keys: str) -> None:
    result = await sandbox.run_python(ASK_EXECD.replace("KEYS", keys))
    assert result.stdout == "401\n", result.stderr
    assert (await sandbox.exec("ls /etc/forged")).status == "error"


async def test_each_sandbox_has_a_key_of_its_own_that_only_its_execd_is_sent(
    standin: Standin, provider: SandboxProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        async with await provider.start(SandboxSpec()) as sandbox:
            await sandbox.exec("true")
            await sandbox.label({"task": "t"})
    keys = {seen.body["env"]["EXECD_ACCESS_TOKEN"] for seen in standin.asked("POST /sandboxes")}
    assert len(keys) == 2
    assert min(map(len, keys)) >= 32
    for seen in standin.journal:
        sent = {name.upper(): value for name, value in seen.headers.items()}.get(TOKEN)
        assert (sent in keys) if "execd" in seen.route else sent is None, seen.route
    told = "".join(capsys.readouterr())
    assert not any(key in told for key in keys)


async def test_a_server_that_repeats_the_key_of_an_execd_is_not_quoted(
    standin: Standin, provider: SandboxProvider
) -> None:
    async def repeat(request: object) -> None:
        key = standin.asked("POST /sandboxes")[-1].body["env"]["EXECD_ACCESS_TOKEN"]
        standin.always["POST /sandboxes"] = refusing(400, "X", f"env {key} is odd")

    standin.always["POST /sandboxes"] = repeat
    for _ in range(2):
        with pytest.raises(ConfigurationError) as refused:
            await provider.start(SandboxSpec())
            raise ConfigurationError("the first only learned the key")
    assert "is odd" in str(refused.value)


async def test_programs_find_neither_the_key_nor_the_servers_variables(
    standin: Standin, sandbox: Sandbox
) -> None:
    key = only(standin).key[TOKEN]
    look = (
        "import os; print(open('/proc/self/environ').read()); os.system('env; cat /proc/*/environ')"
    )
    for result in (await sandbox.run_python(look), await sandbox.exec(["python3", "-c", look])):
        assert "PATH=" in result.stdout
        assert key not in result.stdout
        assert "EXECD" not in result.stdout


async def test_a_server_whose_execd_takes_no_key_is_seen_by_the_probe(
    standin: Standin, provider: SandboxProvider
) -> None:
    standin.forgets_keys = True
    broken = (await provider.probe()).broken
    assert "privileges: the execd of their sandbox, which is root, obeys any program" in broken


async def test_a_helper_with_the_environment_of_execd_is_seen_by_the_probe(
    provider: SandboxProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "PYTHON", "exec python3")
    broken = (await provider.probe()).broken
    assert any("environment of the server's execd" in one and "EXECD" in one for one in broken)


async def test_an_execd_that_is_not_root_starts_nothing(
    standin: Standin, provider: SandboxProvider
) -> None:
    standin.user = 1000
    with pytest.raises(SandboxUnsupported, match=r"own:1 will not do: .*1000.* root .*USER root"):
        await provider.start(SandboxSpec(image="own:1"))
    with pytest.raises(ConfigurationError, match="root"):
        await provider.start(SandboxSpec())


async def test_a_place_where_programs_could_put_another_helper_is_refused(
    standin: Standin, provider: SandboxProvider
) -> None:
    standin.tmp_mode = 777
    with pytest.raises(SandboxUnsupported, match=r"/tmp .*1777"):
        await provider.start(SandboxSpec(image="own:1"))


@pytest.mark.parametrize("value", [1 << 40, 1 << 63])
async def test_a_limit_above_what_the_container_has_is_named(
    provider: SandboxProvider, value: int
) -> None:
    with pytest.raises(ConfigurationError, match=rf"RLIMIT_NOFILE cannot be {value}"):
        await provider.start(SandboxSpec(limits=Limits(open_files=value)))


async def test_a_container_without_core_files_is_as_good(
    standin: Standin, provider: SandboxProvider
) -> None:
    standin.core = "0"
    async with await provider.start(SandboxSpec()) as sandbox:
        assert (await sandbox.exec("ulimit -Hc")).stdout == "0\n"


async def test_no_user_comes_twice(standin: Standin, provider: SandboxProvider) -> None:
    assert len(set(islice(guest.numbers(), 1000))) == 1000
    users = []
    for _ in range(3):
        async with await provider.start(SandboxSpec()) as sandbox:
            users.append(int((await sandbox.exec("id -u")).stdout))
    assert len(set(users)) == 3
    assert min(users) >= 10_000


async def test_a_helper_killed_for_want_of_memory_is_the_programs_doing(
    standin: Standin, provider: SandboxProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "OOM_KILLS", ("/tmp/counted",))
    killed = {"type": "error", "error": {"ename": "X", "evalue": "137", "traceback": []}}
    for before, after in ((3, 3), (3, 4)):
        async with await provider.start(SandboxSpec()) as sandbox:
            counted = f"echo oom_kill {before} >oom; echo oom_kill {after} >/tmp/counted"
            await standin.run_inside(only(standin), f"cd /tmp/.fleet-*; {counted}")
            standin.faults[COMMAND] = [events({"type": "init", "text": "1"}, killed)]
            if before == after:
                with pytest.raises(SandboxLost, match="no reply") as lost:
                    await sandbox.exec("true")
                assert not isinstance(lost.value, SandboxSpent)
            else:
                assert (await sandbox.exec("true")).status == "oom"
                with pytest.raises(SandboxSpent, match="ran out of memory"):
                    await sandbox.read_file("x")
