"""A worker in a container without any privilege isolates programs as well as one on a host."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.sandboxes.docker_bed import REPOSITORY, build_worker

pytestmark = [pytest.mark.docker, pytest.mark.slow]

COMPOSE = REPOSITORY / "compose/worker.yaml"
ELSEWHERE = {
    "build", "image", "command", "environment", "expose", "volumes", "stop_grace_period",
}  # fmt: skip
"""Of a service: nothing that adds to or takes from what the container may do."""
TOOLS = (
    "pytest",
    "_pytest",
    "py",
    "pluggy",
    "iniconfig",
    "pytest_asyncio",
    "packaging",
    "pygments",
)
"""Plain Python, so they run on the image's interpreter too."""

LOOK = """
import asyncio, os
from pathlib import Path
from workers.sandboxes.nsjail.provider import NsjailProvider
from workers.sandboxes.spec import Limits, SandboxSpec

def status(name):
    for line in open("/proc/self/status"):
        if line.startswith(name + ":"):
            return line.split()[1]

def refused(attempt):
    try:
        attempt()
    except OSError:
        return True

def alone():
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit()) == [1, os.getpid()]

async def main():
    assert [os.getuid(), os.getgid()] == [12345, 12345]
    assert {status(f"Cap{kind}") for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (status("NoNewPrivs"), status("Seccomp")) == ("1", "2")
    for folder in ("/", "/etc", "/opt/venv", "/usr"):
        assert refused(lambda: open(folder + "/x", "w")), folder
    Path("/output/x").write_text("x")
    assert alone()
    provider = NsjailProvider(records=Path("/tmp/records"))
    report = await provider.probe()
    assert report.broken == (), report
    assert report.enforced["user"] == "namespace: 12345 outside", report
    assert "agent" in report.enforced["memory"], report
    sandboxes = [await provider.start(SandboxSpec()) for _ in range(5)]
    seen = await sandboxes[0].run_python(
        "import importlib.util as u, os, sys\\n"
        "print(sys.executable, u.find_spec('workers'), u.find_spec('redis'))\\n"
        "print(os.path.exists('/opt'), os.path.exists('/output'))"
    )
    print(seen.stdout, end="")
    running = [asyncio.create_task(s.exec("sleep 60")) for s in sandboxes]
    await asyncio.sleep(0)
    await provider.close()
    await asyncio.gather(*running, return_exceptions=True)
    assert alone(), os.listdir("/proc")
    assert os.listdir("/tmp/records") == []
    print("all well")

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def image() -> str:
    return build_worker()


def options_of(service: dict[str, Any]) -> Iterator[str]:
    """Yield what `docker run` has to be told for a service; an option not known here fails."""
    for key, value in service.items():
        match key:
            case "user":
                yield f"--user={value}"
            case "cap_drop":
                yield from (f"--cap-drop={name}" for name in value)
            case "read_only" | "init":
                yield f"--{key.replace('_', '-')}={str(value).lower()}"
            case "security_opt":
                for option in value:
                    name, _, path = option.partition("=")
                    yield "--security-opt=" + (
                        f"seccomp={COMPOSE.parent / path}" if name == "seccomp" else option
                    )
            case "tmpfs":
                yield from (f"--tmpfs={mount}" for mount in value)
            case "mem_limit" | "memswap_limit" | "pids_limit":
                names = {"mem_limit": "memory", "memswap_limit": "memory-swap"}
                yield f"--{names.get(key, 'pids-limit')}={value}"
            case "ulimits":
                yield from (f"--ulimit={name}={limit}" for name, limit in value.items())
            case _:
                assert key in ELSEWHERE, f"{key}: the test does not know what it does"


def run(image: str, *command: str, mounts: tuple[str, ...] = (), stdin: str = "") -> str:
    """Run a command exactly as compose would run the worker."""
    service = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]["workers"]
    volumes = [f"--volume={volume.partition(':')[2]}" for volume in service["volumes"]]
    done = subprocess.run(
        ["docker", "run", "--rm", "--interactive", *options_of(service), *volumes,
         *(f"--volume={mount}" for mount in mounts), "--workdir=/tmp", image, *command],
        input=stdin, capture_output=True, text=True, timeout=560, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_jails_hold_in_a_container_without_privileges_and_leave_nothing(image: str) -> None:
    seen = run(image, "python", "-", stdin=LOOK)
    # The jail's Python is the image's own, and none of the worker's packages is to be seen.
    assert seen == "/usr/bin/python3 None None\nFalse False\nall well\n"


def test_the_worker_starts_and_asks_for_its_queue(image: str) -> None:
    assert "SCENE" in run(image, "python", "-m", "workers", "--help")


def test_jails_hold_against_the_hostile_and_the_dead_there_too(image: str, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in TOOLS:
        file = importlib.import_module(name).__file__
        assert file is not None
        found = Path(file)
        if found.name == "__init__.py":
            shutil.copytree(found.parent, tools / name)
        else:
            shutil.copy(found, tools)
    distribution = next(Path(pytest.__file__).parents[1].glob("pytest_asyncio-*.dist-info"))
    shutil.copytree(distribution, tools / distribution.name)  # says that it is a plug-in
    tmp_path.chmod(0o755)
    suites = {"test_nsjail_hostile.py", "test_nsjail_lifecycle.py"}
    told = run(
        image, "sh", "-c",
        'cd /repository && PYTHONPATH=/tools:. exec python -m pytest -p no:cacheprovider "$@"',
        "sh", *(f"tests/sandboxes/{name}" for name in sorted(suites)),
        mounts=(
            f"{REPOSITORY}/tests:/repository/tests:ro",
            f"{REPOSITORY}/pyproject.toml:/repository/pyproject.toml:ro",
            f"{tools}:/tools:ro",
        ),
    )  # fmt: skip
    assert " passed" in told
    assert "failed" not in told
