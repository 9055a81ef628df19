"""Programs import what their task picked, and nothing besides, in every mode."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.metrics import Metrics
from common.settings import load
from fleet.packages import packages_app
from tests.helpers import task
from tests.sandboxes.wheels import PYTHON, Wheelhouse, python_of, root, wheelhouse
from workers.sandboxes.nsjail import cgroups
from workers.sandboxes.nsjail.provider import NsjailProvider
from workers.sandboxes.preparing.builder import prepare
from workers.sandboxes.protocol import Sandbox, SandboxUnsupported
from workers.sandboxes.spec import SandboxSpec
from workers.scenes.code import CodeScene

__all__ = ["root", "wheelhouse"]  # fixtures
REPOSITORY = Path(__file__).parents[2]

# -- in jails -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three packages, prepared by somebody with a narrow umask."""
    with tempfile.TemporaryDirectory(prefix="fleet-packages-") as folder:
        Path(folder).chmod(0o755)
        root = Path(folder) / "packages"
        with pytest.MonkeyPatch.context() as environment:
            prepare_three(root, Wheelhouse.only(tmp_path_factory.mktemp("wheels"), environment))
        yield root


def prepare_three(root: Path, wheelhouse: Wheelhouse) -> None:
    wheelhouse.add("alpha", requires=["beta"], scripts={"greet": "alpha:greet"}, files={
        "alpha/__init__.py": "import beta\ndef greet():\n    print('hello', beta.version)\n",
        "alpha/__main__.py": "print('as a module')\n",
    })  # fmt: skip
    wheelhouse.add("beta")
    wheelhouse.add("gamma")
    before = os.umask(0o077)
    try:
        prepare(root, wheelhouse.lock("alpha==1.0", "beta==1.0", "gamma==1.0"), PYTHON)
    finally:
        os.umask(before)


@pytest.fixture(params=["cgroup", "rlimit"])
def use_cgroups(request: pytest.FixtureRequest) -> bool:
    if request.param == "cgroup" and cgroups.find() is None:
        pytest.skip("this user may not make control groups here")
    return bool(request.param == "cgroup")


@pytest.fixture
async def jails(prepared: Path, records: Path, use_cgroups: bool) -> AsyncIterator[NsjailProvider]:
    provider = NsjailProvider(records=records, use_cgroups=use_cgroups, packages=prepared)
    yield provider
    await provider.close()
    assert list(records.iterdir()) == []


async def importable(sandbox: Sandbox, *names: str) -> list[str]:
    """Return which modules a Python program can import; both ways to run one agree."""
    code = (
        "import importlib, sys\nfor name in sys.stdin.read().split():\n"
        "    try: importlib.import_module(name); print(name)\n    except ImportError: pass\n"
    )
    stdin = " ".join(names).encode()
    forked = await sandbox.run_python(code, stdin=stdin)
    started = await sandbox.exec(["python3", "-c", code], stdin=stdin)
    assert forked.status == started.status == "ok", (forked, started)
    assert forked.stdout == started.stdout
    return forked.stdout.split()


async def test_programs_import_what_was_picked_and_what_that_needs(jails: NsjailProvider) -> None:
    for picked, found in (
        ((), []), (("beta",), ["beta"]), (("Alpha",), ["alpha", "beta"]),
        (("gamma", "beta"), ["beta", "gamma"]),
    ):  # fmt: skip
        async with await jails.start(SandboxSpec(packages=picked)) as sandbox:
            assert await importable(sandbox, "alpha", "beta", "gamma", "json") == [*found, "json"]


async def test_programs_of_packages_are_on_the_path(jails: NsjailProvider) -> None:
    async with await jails.start(SandboxSpec(packages=("alpha",))) as sandbox:
        assert (await sandbox.exec("greet")).stdout == "hello 1.0\n"
        assert (await sandbox.exec(["greet"])).stdout == "hello 1.0\n"
        assert (await sandbox.exec("python3 -m alpha")).stdout == "as a module\n"
        gone = await sandbox.exec("rm -rf /opt/packages/alpha/*; touch /opt/packages/beta/x; greet")
        assert gone.stdout == "hello 1.0\n"
        assert "Read-only file system" in gone.stderr
    async with await jails.start(SandboxSpec(packages=("beta",))) as sandbox:
        assert (await sandbox.exec("greet")).exit_code == 127


async def test_what_the_host_has_for_itself_is_not_there(jails: NsjailProvider) -> None:
    async with await jails.start(SandboxSpec()) as sandbox:
        listed = await sandbox.exec(
            "for d in /usr/lib/python3*/*-packages /usr/local/lib/python3*/*-packages; do"
            ' [ -d "$d" ] && ls -A "$d"; done; touch /usr/lib/python3/dist-packages/x 2>&1'
        )
        assert "Read-only" in listed.stdout or "No such file" in listed.stdout
        assert len(listed.stdout.splitlines()) == 1


async def test_an_unknown_package_is_the_tasks_fault_and_the_known_are_named(
    jails: NsjailProvider, records: Path
) -> None:
    with pytest.raises(SandboxUnsupported, match=r"'alfa' .* there is: alpha 1\.0, beta 1\.0"):
        await jails.start(SandboxSpec(packages=("alfa", "beta")))
    bare = NsjailProvider(records=records)
    with pytest.raises(SandboxUnsupported, match="fleet packages prepare"):
        await bare.start(SandboxSpec(packages=("alpha",)))


# -- tasks ----------------------------------------------------------------------------------------


async def scene_of(provider: NsjailProvider) -> CodeScene:
    scene = CodeScene(provider, load(), Metrics())
    await scene.open()
    return scene


@pytest.mark.parametrize("use_cgroups", [False])
async def test_a_task_and_its_trajectory_say_what_was_there(jails: NsjailProvider) -> None:
    scene = await scene_of(jails)
    asks = task(constraints={"python_packages": ["alpha", "ALPHA"]})
    assert scene.objections(asks) == []
    async with scene.environment(asks, labels={}) as world:
        assert await world.reset() == (
            "Python has its standard library and these packages: alpha (1.0)."
        )
        assert world.info.versions["alpha"] == world.info.versions["beta"] == "1.0"
        assert "gamma" not in world.info.versions
        assert world.info.versions["python"] == python_of(PYTHON)
    async with scene.environment(task(), labels={}) as world:
        assert await world.reset() == "Python has its standard library only."
        assert "alpha" not in world.info.versions


@pytest.mark.parametrize("use_cgroups", [False])
async def test_a_task_that_cannot_have_its_packages_is_invalid(
    jails: NsjailProvider, records: Path
) -> None:
    scene = await scene_of(jails)
    asks = task(constraints={"python_packages": ["numpi"]})
    [(field, reason)] = scene.objections(asks)
    assert field == "constraints.python_packages"
    assert "'numpi'" in reason
    assert "alpha 1.0, beta 1.0, gamma 1.0" in reason
    unprepared = await scene_of(NsjailProvider(records=records))
    [(_, reason)] = unprepared.objections(asks)
    assert "fleet packages prepare" in reason


# -- the command, and the real thing --------------------------------------------------------------


def test_the_command_prepares_and_lists(
    root: Path, wheelhouse: Wheelhouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_PACKAGES", str(root))
    wheelhouse.add("alpha")
    lock = str(wheelhouse.lock("alpha==1.0"))
    run = CliRunner().invoke
    missing = run(packages_app, ["list"])
    assert missing.exit_code == 1
    assert "fleet packages prepare" in " ".join(missing.stderr.split())
    first = run(packages_app, ["prepare", "--lock", lock])
    assert first.exit_code == 0, first.output
    assert "alpha 1.0 (0 of 1)" in first.stderr
    again = run(packages_app, ["prepare", "--lock", lock])
    assert "was prepared already" in again.stdout
    listed = json.loads(run(packages_app, ["list", "--json"]).stdout)
    assert listed["manifest"]["packages"]["alpha"]["version"] == "1.0"
    bad = run(packages_app, ["prepare", "--lock", "/no/such.lock"])
    assert bad.exit_code == 78
    assert "/no/such.lock" in bad.stderr


TEST_FILE = b"""
import numpy as np, pandas as pd

def test_passes(tmp_path):
    pd.DataFrame({"a": [1, 2]}).to_csv(tmp_path / "x.csv")
    assert pd.read_csv(tmp_path / "x.csv")["a"].sum() == np.int64(3)

def test_fails():
    assert [1, 2] == [1, 3]
"""


@pytest.fixture(scope="session")
def real() -> Iterator[Path]:
    """The packages that `fleet packages prepare` makes by itself."""
    with tempfile.TemporaryDirectory(prefix="fleet-packages-") as folder:
        Path(folder).chmod(0o755)
        prepare(Path(folder), REPOSITORY / "requirements" / "sandbox.lock", PYTHON)
        yield Path(folder)


@pytest.mark.slow
async def test_numpy_pandas_and_pytest_work_within_the_usual_limits(
    real: Path, records: Path, use_cgroups: bool
) -> None:
    provider = NsjailProvider(records=records, use_cgroups=use_cgroups, packages=real)
    spec = SandboxSpec(packages=("numpy", "pandas", "pytest"))
    async with await provider.start(spec) as sandbox:
        result = await sandbox.run_python(
            "import numpy as np, pandas as pd\n"
            "a = np.random.default_rng(1).random((600, 600))\n"
            "assert np.allclose(np.linalg.inv(a) @ a, np.eye(600))\n"
            "print(pd.DataFrame(a).describe().shape)\n"
        )
        assert (result.stdout, result.stderr, result.status) == ("(8, 600)\n", "", "ok")
        await sandbox.write_file("test_it.py", TEST_FILE)
        for command in ("pytest -q", "python3 -m pytest -q test_it.py"):
            result = await sandbox.exec(command)
            assert "1 failed, 1 passed" in result.stdout, result
            assert "At index 1 diff: 2 != 3" in result.stdout, "assertions are explained"
            assert "arning" not in result.stdout + result.stderr
    await provider.close()
