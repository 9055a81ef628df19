"""Conformance: files the worker writes, reads and lists are those that programs see."""

from __future__ import annotations

import asyncio
import time

import pytest

from workers.sandboxes.protocol import Sandbox, SandboxPathError, SandboxProvider
from workers.sandboxes.spec import Limits, SandboxSpec


async def test_files_written_are_seen_by_programs_and_back(sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 1000
    await sandbox.write_file("a/b/c.bin", data)
    assert await sandbox.read_file("a/b/c.bin") == data
    assert (await sandbox.exec("wc -c <a/b/c.bin")).stdout.strip() == str(len(data))
    await sandbox.write_file("/work/run.sh", b"#!/bin/sh\necho ran\n", mode=0o755)
    assert (await sandbox.exec(["./run.sh"])).stdout == "ran\n"
    await sandbox.exec("printf made >made.txt; mkfifo pipe; ln -s nowhere link")
    assert await sandbox.read_file("made.txt") == b"made"
    listed = {entry.name: (entry.kind, entry.size) for entry in await sandbox.list_dir()}
    assert listed["made.txt"] == ("file", 4)
    assert listed["a"][0] == "dir"
    assert listed["pipe"][0] == "other"
    assert listed["link"][0] == "symlink"


async def test_an_empty_file_is_a_file(sandbox: Sandbox) -> None:
    await sandbox.write_file("empty", b"")
    assert await sandbox.read_file("empty") == b""
    (entry,) = await sandbox.list_dir()
    assert (entry.name, entry.kind, entry.size) == ("empty", "file", 0)


async def test_a_file_is_replaced_at_once_with_the_mode_asked_for(sandbox: Sandbox) -> None:
    for mode in (0o600, 0o444, 0o755, 0o640):
        await sandbox.write_file("file", f"{mode:o}".encode(), mode=mode)
        seen = await sandbox.exec("stat -c %a file; cat file; ls -A | wc -l")
        assert seen.stdout.split() == [f"{mode:o}", f"{mode:o}1"]
    await sandbox.write_file("file", b"a longer text that is then made short")
    await sandbox.write_file("file", b"short")
    assert (await sandbox.exec("stat -c %a file; cat file")).stdout == "644\nshort"


async def test_a_reader_never_sees_half_a_file(sandbox: Sandbox) -> None:
    """One that opened the old file goes on with it, as with any careful editor."""
    await sandbox.write_file("file", b"old" * 100_000)
    await sandbox.exec("ln file other")
    await sandbox.write_file("file", b"new")
    assert await sandbox.read_file("other") == b"old" * 100_000
    assert await sandbox.read_file("file") == b"new"


NAMES = (
    "好🦊.txt", "two\nlines", "a b'\"$(x);*", "-rf", ".hidden", "e\u0301", "x" * 255, "tab\t\x01",
)  # fmt: skip


async def test_any_name_is_a_name(sandbox: Sandbox) -> None:
    for name in NAMES:
        await sandbox.write_file(f"folder/{name}", name.encode())
        assert await sandbox.read_file(f"folder/{name}") == name.encode()
        assert (await sandbox.exec(["cat", f"./folder/{name}"])).stdout == name
    assert {entry.name for entry in await sandbox.list_dir("folder")} == set(NAMES)


async def test_names_that_are_no_text_do_not_spoil_a_listing(sandbox: Sandbox) -> None:
    await sandbox.run_python(
        "for name in (b'\\xff', b'ok', b'\\xc3('): open(b'/work/' + name, 'w').close()"
    )
    names = [entry.name for entry in await sandbox.list_dir()]
    assert len(set(names)) == 3
    assert "ok" in names
    for name in names:
        name.encode()


async def test_paths_are_those_of_programs(sandbox: Sandbox) -> None:
    """From the work folder on; there is no other world that ``..`` could lead to."""
    await sandbox.write_file("/tmp/deep/er/file", b"there")
    for path in ("/tmp/deep/er/file", "../tmp/deep/er/file", "/tmp/deep/../deep/./er//file"):
        assert await sandbox.read_file(path) == b"there"
    inside = (await sandbox.exec("cat /etc/passwd")).stdout.encode()
    for path in ("/etc/passwd", "../etc/passwd", "../../../../../../../etc/passwd"):
        assert await sandbox.read_file(path) == inside
    names = {entry.name for entry in await sandbox.list_dir("../..")}
    seen = (await sandbox.exec("ls -A /")).stdout.split()
    assert names == set(seen)
    assert {entry.name for entry in await sandbox.list_dir("/tmp/deep")} == {"er"}


async def test_the_system_cannot_be_written(sandbox: Sandbox, quirks: frozenset[str]) -> None:
    if "writable-system" in quirks:
        pytest.skip("programs may write everywhere in this back-end's sandboxes")
    for path in ("/usr/x", "/etc/passwd", "/x", "../../x", "../etc/x", "/proc/x", "/dev/x"):
        with pytest.raises(SandboxPathError):
            await sandbox.write_file(path, b"x")


async def test_a_path_that_will_not_do_is_refused(sandbox: Sandbox) -> None:
    await sandbox.exec(
        "mkdir dir; mkfifo pipe; head -c 5000 /dev/zero >big; touch plain; ln -s loop loop;"
        "mkdir shut; touch shut/x; chmod 000 shut"
    )
    unreadable = ("missing", "dir", "pipe", "/dev/zero", "nul\0", "", "/", ".", "plain/x", "loop")
    awkward = ("\ud800", "x" * 256, "d/" * 3000, "x" * (20 << 20))
    for path in (*unreadable, *awkward):
        with pytest.raises(SandboxPathError):
            await sandbox.read_file(path)
    with pytest.raises(SandboxPathError, match="larger"):
        await sandbox.read_file("big", max_bytes=4999)
    assert len(await sandbox.read_file("big", max_bytes=5000)) == 5000
    for path in ("dir", "plain/x", "", "dir/", ".", "..", "dir/..", "/", "nul\0", *awkward):
        with pytest.raises(SandboxPathError):
            await sandbox.write_file(path, b"x")
    for path in ("plain", "missing", "pipe", "loop", "", "nul\0", *awkward):
        with pytest.raises(SandboxPathError):
            await sandbox.list_dir(path)
    assert (await sandbox.exec("ls -A dir")).stdout == "", "no draft is left"


async def test_a_refusal_can_be_shown_whatever_the_path(sandbox: Sandbox) -> None:
    for path in ("missing", "好", "\ud800", "new\nline"):
        with pytest.raises(SandboxPathError) as refused:
            await sandbox.read_file(path)
        str(refused.value).encode()
        assert len(str(refused.value)) < 1000


async def test_files_are_read_up_to_the_limit(provider: SandboxProvider) -> None:
    limits = Limits(read_bytes=3 << 20, file_mb=8, disk_mb=16)
    async with await provider.start(SandboxSpec(limits=limits)) as sandbox:
        fits = b"\0\xff" * (3 << 19)
        await sandbox.write_file("fits", fits)
        assert await sandbox.read_file("fits") == fits
        assert await sandbox.read_file("fits", max_bytes=1 << 40) == fits
        await sandbox.write_file("more", fits + b"x")
        for path in ("more", "/dev/zero"):
            with pytest.raises(SandboxPathError):
                await sandbox.read_file(path, max_bytes=1 << 40)
        with pytest.raises(SandboxPathError, match="larger than 8 MiB"):
            await sandbox.write_file("huge", bytes((8 << 20) + 1))
        await sandbox.write_file("/tmp/large", bytes(8 << 20))
        assert (await sandbox.exec("stat -c %s /tmp/large")).stdout == f"{8 << 20}\n"


async def test_a_full_disk_refuses_and_leaves_the_old_file(provider: SandboxProvider) -> None:
    limits = Limits(disk_mb=2, file_mb=4, inodes=32)
    async with await provider.start(SandboxSpec(limits=limits)) as sandbox:
        await sandbox.write_file("file", b"old")
        with pytest.raises(SandboxPathError, match="No space"):
            await sandbox.write_file("file", bytes(3 << 20))
        assert await sandbox.read_file("file") == b"old"
        assert [entry.name for entry in await sandbox.list_dir()] == ["file"]
        await sandbox.write_file("file", bytes(1 << 20))


async def test_thousands_of_files_are_listed_in_order(sandbox: Sandbox) -> None:
    made = await sandbox.run_python(
        "for n in range(3000): open(f'many-{n:05}', 'w').close()", timeout=20
    )
    assert made.status == "ok", made
    listed = await sandbox.list_dir()
    assert [entry.name for entry in listed] == [f"many-{n:05}" for n in range(3000)]


async def test_writing_replaces_a_link_and_never_follows_it(sandbox: Sandbox) -> None:
    await sandbox.exec("echo target >target; ln -s target link; mkfifo pipe")
    await sandbox.write_file("link", b"new")
    assert await sandbox.read_file("target") == b"target\n"
    assert await sandbox.read_file("link") == b"new"
    began = time.monotonic()
    await sandbox.write_file("pipe", b"no longer a pipe")
    assert await sandbox.read_file("pipe") == b"no longer a pipe"
    assert time.monotonic() - began < 5
    assert [entry.name for entry in await sandbox.list_dir()] == ["link", "pipe", "target"]


async def test_the_files_of_a_spec_are_there_from_the_start(provider: SandboxProvider) -> None:
    files = {"a.txt": b"text", "deep/er/b.bin": bytes(range(256)), "/tmp/c": b"", "好": b"x"}
    async with await provider.start(SandboxSpec(files=files)) as sandbox:
        for path, content in files.items():
            assert await sandbox.read_file(path) == content
        assert (await sandbox.exec("cat a.txt; id -un >/dev/null; echo >>a.txt")).stdout == "text"


async def test_many_sandboxes_do_not_see_each_other(provider: SandboxProvider) -> None:
    sandboxes = await asyncio.gather(*(provider.start(SandboxSpec()) for _ in range(5)))
    for number, sandbox in enumerate(sandboxes):
        await sandbox.write_file("mine", str(number).encode())
        await sandbox.write_file("/tmp/mine", str(number).encode())
    for number, sandbox in enumerate(sandboxes):
        assert await sandbox.read_file("mine") == str(number).encode()
        assert await sandbox.read_file("/tmp/mine") == str(number).encode()
    assert len({sandbox.id for sandbox in sandboxes}) == 5
    await asyncio.gather(*(sandbox.close() for sandbox in sandboxes))
