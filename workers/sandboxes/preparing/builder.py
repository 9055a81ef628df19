"""Makes a folder of Python packages for sandboxes: fetched by hash, never built, never run.

Everything is made in a draft beside the final place, one distribution after the other, and renamed
at the end. A preparation that was killed goes on where it stopped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path

from common.failures import ConfigurationError
from common.only_one import only_one
from workers.sandboxes.preparing import inventory
from workers.sandboxes.preparing.lockfile import LockFile, Pin, read
from workers.sandboxes.python_packages import (
    MANIFEST,
    Manifest,
    Prepared,
    find,
    manifest_of,
    python_tag,
)

PATIENCE = 1800.0
"""Seconds to wait for another preparation."""
INSTALL_TIMEOUT = 900.0
"""Seconds for one distribution."""
COMPILE_TIMEOUT = 300.0
LAYOUT = 1
"""Of the folder; another number makes every host prepare anew."""

Told = Callable[[str, int, int], None]
"""Told what comes next, how many distributions are done, and how many there are."""

# The variables of PEP 508, asked of the interpreter that will run the packages.
MARKERS = """
import json, os, platform, sys
v = sys.implementation.version
full = "%d.%d.%d" % v[:3] + ("" if v[3] == "final" else v[3][0] + str(v[4]))
print(json.dumps({
    "implementation_name": sys.implementation.name, "implementation_version": full,
    "os_name": os.name, "platform_machine": platform.machine(),
    "platform_release": platform.release(), "platform_system": platform.system(),
    "platform_version": platform.version(), "python_full_version": platform.python_version(),
    "platform_python_implementation": platform.python_implementation(),
    "python_version": ".".join(platform.python_version_tuple()[:2]), "sys_platform": sys.platform,
}))
"""


def prepare(
    root: Path, lock: Path, interpreter: Path, told: Told = lambda *_: None
) -> tuple[Prepared, bool]:
    """Return the packages of a list, prepared for an interpreter, and whether there was work to do.

    Several at the same time take turns. Raises `ConfigurationError` saying what to change.
    """
    environment = _ask(interpreter)
    listed = read(lock, environment)
    tag = python_tag(environment["python_version"])
    key = f"{tag}-{sha256(f'{LAYOUT} {tag} {listed.sha256}'.encode()).hexdigest()[:16]}"
    try:
        _make_folder(root)
        waiting = partial(told, "waiting for another preparation", 0, 1)
        with only_one(root / ".lock", patience=PATIENCE, waiting=waiting) as held:
            work = not _whole(root / key)
            if work:
                _build(root / key, listed, interpreter, environment, held, told)
            _use(root / tag, key)
    except OSError as error:
        raise ConfigurationError(
            f"cannot prepare packages in {root}: {error}; set FLEET_PACKAGES to another folder"
        ) from None
    prepared = find(root, environment["python_version"])
    if prepared is None:
        raise ConfigurationError(f"{root / tag} was there and is gone: prepare again")
    return prepared, work


def _build(
    folder: Path, listed: LockFile, interpreter: Path, environment: dict[str, str], held: int,
    told: Told,
) -> None:  # fmt: skip
    draft = folder.with_name(f".{folder.name}.draft")
    _make_folder(draft)
    for number, pin in enumerate(listed.pins):
        told(f"{pin.name} {pin.version}", number, len(listed.pins))
        if not (draft / pin.name).is_dir():
            part = draft / f".{pin.name}.part"
            shutil.rmtree(part, ignore_errors=True)
            _install(pin, interpreter, part, held)
            _compile(part, interpreter, held)
            part.chmod(0o755)
            part.rename(draft / pin.name)
    manifest = Manifest(
        python=python_tag(environment["python_version"]),
        interpreter=interpreter,
        lock_sha256=listed.sha256,
        packages=inventory.take(draft, listed.pins, environment),
    )
    file = draft / MANIFEST
    file.write_text(manifest.model_dump_json(indent=1), "utf-8")
    file.chmod(0o644)
    os.sync()  # or a power cut after the rename could leave files that are empty
    _put_aside(folder)
    draft.rename(folder)
    told("ready", len(listed.pins), len(listed.pins))


def _whole(folder: Path) -> bool:
    """Say whether a folder was prepared to its end, and nobody damaged it since."""
    try:
        manifest_of(folder)
    except (OSError, ValueError):
        return False
    return True


def _put_aside(folder: Path) -> None:
    """Make room where a damaged folder lies. It is kept: sandboxes that run may still use it."""
    aside = folder.with_name(f".{folder.name}.damaged")
    if os.path.lexists(folder):
        if os.path.lexists(aside):
            shutil.rmtree(aside)  # of the time before, which nobody uses any more
        folder.rename(aside)


def _install(pin: Pin, interpreter: Path, target: Path, held: int) -> None:
    """Unpack one wheel, chosen by pip for that interpreter. Nothing of it is run."""
    if importlib.util.find_spec("pip") is None:
        raise ConfigurationError(
            "packages are fetched by pip, which is missing: uv pip install pip"
        )
    wanted = target.with_suffix(".txt")
    wanted.write_text(pin.line(), "utf-8")
    command = [
        sys.executable, "-m", "pip", f"--python={interpreter}", "install", "--quiet", "--no-deps",
        "--require-hashes", "--only-binary=:all:", "--no-compile", "--no-input", "--no-user",
        "--disable-pip-version-check", "--root-user-action=ignore",
        f"--target={target}", f"--requirement={wanted}",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False,
            umask=0o022,  # sandboxes are other users
            pass_fds=(held,), timeout=INSTALL_TIMEOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ConfigurationError(
            f"{pin.name} {pin.version} was not fetched within {INSTALL_TIMEOUT:g} s; "
            "what is done is kept: run it again"
        ) from None
    finally:
        wanted.unlink()
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").splitlines()
        why = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR")] or said
        raise ConfigurationError(
            f"{pin.name} {pin.version} could not be installed for {interpreter} from a wheel: "
            f"{' '.join(why)[-600:] or f'pip ended with status {done.returncode}'}"
        )


def _compile(folder: Path, interpreter: Path, held: int) -> None:
    """Write the bytecode, which no sandbox could keep; without it pandas takes seconds to import.

    Some packages hold files that no Python can compile; those are left as they are.
    """
    command = [
        str(interpreter), "-I", "-S", "-m", "compileall", "-q", "-j", "0",
        "--invalidation-mode", "unchecked-hash", "-x", r"/tests?/", ".",
    ]  # fmt: skip
    try:
        subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False,
            umask=0o022, pass_fds=(held,), timeout=COMPILE_TIMEOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ConfigurationError(f"{folder} was not compiled in {COMPILE_TIMEOUT:g} s") from None


def _ask(interpreter: Path) -> dict[str, str]:
    try:
        done = subprocess.run(
            [interpreter, "-I", "-S", "-c", MARKERS], stdin=subprocess.DEVNULL,
            capture_output=True, check=True, timeout=20,
        )  # fmt: skip
        found: dict[str, str] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ConfigurationError(f"{interpreter} does not run: {error}") from None
    return found


def _use(link: Path, key: str) -> None:
    """Point the link to a folder, at once; whoever has the old one open keeps it."""
    draft = link.with_name(f".{link.name}.link")
    draft.unlink(missing_ok=True)
    draft.symlink_to(key)
    draft.rename(link)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, open to all users whatever the umask."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
