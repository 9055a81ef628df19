"""Programs that outlive their step: each below a keeper, a process that adopts all it leaves."""

from __future__ import annotations

import os
import signal

from workers.sandboxes.agent.children import OUR_CHILDREN, Children
from workers.sandboxes.agent.limits import PR_SET_CHILD_SUBREAPER, prctl
from workers.sandboxes.agent.programs import RESET_SIGNALS, Privileges, last_words, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

LOG_FOLDER = "/tmp"


def start_in_background(
    children: Children,
    argv: list[str],
    env: Mapping[str, str],
    cwd: str,
    less: Privileges | None = None,
) -> str:
    """Start a program and leave it running; returns the file with its output.

    It costs one process more than itself. Raises `OSError` and `ValueError` as `spawn` does.
    """
    if not os.access(OUR_CHILDREN, os.R_OK):
        raise ValueError("this kernel does not list children, so nothing could be left running")
    log, path = _new_log()
    told, tell = os.pipe()
    try:
        keeper = os.fork()
    except OSError:
        os.close(told)
        raise
    else:
        if keeper == 0:
            _keep(argv, env, cwd, log, tell, less)
        children.keepers.add(keeper)
    finally:
        os.close(log)
        os.close(tell)
    trouble = last_words(told, keeper)
    if trouble:
        raise ValueError(trouble.decode("utf-8", "replace"))
    return path


def _new_log() -> tuple[int, str]:
    number = 1
    while True:
        path = f"{LOG_FOLDER}/background-{number}.log"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o644), path
        except FileExistsError:
            number += 1


def _keep(
    argv: list[str],
    env: Mapping[str, str],
    cwd: str,
    log: int,
    tell: int,
    less: Privileges | None,
) -> NoReturn:
    """Be a keeper: start the program, and live as long as anything of it does."""
    try:
        signal.set_wakeup_fd(-1)
        for number in RESET_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        try:
            spawn(argv, env, cwd, (null, log, log), less, careful=True)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            os.write(tell, f"{argv[0] if argv else ''}: {reason}".encode("utf-8", "replace"))
        # Whatever the agent has open is none of a keeper's business; and this says that it began.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        while True:
            os.wait()
    except ChildProcessError:
        os._exit(0)
    finally:
        os._exit(1)
