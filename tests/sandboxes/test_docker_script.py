"""scripts/test-docker.sh takes away what it brought, and nothing that is another run's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import eventually

SCRIPT = Path(__file__).parents[2] / "scripts/test-docker.sh"
# No real daemon is started or asked: these stand in for all that the script would call as root.
COMMANDS = {
    "id": "echo 0",
    "ip": ":",
    "iptables": "echo '-N DOCKER'",  # somebody else's, so that the script leaves them alone
    "dockerd": """
        trap 'rm "$ROOM/alive"; echo "daemon ends" >>"$LOG"; exit' TERM
        mkdir -p "$ROOM"; echo $$ >"$ROOM/pid"; touch "$ROOM/alive"; echo "daemon $*" >>"$LOG"
        while :; do sleep 0.05; done""",
    "docker": """
        case "$*" in
          *"$ROOM/s version"*) [ -e "$ROOM/alive" ] ;;
          *version*) exit 1 ;;
          images*) if [ -e "$ROOM/broken" ]; then rm "$ROOM/broken"; exit 1; fi
                   cat "$ROOM/images" 2>/dev/null ;;
          rmi*) echo "$*" >>"$LOG" ;;
        esac""",
    ".venv/bin/pytest": """
        echo "begin $RUN" >>"$LOG"
        until [ -e "$HOLD" ]; do sleep 0.05; done
        echo fleet-test/new:latest >>"$ROOM/images"
        echo "end $RUN" >>"$LOG" """,
}


class Bed:
    """A copy of the script among commands that only write down what they were told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.room = folder / "room"
        self.log = folder / "log"
        self.hold = folder / "go"
        self.runs: list[subprocess.Popen[bytes]] = []
        self.log.touch()
        (folder / "scripts").mkdir()
        shutil.copy(SCRIPT, folder / "scripts")
        for name, does in COMMANDS.items():
            file = folder / (name if "/" in name else f"bin/{name}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"#!/bin/sh\n{does}\n")
            file.chmod(0o755)

    def run(self, name: str, **variables: str) -> subprocess.Popen[bytes]:
        environment = {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}", "RUN": name, "LOG": str(self.log),
            "ROOM": str(self.room), "HOLD": str(self.hold), "FLEET_TEST_DOCKERD": str(self.room),
            "TMPDIR": str(self.folder), **variables,
        }  # fmt: skip
        process = subprocess.Popen(
            [str(self.folder / "scripts/test-docker.sh")],
            env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.runs.append(process)
        return process

    def told(self) -> list[str]:
        return self.log.read_text().splitlines()

    def kept(self, *images: str) -> subprocess.Popen[bytes]:
        """Start what an earlier run kept: a daemon with these images."""
        self.room.mkdir()
        (self.room / "images").write_text("".join(f"{image}\n" for image in images))
        process = subprocess.Popen(
            [str(self.folder / "bin/dockerd")],
            env={"PATH": os.environ["PATH"], "ROOM": str(self.room), "LOG": str(self.log)},
        )
        self.runs.append(process)
        return process


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    if "cgroup" not in Path("/proc/mounts").read_text("ascii"):
        pytest.skip("the script starts no daemon without control groups")
    bed = Bed(tmp_path)
    yield bed
    bed.hold.touch()
    for process in bed.runs:
        process.terminate()
        process.wait(20)


def waits_for_its_turn(process: subprocess.Popen[bytes]) -> bool:
    below = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
    names = (Path(f"/proc/{pid}/comm") for pid in below)
    return any(name.exists() and name.read_text("ascii") == "flock\n" for name in names)


async def test_a_run_waits_for_another_runs_own_daemon_to_go(bed: Bed) -> None:
    first = bed.run("one")
    await eventually(lambda: "begin one" in bed.told(), "the first run tests", within=20)
    second = bed.run("two")
    await eventually(
        lambda: waits_for_its_turn(second) or "begin two" in bed.told(), "the second is there",
        within=20,
    )  # fmt: skip
    bed.hold.touch()
    assert [process.wait(30) for process in (first, second)] == [0, 0]
    told = [line.partition(" -")[0] for line in bed.told()]
    half = ["daemon", "begin one", "end one", "daemon ends"]
    assert told == [*half, *(line.replace("one", "two") for line in half)]
    assert not bed.room.exists()


async def test_each_daemon_has_control_groups_of_its_own(bed: Bed) -> None:
    bed.hold.touch()
    first, second = bed.run("one"), bed.run("two")
    assert [process.wait(30) for process in (first, second)] == [0, 0]
    parents = [line.split("--cgroup-parent ")[1] for line in bed.told() if "--cgroup" in line]
    assert sorted(parents) == sorted(f"/fleet-dockerd-{run.pid}" for run in (first, second))


async def test_only_images_made_meanwhile_are_forgotten(bed: Bed) -> None:
    bed.hold.touch()
    bed.kept("fleet-test/base:bookworm", "fleet-test/old:latest")
    await eventually((bed.room / "alive").exists, "the kept daemon answers", within=10)
    assert bed.run("one").wait(30) == 0
    assert [line for line in bed.told() if "rmi" in line] == ["rmi --force fleet-test/new:latest"]
    assert (bed.room / "alive").exists(), "it is kept"


async def test_where_the_images_of_before_are_not_known_none_is_forgotten(bed: Bed) -> None:
    bed.hold.touch()
    bed.kept("fleet-test/base:bookworm")
    (bed.room / "broken").touch()
    await eventually((bed.room / "alive").exists, "the kept daemon answers", within=10)
    assert bed.run("one", DOCKER_HOST=f"unix://{bed.room}/s").wait(30) != 0
    assert [line for line in bed.told() if "rmi" in line or "begin" in line] == []
