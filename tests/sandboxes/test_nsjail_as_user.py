"""Any user can have sandboxes, not only root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534

SCRIPT = """
import asyncio, os, sys, tempfile
from pathlib import Path
from workers.sandboxes.nsjail.provider import NsjailProvider
from workers.sandboxes.spec import Limits, SandboxSpec

async def main():
    assert os.getuid() == 65534
    with tempfile.TemporaryDirectory() as folder:
        provider = NsjailProvider(records=Path(folder))
        report = await provider.probe()
        assert report.enforced["user"] == "namespace: 65534 outside", report
        assert report.enforced["memory"].startswith("rlimit"), report
        spec = SandboxSpec(limits=Limits(memory_mb=64, pids=16))
        async with await provider.start(spec) as sandbox:
            assert (await sandbox.exec("id -u")).stdout == "1000\\n"
            bomb = await sandbox.run_python(
                "import os, time\\n"
                "while True:\\n"
                "    if os.fork() == 0: time.sleep(60)"
            )
            assert bomb.status == "error", bomb
            hog = await sandbox.run_python(
                "import time\\n"
                "keep = []\\n"
                "while True: keep.append(b'x' * (1 << 20)); time.sleep(0.002)"
            )
            assert hog.status == "oom", hog
            assert (await sandbox.exec("sleep 9", timeout=0.2)).status == "timeout"
            await sandbox.write_file("x", b"y")
            assert await sandbox.read_file("x") == b"y"
        assert os.listdir(folder) == []
    print("all well")

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as a normal user already")
def test_a_normal_user_gets_the_same_isolation() -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = shutil.which(f"python{version}", path="/usr/bin:/usr/local/bin")
    if python is None:
        pytest.skip(f"no Python {version} here that another user may run")
    packages = Path(pydantic.__file__).parents[1]
    done = subprocess.run(
        [python, "-S", "-c", SCRIPT],
        user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", capture_output=True, text=True,
        env={"HOME": "/tmp", "PYTHONPATH": f"{REPOSITORY}:{packages}", "PATH": os.defpath,
             "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "all well\n", done.stderr
