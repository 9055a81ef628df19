"""Starting programs: any executable, or Python code in a copy of this warm interpreter."""

from __future__ import annotations

import errno
import os
import signal
import sys

from workers.sandboxes.agent.limits import PR_SET_DUMPABLE, prctl

TYPE_CHECKING = False  # importing it from typing would double the time the agent needs to start
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

WORK = "/work"
WRITABLE = (WORK, "/tmp", "/dev/shm")
RESET_SIGNALS = (
    signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGALRM, signal.SIGTERM,
)  # fmt: skip


class Program(Exception):
    """Unwinds a forked child out of the agent's frames, so that the program runs on top."""

    def __init__(self, code: bytes) -> None:
        super().__init__()
        self.code = code


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
    for number in (signal.SIGCHLD, signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    prctl(PR_SET_DUMPABLE, 1)  # or the program could not read its own /proc/self
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


def _find(program: str, path: str) -> str:
    if "/" in program:
        return program
    for folder in path.split(":"):
        candidate = os.path.join(folder or ".", program)  # noqa: PTH118
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):  # noqa: PTH112
            return candidate
    raise FileNotFoundError(errno.ENOENT, "command not found", program)
