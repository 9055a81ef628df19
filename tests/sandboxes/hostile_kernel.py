"""Hostile: ways out through the kernel - system calls, sockets, namespaces, /proc, devices."""

from __future__ import annotations

import json
import os

import pytest

from tests.sandboxes.hostile_host import Host
from workers.sandboxes.protocol import Sandbox

EPERM, EACCES, EINVAL, ENOSYS, EAFNOSUPPORT = 1, 13, 22, 38, 97
REFUSED = {EPERM, ENOSYS}
"""Anything else would mean that the kernel's own code was reached."""

# The numbers are those of x86-64.
CALLS = {
    # namespaces: a nested user namespace would give capabilities back
    "unshare user": "272, 0x10000000", "unshare mount": "272, 0x20000",
    "unshare net": "272, 0x40000000", "unshare cgroup": "272, 0x02000000",
    "clone user": "56, 0x10000000 | 17, 0, 0, 0, 0", "clone pid": "56, 0x20000000 | 17, 0, 0, 0, 0",
    "clone3": "435, 0, 0", "setns": "308, 0, 0",
    # the file tree
    "mount": "165, b'none', b'/tmp', b'tmpfs', 0, 0", "umount": "166, b'/tmp', 2",
    "bind mount": "165, b'/usr', b'/tmp', 0, 4096, 0", "chroot": "161, b'/tmp'",
    "pivot_root": "155, b'/tmp', b'/tmp'", "move_mount": "429, -100, b'/tmp', -100, b'/work', 0",
    "open_tree": "428, -100, b'/', 1", "fsopen": "430, b'tmpfs', 0", "fsconfig": "431, 0, 0, 0, 0",
    "fsmount": "432, 0, 0, 0", "fspick": "433, -100, b'/', 0",
    "mount_setattr": "442, -100, b'/', 0, 0, 0", "name_to_handle_at": "303, -100, b'/', 0, 0, 0",
    "open_by_handle_at": "304, -100, 0, 0", "fanotify_init": "300, 0, 0",
    "quotactl": "179, 0, 0, 0, 0", "swapon": "167, b'/work/x', 0", "swapoff": "168, b'/work/x'",
    "mknod disk": "133, b'/work/disk', 0o60666, 0x0101", "acct": "163, 0",
    # other processes
    "ptrace attach": "101, 16, 1, 0, 0", "ptrace seize": "101, 0x4206, 1, 0, 0",
    "process_vm_readv": "310, 1, 0, 0, 0, 0, 0", "process_vm_writev": "311, 1, 0, 0, 0, 0, 0",
    "process_madvise": "440, 0, 0, 0, 0, 0", "pidfd_getfd": "438, 0, 0, 0",
    "kcmp": "312, 1, 1, 0, 0, 0", "move_pages": "279, 1, 0, 0, 0, 0, 0",
    "migrate_pages": "256, 1, 0, 0, 0",
    # the kernel's own machinery
    "bpf": "321, 0, 0, 0", "perf_event_open": "298, 0, 0, -1, -1, 0", "userfaultfd": "323, 1",
    "io_uring_setup": "425, 8, 0", "io_uring_enter": "426, 0, 0, 0, 0, 0",
    "io_uring_register": "427, 0, 0, 0, 0", "keyctl": "250, 0, -3, 1",
    "add_key": "248, b'user', b'x', b'y', 1, -3", "request_key": "249, b'user', b'x', 0, -3",
    # the machine
    "init_module": "175, 0, 0, b''", "finit_module": "313, 0, b'', 0",
    "delete_module": "176, b'x', 0", "kexec_load": "246, 0, 0, 0, 0",
    "kexec_file_load": "320, 0, 0, 0, 0, 0", "reboot": "169, 0xfee1dead, 672274793, 0x89abcdef, 0",
    "syslog": "103, 3, 0, 0", "settimeofday": "164, 0, 0", "clock_settime": "227, 0, 0",
    "adjtimex": "159, 0", "clock_adjtime": "305, 0, 0", "sethostname": "170, b'x', 1",
    "setdomainname": "171, b'x', 1", "vhangup": "153", "modify_ldt": "154, 0, 0, 0",
    "iopl": "172, 3", "ioperm": "173, 0x80, 1, 1",
}  # fmt: skip


async def test_dangerous_system_calls_are_refused(small: Sandbox) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers of system calls are those of x86-64")
    result = await small.run_python(
        "import ctypes, json\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def call(*args):\n"
        "    ctypes.set_errno(0)\n"
        "    return ctypes.get_errno() if libc.syscall(*args) == -1 else 'allowed'\n"
        "print(json.dumps({"
        + ", ".join(f"{name!r}: call({arguments})" for name, arguments in CALLS.items())
        + "}))"
    )
    seen = json.loads(result.stdout)
    assert seen.pop("clone3") == ENOSYS, "so that libc falls back to clone, whose flags are seen"
    assert {name: errno for name, errno in seen.items() if errno not in REFUSED} == {}


async def test_calls_of_other_architectures_are_no_way_around(small: Sandbox) -> None:
    """32-bit entry: `int 0x80` with the number of `unshare`; and the x32 numbers."""
    if os.uname().machine != "x86_64":
        pytest.skip("only x86-64 has other tables of system calls")
    result = await small.run_python(
        "import ctypes, mmap\n"
        "code = bytes.fromhex('53b836010000bb00000010cd805bc3')  # eax=310 unshare, ebx=NEWUSER\n"
        "page = mmap.mmap(-1, 4096, prot=7); page.write(code)\n"
        "address = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
        "print('unshared' if ctypes.CFUNCTYPE(ctypes.c_int)(address)() == 0 else 'refused')"
    )
    assert result.stdout in ("", "refused\n"), result
    result = await small.run_python(
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.syscall(0x40000000 + 272, 0x10000000))"
    )
    assert result.stdout in ("", "-1\n"), result


async def test_no_socket_leads_out(small: Sandbox, untouched_host: Host) -> None:
    result = await small.run_python(
        "import json, socket\n"
        "def tried(family, kind, address, proto=0):\n"
        "    try:\n"
        "        with socket.socket(family, kind, proto) as s:\n"
        "            s.settimeout(2); s.connect(address); return 'connected'\n"
        "    except OSError as error: return error.errno or str(error)\n"
        "print(json.dumps({\n"
        f"  'host loopback': tried(2, 1, ('127.0.0.1', {untouched_host.port})),\n"
        "   'internet': tried(2, 1, ('1.1.1.1', 443)), 'datagrams': tried(2, 2, ('1.1.1.1', 53)),\n"
        "   'internet 6': tried(10, 2, ('2606:4700::1', 53)),\n"
        "   'metadata': tried(2, 1, ('169.254.169.254', 80)),\n"
        f"  'abstract': tried(1, 1, {untouched_host.name!r}),\n"
        "   'docker': tried(1, 1, '/var/run/docker.sock'), 'raw': tried(2, 3, ('1.1.1.1', 0), 1),\n"
        "   'vsock': tried(40, 1, (2, 1)), 'alg': tried(38, 5, ('hash', 'md5')),\n"
        "   'packet': tried(17, 3, ('lo', 0)), 'bluetooth': tried(31, 3, (0,), 1),\n"
        "   'can': tried(29, 3, ('lo',), 1), 'tipc': tried(30, 4, (2, 1, 1, 1)),\n"
        "   'kcm': tried(41, 5, ()), 'xdp': tried(44, 3, ()), 'qipcrtr': tried(42, 2, (1, 1))}))\n"
        "try: socket.getaddrinfo('example.org', 80); print('resolved')\n"
        "except OSError: print('no names')\n"
    )
    seen = json.loads(result.stdout.splitlines()[0])
    assert "connected" not in seen.values()
    for family in ("vsock", "alg", "packet", "bluetooth", "can", "tipc", "kcm", "xdp", "qipcrtr"):
        assert seen[family] in (EPERM, EAFNOSUPPORT), (family, seen)
    assert result.stdout.endswith("no names\n")


async def test_no_pair_of_sockets_but_unix_ones_can_be_had(small: Sandbox) -> None:
    result = await small.run_python(
        "import json, socket\n"
        "def tried(family):\n"
        "    try: socket.socketpair(family, socket.SOCK_STREAM); return 'made'\n"
        "    except OSError as error: return error.errno\n"
        "print(json.dumps({family: tried(family) for family in range(1, 46)}))"
    )
    seen = json.loads(result.stdout)
    assert seen.pop("1") == "made"
    assert set(seen.values()) <= {EPERM, EAFNOSUPPORT}, seen


PROTECTED = (
    "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe",
    "/proc/sys/vm/drop_caches", "/proc/1/oom_score_adj", "/proc/self/oom_score_adj",
    "/proc/self/uid_map", "/proc/self/setgroups", "/proc/1/mem", "/sys/fs/cgroup/release_agent",
    "/sys/kernel/uevent_helper", "/sys/power/state", "/dev/mem", "/dev/kmsg", "/dev/port",
    "/dev/sda", "/dev/vda", "/dev/loop0", "/dev/kvm", "/dev/fuse", "/dev/net/tun", "/dev/tty",
    "/dev/console", "/etc/passwd", "/etc/ld.so.preload", "/run/agent", "/usr/bin/sh",
)  # fmt: skip
SECRET = (
    "/etc/shadow", "/proc/kcore", "/proc/kallsyms", "/proc/keys", "/proc/1/environ",
    "/proc/1/maps", "/proc/1/mem", "/proc/1/fd", "/proc/1/cwd", "/proc/1/root", "/proc/timer_list",
    "/proc/sched_debug", "/sys/firmware", "/root", "/home", "/var/run/docker.sock", "/boot",
    "/sys/kernel/debug", "/dev/mem", "/dev/kmsg",
)  # fmt: skip


async def test_nothing_protected_can_be_written(small: Sandbox) -> None:
    result = await small.run_python(
        "import json, os\n"
        "def tried(path):\n"
        "    try:\n"
        "        with open(path, 'wb', buffering=0) as file: return file.write(b'1')\n"
        "    except OSError: return None\n"
        f"print(json.dumps([path for path in {PROTECTED!r} if tried(path)]))"
    )
    assert json.loads(result.stdout) == []


async def test_nothing_secret_can_be_read(small: Sandbox) -> None:
    result = await small.run_python(
        "import json, os\n"
        "def tried(path):\n"
        "    try:\n"
        "        if os.path.isdir(path): return os.listdir(path)\n"
        "        with open(path, 'rb', buffering=0) as file: return file.read(10)\n"
        "    except OSError: return None\n"
        f"print(json.dumps([path for path in {SECRET!r} if tried(path)]))"
    )
    assert json.loads(result.stdout) == []


async def test_no_bit_makes_a_program_another_user(small: Sandbox) -> None:
    result = await small.exec(
        "cp /usr/bin/id me; chmod 6755 me; ./me -u; ./me -g;"
        "cp /usr/bin/id /tmp/me; chmod 6755 /tmp/me; /tmp/me -u;"
        "for f in su passwd mount umount newgrp sudo; do $f root -c id -u 2>&1; done;"
        "chown 0 me; python3 -c 'import os; os.setuid(0)'; grep NoNewPrivs /proc/self/status"
    )
    assert result.stdout.splitlines()[:3] == ["1000"] * 3
    assert "uid=0" not in result.stdout
    assert "\n0\n" not in result.stdout
    assert result.stdout.endswith("NoNewPrivs:\t1\n")


async def test_limits_can_only_be_lowered(small: Sandbox) -> None:
    result = await small.run_python(
        "import json, resource as r\n"
        "raised = []\n"
        "for name in dir(r):\n"
        "    if not name.startswith('RLIMIT_'): continue\n"
        "    which = getattr(r, name)\n"
        "    soft, hard = r.getrlimit(which)\n"
        "    if hard == r.RLIM_INFINITY: continue\n"
        "    try: r.setrlimit(which, (hard + 1, hard + 1)); raised.append(name)\n"
        "    except (OSError, ValueError): pass\n"
        "    if hard != 1 and name == 'RLIMIT_CORE': raised.append('core dumps')\n"
        "import os\n"
        "try: os.nice(-5); raised.append('nice')\n"
        "except OSError: pass\n"
        "try: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)); raised.append('fifo')\n"
        "except OSError: pass\n"
        "print(json.dumps(raised))"
    )
    assert json.loads(result.stdout) == []


UPON_THE_AGENT = {
    **{f"its {name}": f"resource.prlimit(1, resource.RLIMIT_{name}, (3, 3))"
       for name in ("NOFILE", "FSIZE", "AS", "DATA", "CPU", "NPROC", "STACK")},
    "its priority": "os.setpriority(os.PRIO_PROCESS, 1, 19)",
    "its group's": "os.setpriority(os.PRIO_PGRP, 1, 19)",
    "everybody's": "os.setpriority(os.PRIO_USER, 0, 19)",
    "everybody's by name": "os.setpriority(os.PRIO_USER, os.getuid(), 19)",
    "its scheduler": "os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))",
    "its scheduling": "os.sched_setparam(1, os.sched_param(0))",
    "its processors": "os.sched_setaffinity(1, {min(os.sched_getaffinity(0))})",
}  # fmt: skip
# What no library asks for, with the numbers of x86-64. Of a number that the kernel takes for one of
# 32 bits it ignores the upper half, and a filter may not.
RAW_UPON_THE_AGENT = {
    "its disk": "251, 1, 1, 3 << 13", "everybody's disk": "251, 3, 0, 3 << 13",
    "its attributes": "314, 1, bytes([48, 0, 0, 0, 5]) + bytes(43), 0",
    "NOFILE, 64 bits": "302, ONE, 7, THREES, 0", "NOFILE, negative": "302, -0xffffffff, 7, THREES",
    "its priority, 64 bits": "141, 0, ONE, 19", "everybody's, 64 bits": "141, ONE + 1, 0, 19",
    "its disk, 64 bits": "251, 1, ONE, 3 << 13", "everybody's disk, 64": "251, ONE + 2, 0, 3 << 13",
    "its scheduler, 64 bits": "144, ONE, 5, bytes(4)", "its scheduling, 64": "142, ONE, bytes(4)",
    "its processors, 64 bits": "203, ONE, 8, bytes([1]) + bytes(7)",
}  # fmt: skip


async def test_no_program_sets_limits_or_priority_of_the_agent(small: Sandbox) -> None:
    raw = RAW_UPON_THE_AGENT if os.uname().machine == "x86_64" else {}
    result = await small.run_python(
        "import ctypes, json, os, resource\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "ONE, THREES = (1 << 32) + 1, (ctypes.c_ulong * 2)(3, 3)\n"
        "def call(*args):\n"
        "    args = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]\n"
        "    if libc.syscall(*args) == -1: raise OSError(ctypes.get_errno(), '')\n"
        "def tried(what):\n"
        "    try: what()\n"
        "    except OSError as error: return error.errno\n"
        "    return 'allowed'\n"
        "print(json.dumps({"
        + ", ".join(
            [f"{name!r}: tried(lambda: {code})" for name, code in UPON_THE_AGENT.items()]
            + [f"{name!r}: tried(lambda: call({arguments}))" for name, arguments in raw.items()]
        )
        + "}))",
        timeout=5,
    )
    seen = json.loads(result.stdout)
    assert {name: errno for name, errno in seen.items() if errno != EPERM} == {}
    await small.write_file("larger/than/three/bytes", bytes(5000))


async def test_programs_may_set_limits_and_priority_of_their_own(small: Sandbox) -> None:
    result = await small.run_python(
        "import os, resource, subprocess\n"
        "for pid in (0, os.getpid(), subprocess.Popen(['sleep', '9']).pid):\n"
        "    resource.prlimit(pid, resource.RLIMIT_NOFILE, (30, 30))\n"
        "    os.sched_setaffinity(pid, os.sched_getaffinity(pid))\n"
        "    os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))\n"
        "    print(resource.prlimit(pid, resource.RLIMIT_NOFILE))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (29, 29))\n"
        "os.setpriority(os.PRIO_PROCESS, 0, 5); os.setpriority(os.PRIO_PGRP, 0, 6); os.nice(1)\n"
        "print(resource.prlimit(1, resource.RLIMIT_NOFILE)[0] > 30, os.nice(0))"
    )
    assert result.stdout == "(30, 30)\n" * 3 + "True 7\n", result


async def test_a_crash_dumps_no_core(small: Sandbox) -> None:
    result = await small.exec("ulimit -c unlimited; kill -ABRT $$")
    assert result.status == "killed"
    result = await small.run_python("import ctypes; ctypes.string_at(0)")
    assert (result.status, result.exit_code) == ("killed", 139)
    assert await small.list_dir() == []


async def test_no_terminal_can_be_typed_into(small: Sandbox) -> None:
    result = await small.run_python(
        "import fcntl, os, termios\n"
        "for path in ('/dev/tty', '/dev/console', '/proc/1/fd/0', '/proc/self/fd/0'):\n"
        "    try: fd = os.open(path, os.O_RDWR)\n"
        "    except OSError: continue\n"
        "    try: fcntl.ioctl(fd, termios.TIOCSTI, b'x'); print('typed into', path)\n"
        "    except OSError: pass\n"
        "print(os.isatty(0), os.isatty(1), os.isatty(2))"
    )
    assert result.stdout == "False False False\n"
