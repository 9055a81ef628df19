"""Hostile: traps and floods in the file system, wherever the worker reads, writes and lists."""

from __future__ import annotations

import contextlib
import io
import time
import zipfile
from pathlib import Path

import pytest

from tests.sandboxes.hostile_host import SMALL, Host
from workers.sandboxes.protocol import Sandbox, SandboxPathError, SandboxProvider
from workers.sandboxes.spec import Limits, SandboxSpec


async def test_links_lead_nowhere_outside(
    small: Sandbox, untouched_host: Host, tmp_path: Path
) -> None:
    canary = untouched_host.canary
    await small.exec(
        f"ln -s {canary} a; ln -s /etc/shadow b; ln -s {tmp_path} c; ln -s ../../../.. d;"
        "ln -s /proc/1/root e; ln -s /proc/self/root f; ln -s /proc/1/cwd g"
    )
    places = ("a", "b", "c/canary", f"d{canary}", f"e{canary}", f"f{canary}", "g/../canary")
    for path in places:
        with pytest.raises(SandboxPathError):
            await small.read_file(path)
    with pytest.raises(SandboxPathError):
        await small.write_file("c/new", b"x")
    # These are folders of its own that bear the same names.
    for path in (f"d{tmp_path}/new", f"e{tmp_path}/new", f"f{tmp_path}/new"):
        with contextlib.suppress(SandboxPathError):
            await small.write_file(path, b"x")
    await small.write_file("a", b"mine")
    assert await small.read_file("a") == b"mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["canary", "jails"]


async def test_a_link_that_changes_while_the_worker_writes_leads_nowhere(
    provider: SandboxProvider, small: Sandbox, tmp_path: Path
) -> None:
    if "background" not in provider.capabilities:
        pytest.skip("nothing runs while the worker writes in this back-end's sandboxes")
    await small.exec(
        [
            "python3", "-c",
            "import os, sys\n"
            "os.mkdir('real')\n"
            "while True:\n"
            "    for target in ('real', sys.argv[1], '/etc', '/usr'):\n"
            "        os.symlink(target, 'new'); os.rename('new', 'swapped')\n",
            str(tmp_path),
        ],
        background=True,
    )  # fmt: skip
    written = 0
    for n in range(200):
        try:
            await small.write_file(f"swapped/{n % 10}", b"x")
            written += 1
        except SandboxPathError:
            continue
    assert written > 0, "some hit the real folder"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["canary", "jails"]
    await small.exec("pkill -9 -f real || kill -9 -1")


async def test_a_program_that_deletes_what_the_worker_writes_does_not_lose_the_sandbox(
    provider: SandboxProvider, small: Sandbox
) -> None:
    """Files are written under another name first, which programs can see."""
    if "background" not in provider.capabilities:
        pytest.skip("nothing runs while the worker writes in this back-end's sandboxes")
    await small.exec(
        ["python3", "-c",
         "import os\n"
         "while True:\n"
         "    for name in os.listdir():\n"
         "        try: name.startswith('.fleet-') and os.unlink(name)\n"
         "        except OSError: pass"],
        background=True,
    )  # fmt: skip
    refused = 0
    deadline = time.monotonic() + 10
    while refused < 5 and time.monotonic() < deadline:
        try:
            await small.write_file("mine", bytes(1 << 20))
        except SandboxPathError:
            refused += 1
    assert refused == 5, "it was never quicker than the worker"
    await small.end_background()
    await small.write_file("mine", b"x")
    assert await small.read_file("mine") == b"x"


async def test_a_work_folder_nobody_may_enter_leaves_no_program_unwatched(small: Sandbox) -> None:
    await small.exec("chmod 0 /work")
    for command in ("echo ran; exec sleep 311", ["sh", "-c", "echo ran; exec sleep 311"]):
        result = await small.exec(command, cwd="/tmp", timeout=0.4)
        assert (result.status, result.stdout) == ("timeout", "ran\n")
    everybody = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"
    assert "sleep" not in (await small.exec(everybody, cwd="/tmp")).stdout
    await small.exec("chmod 700 /work", cwd="/tmp")


async def test_nothing_the_worker_opens_makes_it_wait(small: Sandbox) -> None:
    """Pipes without a writer, sockets, devices, locked files, links in circles."""
    await small.run_python(
        "import fcntl, os, socket\n"
        "os.mkfifo('pipe'); os.mkfifo('/tmp/folder'); os.symlink('pipe', 'to-pipe')\n"
        "os.symlink('circle', 'circle'); os.symlink('/dev/stdin', 'stdin')\n"
        "os.symlink('/proc/self/fd/0', 'own'); os.symlink('/dev/random', 'random')\n"
        "socket.socket(socket.AF_UNIX).bind('socket')\n"
    )
    began = time.monotonic()
    for path in ("pipe", "to-pipe", "circle", "socket", "stdin", "own", "random", "/dev/zero"):
        with pytest.raises(SandboxPathError):
            await small.read_file(path)
    for path in ("pipe/x", "/tmp/folder/x", "circle/x", "socket/x"):
        with pytest.raises(SandboxPathError):
            await small.write_file(path, b"x")
    for path in ("pipe", "circle", "socket", "/tmp/folder"):
        with pytest.raises(SandboxPathError):
            await small.list_dir(path)
    for path in ("pipe", "circle", "socket", "stdin"):
        await small.write_file(path, b"x")
        assert await small.read_file(path) == b"x"
    assert time.monotonic() - began < 5


async def test_the_log_of_a_background_program_is_no_trap(
    provider: SandboxProvider, small: Sandbox
) -> None:
    if "background" not in provider.capabilities:
        pytest.skip("this back-end leaves nothing running in the background")
    await small.exec("cd /tmp; mkfifo background-1.log; ln -s /etc/passwd background-2.log")
    started = await small.exec("echo mine", background=True)
    assert started.log is not None
    assert started.log not in ("/tmp/background-1.log", "/tmp/background-2.log")
    await small.exec(["sh", "-c", 'rm "$1"; mkfifo "$1"', "sh", started.log])
    began = time.monotonic()
    with pytest.raises(SandboxPathError):
        await small.read_file(started.log)
    assert time.monotonic() - began < 2


async def test_a_full_disk_is_the_programs_trouble(small: Sandbox) -> None:
    for folder in ("/work", "/tmp", "/dev/shm"):
        result = await small.exec(
            f"cd {folder}; for n in 1 2 3 4 5 6; do head -c 3M /dev/zero >fill$n || break; done;"
            " wc -c fill* | tail -1; rm fill*"
        )
        assert "No space left" in result.stderr, (folder, result)
        assert int(result.stdout.split()[0]) <= (16 << 20 if "shm" in folder else 8 << 20)
    big = await small.exec("head -c 6M /dev/zero >big; truncate -s 1T sparse; ls -l big")
    assert big.stderr.count("File size limit exceeded") == 2
    assert str(4 << 20) in big.stdout
    many = await small.exec("rm -f *; n=0; while true >f$n; do n=$((n+1)); done; echo $n")
    assert 50 < int(many.stdout) <= 100
    with pytest.raises(SandboxPathError, match="No space"):
        await small.write_file("one-more", b"x")
    await small.exec("rm -f *")
    assert await small.list_dir() == []


async def test_an_archive_of_a_million_files_stops_at_the_limit(small: Sandbox) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        for n in range(3000):
            files.writestr(f"{n}/x", b"")
    await small.write_file("bomb.zip", archive.getvalue())
    result = await small.exec(["python3", "-m", "zipfile", "-e", "bomb.zip", "out"])
    assert "No space left" in result.stderr
    assert len(await small.list_dir("out")) < SMALL.inodes
    result = await small.run_python(
        "import zlib\n"
        "pack = zlib.compressobj()\n"
        "zipped = b''.join(pack.compress(bytes(1 << 20)) for _ in range(100)) + pack.flush()\n"
        "unpack = zlib.decompressobj()\n"
        "with open('unpacked', 'wb') as file: file.write(unpack.decompress(zipped))"
    )  # fmt: skip
    assert result.status != "ok"
    await small.exec("rm -rf *")


async def test_a_folder_too_deep_for_any_path_is_harmless(small: Sandbox) -> None:
    result = await small.run_python(
        "import os\n"
        "try:\n"
        "    while True: os.mkdir('d' * 200); os.chdir('d' * 200)\n"
        "except OSError as error: print(error.strerror)\n"
        "print(os.getcwd().count('/') if len(os.getcwd()) < 4000 else 'deep')"
    )
    assert "No space left" in result.stdout
    deep = "d" * 200 + "/"
    assert [entry.name for entry in await small.list_dir()] == ["d" * 200]
    assert [entry.kind for entry in await small.list_dir(deep * 10)] == ["dir"]
    for path in (deep * 25, "x" * 300, "/".join("y" * 300)):
        with pytest.raises(SandboxPathError):
            await small.list_dir(path)
        with pytest.raises(SandboxPathError):
            await small.write_file(path + "/x", b"x")
    await small.exec("rm -rf d*")
    assert await small.list_dir() == []


async def test_parents_are_made_as_deep_as_a_path_goes(provider: SandboxProvider) -> None:
    async with await provider.start(SandboxSpec()) as sandbox:
        path = "d/" * 1900 + "x"
        try:
            await sandbox.write_file(path, b"deep")
        except SandboxPathError:
            pass
        else:
            assert await sandbox.read_file(path) == b"deep"
        assert await sandbox.is_alive()
        assert (await sandbox.exec("rm -rf d; ls -A")).stdout == ""


async def test_a_folder_with_too_many_entries_cannot_be_listed(provider: SandboxProvider) -> None:
    limits = Limits(inodes=20_000, disk_mb=64)
    async with await provider.start(SandboxSpec(limits=limits)) as sandbox:
        made = await sandbox.run_python(
            "import os\n"
            "os.mkdir('many')\n"
            "for n in range(15000):\n"
            "    os.close(os.open(b'many/' + str(n).encode() + b'\\xff' * 240, 0o101))"
        )
        assert made.status == "ok", made
        with pytest.raises(SandboxPathError, match="entries"):
            await sandbox.list_dir("many")
        assert [entry.name for entry in await sandbox.list_dir()] == ["many"]


async def test_the_system_is_read_only(small: Sandbox) -> None:
    result = await small.exec(
        "for f in /x /usr/x /etc/x /etc/passwd /run/agent /proc/self/oom_score_adj /lib/x; do"
        " (echo x >$f) 2>/dev/null && echo wrote $f; done;"
        " rm -rf /usr/bin 2>/dev/null; ls /usr/bin | wc -l"
    )
    assert "wrote" not in result.stdout
    assert int(result.stdout) > 50
