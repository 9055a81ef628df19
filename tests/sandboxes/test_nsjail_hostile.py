"""The hostile suite over nsjail, and what is to be seen in a jail."""

from __future__ import annotations

import json

import pytest

from tests.sandboxes.hostile import *  # noqa: F403
from tests.sandboxes.hostile_host import by_cgroup
from tests.sandboxes.hostile_host import small as small
from workers.sandboxes.agent_sandbox import ENV
from workers.sandboxes.protocol import Sandbox, SandboxProvider


async def test_the_probe_finds_the_isolation_it_promises(provider: SandboxProvider) -> None:
    report = await provider.probe()
    assert report.backend == "nsjail"
    assert report.enforced["network"] == "namespace: own loopback only"
    assert report.versions["python"].startswith("3.")


async def test_nothing_of_the_host_is_to_be_seen(
    small: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_TEST_SECRET", "secret")
    result = await small.run_python(
        "import os, json\n"
        "print(json.dumps({\n"
        "  'root': sorted(os.listdir('/')), 'etc': sorted(os.listdir('/etc')),\n"
        "  'dev': sorted(os.listdir('/dev')), 'environ': sorted(os.environ),\n"
        "  'proc': sorted(n for n in os.listdir('/proc') if not n.isdigit()),\n"
        "  'others': [n for n in os.listdir('/proc') if n.isdigit() and int(n) != os.getpid()],\n"
        "  'fds': sorted(os.listdir('/proc/self/fd')), 'hostname': os.uname().nodename,\n"
        "  'uid': [os.getuid(), os.geteuid(), os.getgid()], 'groups': os.getgroups()}))"
    )
    seen = json.loads(result.stdout)
    assert set(seen["root"]) <= {
        "bin", "dev", "etc", "lib", "lib64", "proc", "run", "tmp", "usr", "work",
    }  # fmt: skip
    assert set(seen["etc"]) <= {
        "alternatives", "group", "hosts", "ld.so.cache", "nsswitch.conf", "passwd",
    }  # fmt: skip
    assert set(seen["dev"]) == {
        "fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero",
    }  # fmt: skip
    assert seen["proc"] == ["self", "thread-self"]
    # Where the agent has to see what all programs use, they see it too; nothing of it, though.
    assert seen["others"] == ([] if by_cgroup(small) else ["1"])
    assert seen["environ"] == sorted(ENV)
    assert seen["fds"] == ["0", "1", "2", "3"]  # 3 is the listing itself
    assert seen["hostname"] == "sandbox"
    assert seen["uid"] == [1000, 1000, 1000]
    assert (await small.exec("env -i /usr/bin/env; id -u")).stdout == "1000\n"
