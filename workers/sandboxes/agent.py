"""The agent inside the jail: PID 1 there, it runs programs and touches files for the worker.

It runs on the jail's own interpreter and is sent there as one file, so: standard library only,
syntax of Python 3.9, nothing of ours imported.

A frame, either way: four bytes (big endian) with the length of a JSON object, the object, then
the byte strings whose lengths the object lists under ``raw``. Requests carry ``id`` and ``op``;
each gets exactly one reply with the same ``id``, in order. While a program runs, only ``cancel``
is acted on; other requests wait. When the worker's end closes, or talks nonsense, the agent
exits, and with PID 1 the kernel ends everything in the jail.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import stat
import sys
import time

TYPE_CHECKING = False  # importing it from typing would double the time the agent needs to start
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    Request = dict[str, Any]
    Start = Callable[[int, int, int], int]

WORK = "/work"
WRITABLE = (WORK, "/tmp", "/dev/shm")
CONTROL = 10  # private descriptors start here, clear of the 0, 1, 2 that programs get
MAX_HEADER = 16 << 20
CHUNK = 1 << 16
MEMORY_WATCH = 0.025  # seconds between two looks at the memory in use, where no cgroup limits it
KILL_GRACE = 2.0  # seconds killed processes get to be gone
PAGE = os.sysconf("SC_PAGE_SIZE")
LIBC = ctypes.CDLL(None)
RESET_SIGNALS = (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)


class Refused(Exception):
    """A path the program has no right to, or that is not what it should be; told to the worker."""


class Program(Exception):
    """Unwinds a forked child out of the agent's frames, so that the program runs on top."""

    def __init__(self, code: bytes) -> None:
        super().__init__()
        self.code = code


class Wire:
    """The two private descriptors to the worker."""

    def __init__(self) -> None:
        import fcntl

        self.source = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, CONTROL)
        self.sink = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, CONTROL)
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)
        self.waiting: list[tuple[Request, list[bytes]]] = []

    def receive(self) -> tuple[Request, list[bytes]]:
        """Return the next request; one that came while a program ran goes first."""
        return self.waiting.pop(0) if self.waiting else self.read()

    def read(self) -> tuple[Request, list[bytes]]:
        size = int.from_bytes(self._exactly(4), "big")
        if size > MAX_HEADER:
            os._exit(3)
        try:
            header = json.loads(self._exactly(size))
            lengths = [int(length) for length in header.get("raw", ())]
        except (ValueError, AttributeError, TypeError):
            os._exit(3)
        return header, [self._exactly(length) for length in lengths]

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self.source, min(size, 1 << 20))
            if not part:
                os._exit(0)  # the worker is gone; so is this jail
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def send(self, reply: Request, *raw: bytes) -> None:
        reply["raw"] = [len(part) for part in raw]
        header = json.dumps(reply).encode("ascii")
        view = memoryview(b"".join((len(header).to_bytes(4, "big"), header, *raw)))
        while view:
            view = view[os.write(self.sink, view) :]


class Children:
    """Every process below PID 1: reaps orphans too, and adds up what they all used."""

    def __init__(self) -> None:
        self.wake, wake_write = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self.main = 0
        self.status: int | None = None
        self.main_cpu = self.cpu = 0.0
        self.peak = 0

    def expect(self, main: int) -> None:
        self.main, self.status, self.main_cpu, self.cpu, self.peak = main, None, 0.0, 0.0, 0

    def reap(self) -> bool:
        """Collect who ended. Returns whether any process is left."""
        try:  # noqa: SIM105 - contextlib costs a millisecond of start
            os.read(self.wake, CHUNK)
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            self.cpu += used.ru_utime + used.ru_stime
            self.peak = max(self.peak, used.ru_maxrss * 1024)
            if pid == self.main:
                self.status = status
                self.main_cpu = used.ru_utime + used.ru_stime

    def kill_all(self) -> None:
        """End every process but this one, and wait until they are gone."""
        deadline = time.monotonic() + KILL_GRACE
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        while True:
            try:  # noqa: SIM105
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:
                pass
            if not self.reap():
                return
            if time.monotonic() > deadline:
                os._exit(4)  # something cannot be killed: nothing after it could be trusted
            poll.poll(50)


class Output:
    """One output stream of a program, kept up to a cap."""

    def __init__(self, cap: int) -> None:
        self.fd, self.theirs = os.pipe()
        os.set_blocking(self.fd, False)
        self.cap = cap
        self.kept = bytearray()
        self.truncated = False

    def take(self) -> bool:
        """Read what is there now. Returns False at the end of the stream."""
        while True:
            try:
                part = os.read(self.fd, CHUNK)
            except BlockingIOError:
                return True
            if not part:
                return False
            room = self.cap - len(self.kept)
            self.kept += part[:room]
            if len(part) > room:
                self.truncated = True
                return True


class Step:
    """One program, from its start until nothing of it is left."""

    def __init__(self, agent: Agent, request: Request, stdin: bytes) -> None:
        self.agent = agent
        self.number = request["id"]
        self.timeout = float(request["timeout"])
        self.out = Output(int(request["cap"]))
        self.err = Output(int(request["cap"]))
        self.stdin = memoryview(stdin)
        self.poll = select.poll()
        self.memory_check = 0.0

    def run(self, start: Start) -> tuple[Request, bytes, bytes]:
        children, began = self.agent.children, time.monotonic()
        theirs, ours = os.pipe() if self.stdin else (os.open("/dev/null", os.O_RDONLY), -1)
        try:
            children.expect(start(theirs, self.out.theirs, self.err.theirs))
        except (OSError, ValueError) as error:
            reason, status = _reason(error), "error"
            self.err.kept += reason.encode("utf-8", "replace")
        else:
            status = ""
        # `Program` passes through above in the child; everything below is the agent's alone.
        for fd in (theirs, self.out.theirs, self.err.theirs):
            os.close(fd)
        if not status:
            status = self._watch(ours, began + self.timeout)
            children.kill_all()
            for stream in (self.out, self.err):
                stream.take()
            status = status or self._verdict()
        for fd in (ours, self.out.fd, self.err.fd):
            if fd >= 0:
                os.close(fd)
        return self._reply(status, time.monotonic() - began), bytes(self.out.kept), bytes(
            self.err.kept
        )  # fmt: skip

    def _watch(self, stdin: int, deadline: float) -> str:
        """Feed and listen until the program ends ("") or must be stopped (why)."""
        wire, children, poll = self.agent.wire, self.agent.children, self.poll
        streams = {self.out.fd: self.out, self.err.fd: self.err}
        for fd in (wire.source, children.wake, *streams):
            poll.register(fd, select.POLLIN)
        if stdin >= 0:
            os.set_blocking(stdin, False)
            poll.register(stdin, select.POLLOUT)
        pause = MEMORY_WATCH if self.agent.memory else 3600.0
        while True:
            now = time.monotonic()
            if now >= deadline:
                return "timeout"
            if self.agent.memory and self._too_much_memory(now):
                return "oom"
            for fd, _ in poll.poll(max(1.0, min(deadline - now, pause) * 1000)):
                if fd in streams:
                    if not streams[fd].take():
                        poll.unregister(fd)
                elif fd == stdin:
                    self._feed(stdin)
                elif fd == wire.source and self._cancelled():
                    return "killed"
            if self.out.truncated or self.err.truncated:
                return "output_limit"
            children.reap()
            if children.status is not None:
                return ""

    def _feed(self, stdin: int) -> None:
        try:
            self.stdin = self.stdin[os.write(stdin, self.stdin[:CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.stdin = self.stdin[:0]
        if not self.stdin:
            # Closes the pipe, so that the program sees the end of its input; the number stays ours.
            self.poll.unregister(stdin)
            os.dup2(self.agent.null, stdin, inheritable=False)

    def _cancelled(self) -> bool:
        request, raw = self.agent.wire.read()
        if request.get("op") == "cancel":
            return bool(request.get("id") == self.number)
        self.agent.wire.waiting.append((request, raw))
        return False

    def _too_much_memory(self, now: float) -> bool:
        if now < self.memory_check:
            return False
        too_much = _memory_in_use(exact=False) > self.agent.memory and (
            # Pages shared after a fork were counted once for each; look closely before killing.
            _memory_in_use(exact=True) > self.agent.memory
        )
        self.memory_check = now + max(MEMORY_WATCH, 10 * (time.monotonic() - now))
        return too_much

    def _verdict(self) -> str:
        if self.out.truncated or self.err.truncated:
            return "output_limit"
        status = self.agent.children.status or 0
        if not os.WIFSIGNALED(status):
            return "error" if status else "ok"
        spent = self.agent.children.main_cpu >= self.agent.cpu - 0.5
        if spent and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU):
            return "timeout"
        return "killed"

    def _reply(self, status: str, duration: float) -> Request:
        children = self.agent.children
        started = children.status is not None
        return {
            "id": self.number,
            "status": status,
            "exit_code": _exit_code(children.status or 0) if started else None,
            "truncated": [self.out.truncated, self.err.truncated],
            "duration": duration,
            "cpu": children.cpu if started else None,
            "peak": children.peak if started else None,
        }


class Agent:
    """Takes one request after the other, for ever."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.null = os.open("/dev/null", os.O_RDWR)
        # Python's own handler would make PID 1 die of a SIGINT that a program sends it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.children = Children()
        setup, _ = self.wire.read()
        self.env: dict[str, str] = setup["env"]
        self.cpu = float(setup["cpu"])
        self.memory = int(setup["memory"])
        os.environ.clear()
        os.environ.update(self.env)
        # Closes this process's memory, environment and descriptors to programs of the same user.
        set_dumpable(False)
        os.umask(0o022)
        os.chdir(WORK)
        self.wire.send({"id": setup["id"], "pid": os.getpid(), "python": sys.version.split()[0]})

    def serve(self) -> NoReturn:
        import gc

        gc.freeze()  # keeps the collector from touching, and so copying, pages shared with forks
        while True:
            request, raw = self.wire.receive()
            op, number = request.get("op"), request.get("id")
            try:
                if op in ("exec", "python"):
                    reply, out, err = self._program(request, raw)
                    self.wire.send(reply, out, err)
                elif op == "read":
                    self.wire.send({"id": number}, read_file(request["path"], request["limit"]))
                elif op == "write":
                    write_file(request["path"], raw[0], request["mode"])
                    self.wire.send({"id": number})
                elif op == "list":
                    self.wire.send({"id": number, "entries": list_dir(request["path"])})
                elif op == "ping":
                    self.wire.send({"id": number})
                elif op != "cancel":  # "stop", or nothing we know
                    os._exit(0)
            except Refused as refusal:
                self.wire.send({"id": number, "refused": str(refusal)})

    def _program(self, request: Request, raw: list[bytes]) -> tuple[Request, bytes, bytes]:
        self.children.expect(0)
        step = Step(self, request, raw[0])
        if request["op"] == "python":
            return step.run(lambda *fds: fork(raw[1], fds))
        command = request["command"]
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        env = {**self.env, **request["env"]}
        return step.run(lambda *fds: spawn(argv, env, request["cwd"], fds))


def spawn(argv: list[str], env: Mapping[str, str], cwd: str, fds: tuple[int, ...]) -> int:
    """Start a program with its own session, signals and descriptors 0, 1, 2; returns its pid."""
    if not argv:
        raise ValueError("no command")
    os.chdir(cwd)
    try:
        return os.posix_spawn(
            _find(argv[0], env.get("PATH", os.defpath)),
            argv,
            env,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)],
            setsid=True,
            setsigdef=RESET_SIGNALS,
        )
    finally:
        os.chdir(WORK)


def fork(code: bytes, fds: tuple[int, ...]) -> int:
    """Start a copy of this interpreter that becomes the Python program; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    signal.set_wakeup_fd(-1)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    set_dumpable(True)  # or the program could not read its own /proc/self
    raise Program(code)


def become(code: bytes) -> NoReturn:
    """Run a program as `python -c` would, in this forked child."""
    import builtins
    import types

    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    sys.argv = ["-c"]
    sys.path.insert(0, "")
    try:
        # dont_inherit: the __future__ import of this file is none of the program's business
        exec(  # noqa: S102
            compile(code.decode("utf-8", "surrogatepass"), "<string>", "exec", 0, True),
            module.__dict__,
        )
        exit_code = 0
    except SystemExit as wish:
        exit_code = _asked_exit_code(wish.code)
    except BaseException as error:
        # Without the frame of this function, the traceback is the one Python would print.
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        sys.excepthook(type(error), error, error.__traceback__)
        exit_code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    os._exit(exit_code if _finalize() else 120)


def _asked_exit_code(wish: object) -> int:
    if wish is None or isinstance(wish, int):
        return (wish or 0) & 0xFF
    print(wish, file=sys.stderr)  # noqa: T201
    return 1


def _finalize() -> bool:
    """End the program as the interpreter would; returns whether its output could be written.

    The interpreter itself is not taken down: undoing every loaded module copies most of the
    agent's pages, which takes longer than a typical program. So: threads, exit handlers, then
    the globals of the program's own modules, for destructors and unflushed files.
    """
    import atexit
    import gc

    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    written = _flush()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name == "__main__" or (isinstance(file, str) and file.startswith(WRITABLE)):
            names = vars(module)
            for key in list(names):
                if key != "__builtins__":
                    names[key] = None
    gc.collect()
    return written and _flush()


def _flush() -> bool:
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except (OSError, ValueError) as error:
            if stream is sys.stdout:
                reason = f"Exception ignored in: {stream!r}\n{type(error).__name__}: {error}"
                print(reason, file=sys.stderr)  # noqa: T201
            return False
    return True


def read_file(path: str, limit: int) -> bytes:
    """Return a regular file's content; nothing else can be opened, so nothing can block."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise _refused(path, error) from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Refused(f"{path}: not a regular file")
        parts: list[bytes] = []
        size = 0
        while size <= limit:  # the size in stat may be 0 (in /proc) or change
            part = os.read(fd, min(1 << 20, limit + 1 - size))
            if not part:
                return b"".join(parts)
            parts.append(part)
            size += len(part)
        raise Refused(f"{path}: larger than {limit} bytes")
    except OSError as error:
        raise _refused(path, error) from None
    finally:
        os.close(fd)


def write_file(path: str, data: bytes, mode: int) -> None:
    """Replace a file at once or not at all; a link at its place is replaced, never followed."""
    if os.path.basename(path) in ("", ".", ".."):  # noqa: PTH119
        raise Refused(f"{path}: not a file name")
    folder = os.path.dirname(path)  # noqa: PTH120
    draft = os.path.join(folder, f".fleet-{os.urandom(8).hex()}")  # noqa: PTH118
    try:
        if folder:
            os.makedirs(folder, 0o755, exist_ok=True)  # noqa: PTH103
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise _refused(path, error) from None
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fchmod(fd, mode & 0o7777)
        os.rename(draft, path)  # noqa: PTH104
    except (OSError, ValueError) as error:
        os.unlink(draft)  # noqa: PTH108
        raise _refused(path, error) from None
    finally:
        os.close(fd)


def list_dir(path: str) -> list[tuple[str, str, int]]:
    """Return (name, kind, size) of each entry, sorted by name."""
    entries = []
    try:
        with os.scandir(path) as found:
            for entry in found:
                info = entry.stat(follow_symlinks=False)
                name = os.fsencode(entry.name).decode("utf-8", "backslashreplace")
                entries.append((name, _kind(info.st_mode), info.st_size))
    except (OSError, ValueError) as error:
        raise _refused(path, error) from None
    return sorted(entries)


def _refused(path: str, error: Exception) -> Refused:
    return Refused(f"{path}: {getattr(error, 'strerror', None) or error}")


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "dir"
    return "symlink" if stat.S_ISLNK(mode) else "other"


def _find(program: str, path: str) -> str:
    if "/" in program:
        return program
    for folder in path.split(":"):
        candidate = os.path.join(folder or ".", program)  # noqa: PTH118
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):  # noqa: PTH112
            return candidate
    raise FileNotFoundError(errno.ENOENT, "command not found", program)


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if isinstance(error.filename, str) else reason


def _exit_code(status: int) -> int:
    if os.WIFSIGNALED(status):
        return 128 + os.WTERMSIG(status)
    return os.WEXITSTATUS(status)


def _memory_in_use(exact: bool) -> int:
    """Bytes of private memory of all programs; ``exact`` shares out what several map."""
    total = 0
    for pid in os.listdir("/proc"):  # noqa: PTH208
        if not pid.isdigit() or pid == "1":
            continue
        try:
            if exact:
                with open(f"/proc/{pid}/smaps_rollup", "rb") as rollup:  # noqa: PTH123
                    for line in rollup:
                        if line.startswith(b"Pss_Anon:"):
                            total += int(line.split()[1]) * 1024
            else:
                with open(f"/proc/{pid}/statm", "rb") as statm:  # noqa: PTH123
                    fields = statm.read().split()
                total += (int(fields[1]) - int(fields[2])) * PAGE
        except (OSError, IndexError):
            continue  # it ended meanwhile
    return total


def set_dumpable(yes: bool) -> None:
    """Say whether processes of the same user may look into this one, through /proc or ptrace."""
    if LIBC.prctl(4, int(yes), 0, 0, 0) != 0:  # 4: PR_SET_DUMPABLE
        os._exit(5)


if __name__ == "__main__":
    if os.getpid() != 1:
        sys.exit("the agent kills every process it can reach: it runs as PID 1 of a jail only")
    program = None
    try:
        Agent().serve()
    except Program as unwound:
        program = unwound
    # Outside of the handler: an error in the program must not claim to have come from another.
    become(program.code)
