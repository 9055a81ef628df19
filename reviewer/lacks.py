"""What an attempt's sandbox lacked: packages, memory, room, processes, hosts; as red proposals.

Everything comes from what failed steps showed the agent itself, never from what checks found.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator

from packaging.utils import canonicalize_name
from pydantic import JsonValue

from common.review import Proposal
from common.task import SceneName
from common.trajectory import Step, Trajectory

LIMITS = {
    # field       what it is when absent, the most it may be: both as the code scene has them
    "memory_mb": (512, 8192),
    "disk_mb": (64, 4096),
    "pids": (64, 1024),
}
_SHOWN_BY = {
    "memory_mb": (
        "[stopped: it used more memory than allowed]", "ran out of memory and is gone",
        "MemoryError",
    ),
    "disk_mb": ("No space left on device",),
    "pids": ("; it tried to start too many processes]",),
}  # fmt: skip
"""Plain texts: looking for patterns in long observations takes ten times as long."""
_WORDS = {"memory_mb": "memory", "disk_mb": "room on its disk", "pids": "processes"}

DISTRIBUTIONS = {
    "PIL": "pillow", "Crypto": "pycryptodome", "OpenSSL": "pyopenssl", "attr": "attrs",
    "bs4": "beautifulsoup4", "cv2": "opencv-python-headless", "dateutil": "python-dateutil",
    "docx": "python-docx", "dotenv": "python-dotenv", "fitz": "pymupdf", "jose": "python-jose",
    "jwt": "pyjwt", "pptx": "python-pptx", "serial": "pyserial", "skimage": "scikit-image",
    "sklearn": "scikit-learn", "yaml": "pyyaml", "zmq": "pyzmq",
}  # fmt: skip
"""What programs import, where the package has another name."""
_MISSING = re.compile(
    r"^(?:ModuleNotFoundError|ImportError): No module named '?([A-Za-z_]\w{0,63})", re.M
)
_MOST_PACKAGES = 8

_UNREACHED = (
    "emporary failure in name resolution", "Name or service not known", "ould not resolve host",
    "Failed to resolve '", "etwork is unreachable", "getaddrinfo failed",
    "nable to resolve host",
)  # fmt: skip
"""As libraries and programs say it, with a capital or without."""
_HOST = re.compile(
    r"(?:https?://|resolve host:? |host='|resolve ')"
    r"([a-z0-9][a-z0-9-]{0,62}(?:\.[a-z0-9][a-z0-9-]{0,62})*\.[a-z]{2,63})\b",
    re.I,
)
_MOST_HOSTS = 8
_SEVERAL = 2


def lacking(trajectory: Trajectory) -> Iterator[Proposal]:
    """Yield what would have to change for the steps that failed to have what they lacked."""
    if trajectory.assignment.task.task_type is not SceneName.CODE:
        return  # other scenes have other constraints
    failed = [step for step in trajectory.steps if not step.success]
    constraints = trajectory.assignment.task.constraints
    yield from _packages(trajectory, failed)
    for name, (default, most) in LIMITS.items():
        steps = [step for step in failed if _shows(step, _SHOWN_BY[name])]
        now = constraints.get(name, default)
        if steps and type(now) is int and now < most:
            yield Proposal(
                field=f"task.constraints.{name}", before=constraints.get(name),
                after=min(2 * now, most), evidence=_ids(steps),
                reason=f"its programs had not enough {_WORDS[name]} ({now})",
            )  # fmt: skip
    yield from _network(trajectory, failed)


def _packages(trajectory: Trajectory, failed: list[Step]) -> Iterator[Proposal]:
    constraints = trajectory.assignment.task.constraints
    before = constraints.get("python_packages")
    # An image brings its own packages; none can be added to it.
    if constraints.get("image") is not None or not isinstance(before, list | None):
        return
    have = {canonicalize_name(str(name)) for name in before or ()}
    added, steps = list[str](), []
    for step in failed:
        if not _shows(step, ("No module named",)):
            continue
        for module in _MISSING.findall(step.observation.text):
            package = canonicalize_name(DISTRIBUTIONS.get(module, module))
            if module in sys.stdlib_module_names or package in have:
                continue
            if _is_its_own(module, trajectory):
                continue
            steps.append(step)
            if package not in added:
                added.append(package)
    if added:
        after: list[JsonValue] = [*(before or ()), *added[:_MOST_PACKAGES]]
        yield Proposal(
            field="task.constraints.python_packages", before=before, after=after,
            reason=f"its programs import what is not there: {', '.join(added[:_MOST_PACKAGES])}",
            evidence=_ids(steps),
        )  # fmt: skip


def _is_its_own(module: str, trajectory: Trajectory) -> bool:
    """Is it a file of the task, or one the agent wrote or spoke of, and so no package?"""
    files = trajectory.assignment.task.constraints.get("files")
    told = [trajectory.assignment.task.description, *(files if isinstance(files, dict) else ())]
    for step in trajectory.steps:
        told += [text for text in step.action.arguments.values() if isinstance(text, str)]
    mark = re.compile(rf"(?<!\w){module}(?:\.py|/)")
    return any(mark.search(text) for text in told)


def _network(trajectory: Trajectory, failed: list[Step]) -> Iterator[Proposal]:
    constraints = trajectory.assignment.task.constraints
    steps, hosts = [], list[str]()
    for step in failed:
        if not _shows(step, _UNREACHED):
            continue
        words = [text for text in step.action.arguments.values() if isinstance(text, str)]
        if any("pip install" in text for text in words):
            continue  # it wanted a package, not the network
        steps.append(step)
        for text in (*words, step.observation.text):
            hosts += [host.lower() for host in _HOST.findall(text)]
    wanted = list(dict.fromkeys(hosts))[:_MOST_HOSTS]
    if len(steps) < _SEVERAL or not wanted:
        return
    reason = f"its programs could not reach {', '.join(wanted)}"
    known = constraints.get("hosts")
    if constraints.get("network") == "allowlist":
        if isinstance(known, list) and (new := [host for host in wanted if host not in known]):
            yield Proposal(
                field="task.constraints.hosts", before=known, after=[*known, *new],
                reason=reason, evidence=_ids(steps),
            )  # fmt: skip
        return
    # One without the other would be no valid task, so both are one change.
    after: dict[str, JsonValue] = {**constraints, "network": "allowlist", "hosts": [*wanted]}
    yield Proposal(
        field="task.constraints", before=constraints, after=after, evidence=_ids(steps),
        reason=f"{reason}: its sandbox has no network, and it takes a back-end that can limit one "
        "to these hosts",
    )  # fmt: skip


def _shows(step: Step, texts: Iterable[str]) -> bool:
    return any(text in step.observation.text for text in texts)


def _ids(steps: list[Step]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(step.step_id for step in steps))
