"""A promise that is not kept is found, named, and keeps the worker from starting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from common.failures import ConfigurationError
from common.metrics import Metrics
from common.settings import Settings
from tests.helpers import task
from workers.sandboxes import probe
from workers.sandboxes.nsjail import config
from workers.sandboxes.nsjail.provider import NsjailProvider
from workers.sandboxes.protocol import ProbeReport, SandboxUnavailable
from workers.sandboxes.registry import admit
from workers.scenes.code import CodeScene

SOUND: dict[str, Any] = {
    "uid_map": [["1000", "200001", "1"]], "uid": 1000, "capabilities": ["0" * 16],
    "no_new_privs": "1", "seccomp": "2", "interfaces": ["lo", "sit0"], "unreachable": True,
    "host_files": [], "pids": [2], "agent_hidden": True, "vsock_refused": True,
    "namespaces_refused": True, "read_only": True, "environment": ["HOME"],
    "cpu": 300, "core": 1,
}  # fmt: skip


def test_each_broken_promise_is_named() -> None:
    assert list(probe.violations(SOUND)) == []
    for key, value, words in (
        ("uid_map", [["0", "5", "1"], ["1000", "0", "1"]], "root outside"),
        ("capabilities", ["0" * 16, "00000000a80425fb"], "capabilities"),
        ("no_new_privs", "0", "no_new_privs"),
        ("seccomp", "0", "seccomp"),
        ("vsock_refused", False, "AF_VSOCK"),
        ("namespaces_refused", False, "user namespaces"),
        ("interfaces", ["lo", "eth0"], "eth0"),
        ("unreachable", False, "network"),
        ("host_files", ["/etc/shadow"], "/etc/shadow"),
        ("pids", [1, 4242], "processes of the host"),
        ("agent_hidden", False, "agent"),
        ("read_only", False, "writable"),
        ("environment", ["HOME", "FLEET_REDIS_URL"], "FLEET_REDIS_URL"),
        ("cpu", -1, "processor time"),
        ("core", -1, "host's handler"),
    ):
        (broken,) = probe.violations({**SOUND, key: value})
        assert words in broken
    within: dict[str, Any] = {
        "disk /work": [8, "ENOSPC"], "disk /tmp": [7, "ENOSPC"], "inodes /work": [63, "ENOSPC"],
        "inodes /tmp": [63, "ENOSPC"], "file": [4, "EFBIG"], "open_files": [37, "EMFILE"],
        "pids": [15, "EAGAIN"],
    }  # fmt: skip
    assert list(probe.exceeded(within)) == []
    for name in within:
        (broken,) = probe.exceeded({**within, name: [1000, None]})
        assert "1000" in broken


def loosened(text: str, changes: Mapping[str, str]) -> str:
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


LOOSE = {
    "no network namespace": ({"clone_newnet: true": "clone_newnet: false"}, "network"),
    "no seccomp": ({"ERRNO(97)": "ALLOW", "ERRNO(1)": "ALLOW"}, "AF_VSOCK"),
    "more disk": ({"size=8M": "size=800M"}, "MiB in /work"),
    "more files": ({"nr_inodes=64": "nr_inodes=6400"}, "files in /work"),
    "large files": ({"rlimit_fsize: 4 ": "rlimit_fsize: 400 "}, "MiB in one file"),
    "many descriptors": ({"rlimit_nofile: 40 ": "rlimit_nofile: 400 "}, "open files"),
    "the host's files": (
        {'mount { dst: "/dev/shm"': 'mount { src: "/var" dst: "/var" is_bind: true }\n'
         'mount { dst: "/dev/shm"'},
        "/var",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LOOSE)
async def test_a_jail_that_does_not_hold_is_found_out(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real jails, each loosened in one way."""
    changes, words = LOOSE[what]
    whole = config.text
    monkeypatch.setattr(config, "text", lambda jail: loosened(whole(jail), changes))
    provider = NsjailProvider(records=tmp_path)
    report = await provider.probe()
    assert any(words in promise for promise in report.broken), report.broken
    with pytest.raises(ConfigurationError, match="--allow-unsafe"):
        admit(report, allow_unsafe=False)
    admit(report, allow_unsafe=True)
    await provider.close()


async def test_a_worker_goes_on_when_nobody_can_be_asked_for_left_overs(tmp_path: Path) -> None:
    class Away(NsjailProvider):
        async def reap(self) -> int:
            raise SandboxUnavailable("no daemon answers")

    settings = Settings(_env_file=None, output=tmp_path / "output")
    scene = CodeScene(Away(records=tmp_path / "jails"), settings, Metrics())
    assert await scene.reap() == 0
    await scene.close()


async def test_a_worker_refuses_and_an_unsafe_one_says_so_in_every_trajectory(
    tmp_path: Path,
) -> None:
    class Leaky(NsjailProvider):
        async def probe(self) -> ProbeReport:
            found = await super().probe()
            return found.model_copy(update={"broken": ("programs see the network",)})

    settings = Settings(_env_file=None, output=tmp_path / "output")
    leaky = Leaky(records=tmp_path / "jails")
    with pytest.raises(ConfigurationError, match="programs see the network"):
        await CodeScene(leaky, settings, Metrics()).open()
    unsafe = settings.model_copy(update={"allow_unsafe": True})
    scene = CodeScene(leaky, unsafe, Metrics())
    await scene.open()
    assert scene.environment(task(), labels={}).info.unsafe == ("programs see the network",)
    await scene.close()
    sound = CodeScene(NsjailProvider(records=tmp_path / "jails"), settings, Metrics())
    await sound.open()
    assert sound.environment(task(), labels={}).info.unsafe is None
    await sound.close()
