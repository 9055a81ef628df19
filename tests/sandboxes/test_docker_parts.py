"""The parts of the docker back-end that need no daemon."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from common.failures import ConfigurationError, FailureKind
from workers.sandboxes import pool
from workers.sandboxes.docker import options, owners, probe
from workers.sandboxes.docker.client import Docker, failure
from workers.sandboxes.docker.images import Image, find
from workers.sandboxes.docker.provider import DockerProvider, promises
from workers.sandboxes.processes import ProcessMark
from workers.sandboxes.protocol import (
    SandboxStartError,
    SandboxUnavailable,
    SandboxUnsupported,
)
from workers.sandboxes.spec import Limits, SandboxSpec

IMAGE = Image(reference="an/image:1", id="sha256:" + "0" * 64, digest="an/image@sha256:1", env={})


def test_each_failure_of_docker_is_told_apart() -> None:
    for said, kind in (
        ("Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?",
         SandboxUnavailable),
        ("error during connect: Get https://x: dial tcp: lookup x: no such host",
         SandboxUnavailable),
        ("permission denied while trying to connect to the Docker daemon socket",
         ConfigurationError),
        ("Error response from daemon: dial tcp 1.2.3.4:443: connection refused",
         SandboxStartError),
        ("Error response from daemon: something new", SandboxStartError),
        ("", SandboxStartError),
    ):  # fmt: skip
        error = failure("docker run", said)
        assert type(error) is kind
        assert "docker run" in str(error)
        assert said in str(error)
    assert failure("docker ps", "Cannot connect to the Docker daemon").kind is (  # type: ignore[union-attr]
        FailureKind.NETWORK_ERROR
    )


async def test_a_missing_docker_command_is_the_operators_to_install() -> None:
    provider = DockerProvider(command="no-such-docker")
    for doing in (provider.probe, provider.reap, lambda: provider.start(SandboxSpec())):
        with pytest.raises(ConfigurationError, match=r"apt-get install .* docker\.io"):
            await doing()
    await provider.close()


def a_docker(folder: Path, script: str) -> Docker:
    command = folder / "docker"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    return Docker(str(command))


async def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(SandboxUnavailable, match="did not end within"):
        await a_docker(tmp_path, "exec sleep 60").run("ps", patience=0.2)
    assert time.monotonic() - began < 5


async def test_an_answer_that_is_none_of_dockers_is_named(tmp_path: Path) -> None:
    for answer in ("", "[]", "no json", '{"Id": 1}'):
        with pytest.raises(ConfigurationError, match="no Docker says"):
            await find(a_docker(tmp_path, f"echo '{answer}'"), "image", "never")


@pytest.mark.parametrize(
    ("asked", "tag"),
    [
        ("python", "python:latest"),
        ("docker.io/python:3", "python:3"),
        ("index.docker.io/library/python:3", "python:3"),
        ("some/image", "some/image:latest"),
        ("host:5000/image:1", "host:5000/image:1"),
        ("localhost/image", "localhost/image:latest"),
        ("python@sha256:" + "1" * 64, None),
        ("python:3@sha256:" + "1" * 64, None),
        ("1" * 64, None),
        ("sha256:" + "1" * 64, None),
    ],
)
async def test_an_image_is_found_by_all_its_names(
    tmp_path: Path, asked: str, tag: str | None
) -> None:
    told = {"Id": "sha256:" + "1" * 64, "RepoTags": [tag] if tag else None}
    image = await find(a_docker(tmp_path, f"echo '{json.dumps(told)}'"), asked, "never")
    assert image.id == told["Id"]


@pytest.mark.parametrize("asked", ["1", "1111", "1" * 12, "sha256:1111", "python", "a/b:1"])
async def test_an_image_whose_id_only_begins_so_is_not_the_one_asked_for(
    tmp_path: Path, asked: str
) -> None:
    told = {"Id": "sha256:" + "1" * 64, "RepoTags": ["some/image:latest"]}
    with pytest.raises(SandboxUnsupported, match=rf"{asked}.* is no name of an image.*sha256:1"):
        await find(a_docker(tmp_path, f"echo '{json.dumps(told)}'"), asked, "never")


async def test_what_no_registry_could_have_is_the_tasks_fault(tmp_path: Path) -> None:
    missing = a_docker(
        tmp_path,
        "[ $1 = image ] && echo 'Error: No such image' >&2 && exit 1; echo 'pulled' >&2; exit 1",
    )
    for asked in ("f" * 64, "sha256:" + "f" * 64, "x" * 300, "host/" + "x" * 300 + ":1"):
        with pytest.raises(SandboxUnsupported, match=asked):
            await find(missing, asked, "missing")
    with pytest.raises(SandboxStartError, match=r"could not be fetched.*pulled"):
        await find(missing, "x", "missing")


def test_an_orphan_is_a_dead_owners_or_long_overdue_elsewhere() -> None:
    own, gone = ProcessMark.own(), ProcessMark(pid=ProcessMark.own().pid, started=1)
    soon, past, long_past = (time.time() + offset for offset in (600, -600, -owners.SLACK - 600))
    for where, owner, expires, orphan in (
        (owners.host(), own, soon, False),
        (owners.host(), own, long_past, False),  # prolonged; its owner will end it
        (owners.host(), gone, soon, True),
        ("elsewhere", own, soon, False),
        ("elsewhere", own, past, False),
        ("elsewhere", gone, long_past, True),
    ):
        found = owners.Owned(id="c", host=where, owner=owner, expires=expires)
        assert found.orphan() is orphan


def test_a_life_that_was_prolonged_elsewhere_is_no_orphan(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waited in a pool as long as it may, and then got a task that takes as long as it may."""
    marks = owners.marks(pool.TTL, {})
    age = pool.MAX_AGE + 86_400 + 3600
    found = owners.Owned(
        id="c", host="elsewhere", owner=ProcessMark.own(), expires=float(marks[owners.EXPIRES])
    )
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + age)
    assert not found.orphan()


def test_marks_survive_a_listing_and_nothing_else_passes_for_them() -> None:
    marks = owners.marks(600, {"task": "好 1\n\t\ud800", "od=d key\n": "x" * 1000})
    assert marks["trajectory-fleet.spec.task"] == "好 1???"
    assert marks["trajectory-fleet.spec.od_d_key_"] == "x" * 256
    ours = [marks[key] for key in (owners.HOST, owners.PID, owners.STARTED, owners.EXPIRES)]
    (found,) = owners.parse("\t".join(("id", *ours)) + "\n")
    assert found.owner == ProcessMark.own()
    assert found.host == owners.host()
    assert found.expires == pytest.approx(time.time() + 600 + owners.LAST_RESORT, abs=5)
    for broken in ("", "id", "id\t\t\t\t", "id\th\tx\t1\t1", "id\th\t1\t1\t1\t1"):
        assert list(owners.parse(broken)) == []


def test_a_label_of_a_task_cannot_stand_for_the_owner() -> None:
    marks = owners.marks(1, {"pid": "1", "trajectory-fleet.pid": "1"})
    assert marks[owners.PID] == str(ProcessMark.own().pid)


def test_the_images_variables_lie_below_ours() -> None:
    image = IMAGE.model_copy(update={"env": {"PATH": "/own", "HOME": "/root", "A": "b"}})
    seen = options.environment(image)
    assert (seen["PATH"], seen["HOME"], seen["A"]) == ("/own", "/work", "b")
    assert options.environment(IMAGE)["PATH"] == "/usr/local/bin:/usr/bin:/bin"


def test_no_option_gives_a_container_anything_of_its_host() -> None:
    given = list(options.run(IMAGE, Limits(), "name", {"k": "--privileged"}))
    taken = {"-v", "--volume", "--mount", "-e", "--env", "-p", "--publish", "--cap-add", "--device"}
    assert taken & {option.partition("=")[0] for option in given} == set()
    assert given[given.index("k=--privileged") - 1] == "--label"
    assert given[-5:-1] == [IMAGE.id, "-I", "-B", "-c"]
    assert options.SECCOMP.is_file()


def test_each_broken_promise_of_a_container_is_named() -> None:
    sound: dict[str, Any] = {
        "mounts": [["/", "overlay", ["ro"]], ["/work", "tmpfs", ["rw"]],
                   ["/etc/hosts", "ext4", ["ro"]]],
        "writable": ["/dev/mqueue", "/dev/shm", "/tmp", "/work"], "ids": [1000] * 6,
        "hostname": "sandbox", "devices": ["null"], "addresses": False, "unmasked": [],
        "boot": "another machine", "namespaces": {"ipc": 7, "net": 8},
        "rlimits": {"memlock": 65536, "msgqueue": 0, "rtprio": 0},
    }  # fmt: skip
    own = {"ipc": 7, "net": 8}
    assert list(probe.violations(sound, own)) == []
    for key, value, words in (
        ("mounts", [["/", "overlay", ["rw"]]], "writable"),
        ("mounts", [["/etc/passwd", "ext4", ["ro"]]], "/etc/passwd is mounted"),
        ("writable", ["/dev/shm", "/tmp", "/var", "/work"], "/var"),
        ("ids", [1000, 0], "programs run as"),
        ("hostname", "prod-7", "prod-7"),
        ("devices", ["null", "vda"], "vda"),
        ("addresses", True, "kptr_restrict"),
        ("writable", ["/dev/shm", "/work"], "cannot write to ['/tmp']"),
        ("unmasked", ["/proc/keys"], "/proc/keys"),
        ("namespaces", {"ipc": 0xEFFFFFFF}, "the host's ipc namespace"),
        ("rlimits", {"memlock": -1}, "the rlimit memlock is any"),
        ("rlimits", {"msgqueue": 819200}, "the rlimit msgqueue is 819200"),
    ):
        (broken,) = probe.violations({**sound, key: value}, own)
        assert words in broken
        assert broken.partition(":")[0] in promises(Limits(), IMAGE)
    here = {**sound, "boot": probe._boot()}
    assert len(list(probe.violations(here, own))) == 2, "shared with this very process"
    assert list(probe.violations(here, {"ipc": 1, "net": 2})) == []


def test_the_boot_program_is_valid_for_every_python_it_may_meet() -> None:
    assert shutil.which("python3")
    compile(options.boot(), "boot.py", "exec", dont_inherit=True)
    for new in ("match ", ":=", "f'", 'f"', "|"):
        assert new not in options.boot()
