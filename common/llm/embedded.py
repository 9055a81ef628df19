"""Runs a small real model on this machine: `python -m common.llm.embedded --port 0`.

One JSON line on standard output says where it listens; everything else goes to standard error.
The process ends on SIGTERM, and with the process that started it.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from common.failures import ConfigurationError
from common.llm.fetch import Progress, ensure
from common.process import die_with_parent
from common.settings import Settings, load

SLOTS = 2
"""More only add latency: two slots already fill two cores (31 against 14 tasks a minute with one;
four gave no more)."""
CONTEXT = 6144
"""Tokens per slot."""
KEY_VARIABLE = "FLEET_EMBEDDED_KEY"

_PROMPT_CACHE = 64  # MiB; llama.cpp's own default of 8 GiB would eat a small machine
_QUIET = 1  # llama.cpp's verbosity: errors only
_START = 60.0  # seconds until it must answer


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    parent = os.getppid()
    die_with_parent(parent)
    signal.signal(signal.SIGTERM, _stop)
    with _clean_stdout() as announce:
        try:
            settings = load(cache=options.cache, model_file=options.model_file)
            model, path = _weights(settings)
            if options.fetch_only:
                announce.write(json.dumps({"model": model, "file": str(path)}) + "\n")
                return 0
            key = settings.embedded_key.get_secret_value() if settings.embedded_key else ""
            said = {} if key else {"key": (key := secrets.token_urlsafe(24))}
            # From here on SIGTERM is waited for; the server's threads must not take it.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
            server = _serve(model, path, key, options.port, options.threads)
        except ConfigurationError as error:
            sys.stderr.write(f"embedded model: {error}\n")
            return 2
        line = {
            "url": f"{server.listening_address}/v1",
            "model": model,
            "key_env": KEY_VARIABLE,
            **said,
        }
        announce.write(json.dumps(line) + "\n")
        announce.flush()
        _wait_for_the_end(parent)
        # llama.cpp's server has no way to stop; it holds nothing that would need one.
        os._exit(0)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m common.llm.embedded", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument(
        "--threads", type=int, default=min(os.cpu_count() or 1, 8), help="default: all cores",
    )  # fmt: skip
    parser.add_argument("--model-file", type=Path, help="a GGUF file instead of the pinned one")
    parser.add_argument("--cache", type=Path, help="where fetched weights are kept")
    parser.add_argument("--fetch-only", action="store_true", help="get the weights and end")
    return parser.parse_args(arguments)


def _weights(settings: Settings) -> tuple[str, Path]:
    """Return the model's name and its file, fetching it if need be."""
    if settings.model_file is None:
        with _progress() as progress:
            weights, path = ensure(settings.cache, progress=progress)
        return weights.model, path
    try:
        with settings.model_file.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(f"model file {settings.model_file}: {reason}") from error
    if magic != b"GGUF":
        raise ConfigurationError(f"model file {settings.model_file} is no GGUF file")
    return settings.model_file.stem.lower(), settings.model_file


def _serve(model: str, path: Path, key: str, port: int, threads: int) -> Any:
    """Load the model and listen on the loopback interface; return the server once it is healthy.

    It ends with the object that is returned.
    """
    # Threads that wait for each other spin, and beside a busy neighbour spin in vain: with the
    # library's own count two threads on two cores fell from 38 to 5 tokens per second, with this
    # one to 14, and lost nothing on a quiet machine. Read once, when the library loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        import xllamacpp
    except ImportError as error:
        raise ConfigurationError(
            f"the embedded model needs the extra 'embedded' (xllamacpp): {error}"
        ) from error
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {model}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.api_keys = [key]
    params.ui = False
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = _PROMPT_CACHE
    params.verbosity = _QUIET
    params.offline = True  # it must never fetch anything by itself
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise ConfigurationError(f"cannot serve {path} on port {port}: {error}") from error
    _wait_until_healthy(str(server.listening_address))
    return server


def _wait_until_healthy(url: str) -> None:
    ends = time.monotonic() + _START
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):  # noqa: S310 (our own URL)
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > ends:
                raise ConfigurationError(
                    f"the embedded model did not answer within {_START:.0f} s: {error}"
                ) from error
            time.sleep(0.05)


def _wait_for_the_end(parent: int) -> None:
    """Return on SIGTERM or SIGINT, or when the parent is gone (where the kernel does not tell)."""
    while os.getppid() == parent:
        if signal.sigtimedwait({signal.SIGTERM, signal.SIGINT}, 2.0):
            return


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)  # unwinds a running fetch, which then removes what it had


@contextmanager
def _clean_stdout() -> Iterator[TextIO]:
    """Keep the real standard output for our one line: whatever C++ prints goes to stderr."""
    with os.fdopen(os.dup(1), "w") as announce:
        os.dup2(2, 1)
        yield announce


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show a bar on a terminal; in a log, a line for every tenth."""
    if sys.stderr.isatty():
        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
        with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task("embedded model")
            yield lambda what, done, total: bar.update(
                task, description=f"embedded model: {what}", completed=done, total=total
            )
        return
    shown: set[tuple[str, int]] = set()

    def line(what: str, done: int, total: int) -> None:
        tenth = (what, 10 * done // total)
        if tenth not in shown:
            shown.add(tenth)
            sys.stderr.write(f"embedded model: {what}, {done >> 20} of {total >> 20} MiB\n")

    yield line


if __name__ == "__main__":
    sys.exit(main())
