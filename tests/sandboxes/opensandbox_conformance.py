"""The conformance suite as an OpenSandbox server can keep it.

Three cases of the suite cannot hold: the server's Docker runtime limits no disk, so a disk is never
full, and an honest probe says so. Here they are turned around: what is not kept is told.
"""

from __future__ import annotations

import json

import pytest

from tests.sandboxes.conformance import *  # noqa: F403
from tests.sandboxes.conformance_life import PROMISES
from workers.sandboxes.protocol import SandboxProvider, SandboxUnsupported
from workers.sandboxes.spec import Limits, SandboxSpec


async def test_every_promise_is_named(provider: SandboxProvider) -> None:
    async with await provider.start(SandboxSpec(limits=Limits(ttl=77))) as sandbox:
        assert set(sandbox.enforced) >= PROMISES
        assert "77" in str(sandbox.enforced["ttl"])
        await sandbox.keep_alive(99)
        assert "99" in str(sandbox.enforced["ttl"])
        json.dumps(sandbox.enforced)
        assert sandbox.backend == provider.backend == "opensandbox"


async def test_a_disk_without_a_limit_is_told(provider: SandboxProvider) -> None:
    report = await provider.probe()
    assert set(report.enforced) >= PROMISES
    assert set(report.versions) == {"opensandbox", "opensandbox-server", "image"}
    assert report.enforced["disk"] == "not limited"
    assert any("MiB in /work and more" in broken for broken in report.broken)
    assert "docs/sandboxes/opensandbox.md" in report.advice
    told = "; ".join(report.broken)
    # What only our own program inside could get wrong.
    ours = (
        "root", "capabilities", "no_new_privs", "look into", "environment", "open files", "obeys",
    )  # fmt: skip
    assert [promise for promise in ours if promise in told] == []


async def test_files_too_big_for_the_disk_spoil_the_start(provider: SandboxProvider) -> None:
    with pytest.raises(SandboxUnsupported, match=r"big.*larger"):
        await provider.start(
            SandboxSpec(limits=Limits(file_mb=1), files={"big": bytes((1 << 20) + 1)})
        )


test_a_full_disk_refuses_and_leaves_the_old_file = None
