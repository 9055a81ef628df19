"""Starting programs: any executable, or Python code in a copy of this warm interpreter."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys

from workers.sandboxes.agent.limits import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, prctl

TYPE_CHECKING = False  # importing it from typing would double the time the agent needs to start
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

WORK = "/work"
BEGIN_GRACE = 5.0  # seconds from a fork to its exec
WRITABLE = (WORK, "/tmp", "/dev/shm")
RESET_SIGNALS = (
    signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGALRM, signal.SIGTERM,
)  # fmt: skip


class Program(Exception):
    """Unwinds a forked child out of the agent's frames, so that the program runs on top."""

    def __init__(self, code: bytes | bytearray) -> None:
        super().__init__()
        self.code = code


class Privileges:
    """What programs lose, where the agent runs with more than they may have."""

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        self.user, self.group = wanted["user"], wanted["group"]
        self.limits = {f"RLIMIT_{name.upper()}": value for name, value in wanted["limits"].items()}

    def drop(self) -> None:
        """Become that user for good, with those limits and no way to more. Raises `OSError`."""
        import resource

        for name, value in self.limits.items():
            try:
                resource.setrlimit(getattr(resource, name), (value, value))
            except (ValueError, OverflowError) as error:
                raise OSError(errno.EPERM, f"{name}: {error}") from None
        os.setgroups([])
        os.setresgid(self.group, self.group, self.group)
        os.setresuid(self.user, self.user, self.user)
        prctl(PR_SET_NO_NEW_PRIVS, 1)


def spawn(
    argv: list[str],
    env: Mapping[str, str],
    cwd: str,
    fds: tuple[int, ...],
    less: Privileges | None = None,
    careful: bool = False,
) -> int:
    """Start a program with its own session, signals and descriptors 0, 1, 2; returns its pid.

    ``careful``: somebody may stop it before it has begun. Raises `OSError` or `ValueError` when it
    cannot be started.
    """
    if not argv:
        raise ValueError("no command")
    if less is not None or careful or cwd != WORK:
        return _fork_and_exec(argv, env, cwd, fds, less)
    return os.posix_spawn(
        _find(argv[0], env.get("PATH", os.defpath)),
        argv,
        env,
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)],
        setsid=True,
        setsigdef=RESET_SIGNALS,
    )


def _fork_and_exec(
    argv: list[str],
    env: Mapping[str, str],
    cwd: str,
    fds: tuple[int, ...],
    less: Privileges | None,
) -> int:
    """Do what posix_spawn cannot: change the user or the folder, and not wait for ever."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        trouble = last_words(told, pid)
        if not trouble:
            return pid
        os.waitpid(pid, 0)
        code, reason, what = trouble.decode("utf-8", "replace").split("\0", 2)
        if not int(code):
            raise ValueError(reason)
        raise OSError(int(code), reason, what)
    try:
        _take_over(fds, tell)
        if less is not None:
            less.drop()
        os.chdir(os.path.join(WORK, cwd))  # noqa: PTH118
        for number in RESET_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.execve(_find(argv[0], env.get("PATH", os.defpath)), argv, env)  # noqa: S606
    except OSError as error:
        why = f"{error.errno}\0{error.strerror}\0{error.filename or ''}"
        os.write(tell, why.encode("utf-8", "replace"))
    except Exception as error:
        os.write(tell, f"0\0{error}\0".encode("utf-8", "replace"))
    finally:
        os._exit(127)


def fork(code: bytes | bytearray, fds: tuple[int, ...], less: Privileges | None = None) -> int:
    """Start a copy of this interpreter that becomes the Python program; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    become_programs_process(fds, less)
    prctl(PR_SET_DUMPABLE, 1)  # or the program could not read its own /proc/self
    raise Program(code)


def become_programs_process(fds: tuple[int, ...], less: Privileges | None, *keep: int) -> None:
    """Turn a forked copy of the agent into the process of a program."""
    _take_over(fds, *keep)
    for number in (signal.SIGCHLD, signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if less is not None:
        try:
            less.drop()
        except BaseException:  # nobody goes on with rights it should have lost
            os._exit(5)


def _take_over(fds: tuple[int, ...], *keep: int) -> None:
    """Make these the descriptors 0, 1, 2 of a session of its own; close all others but ``keep``.

    What is kept closes itself at an exec.
    """
    signal.set_wakeup_fd(-1)
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    first = len(fds)
    for fd in sorted(keep):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
    os.setsid()


def last_words(fd: int, pid: int) -> bytes:
    """Return what a child says before it has begun, and close that pipe; one that is stopped dies.

    Raises `ValueError` then.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    parts: list[bytes] = []
    try:
        while True:
            if not poll.poll(BEGIN_GRACE * 1000):
                os.kill(pid, signal.SIGKILL)
                raise ValueError("it was stopped before it had begun")
            part = os.read(fd, 4096)
            if not part:
                return b"".join(parts)
            parts.append(part)
    finally:
        os.close(fd)


def become(code: bytes | bytearray) -> NoReturn:
    """Run a program as `python -c` would, in this forked child."""
    import builtins
    import types

    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    sys.argv = ["-c"]
    # The agent itself ignores PYTHONPATH (-I), so that it never imports what is not its own.
    sys.path[0:0] = ["", *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
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


def _find(program: str, path: str) -> str:
    if "/" in program:
        return program
    for folder in path.split(":"):
        candidate = os.path.join(folder or ".", program)  # noqa: PTH118
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):  # noqa: PTH112
            return candidate
    raise FileNotFoundError(errno.ENOENT, "command not found", program)
