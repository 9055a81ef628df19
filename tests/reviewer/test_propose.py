"""What the rules suggest, by what the steps of an attempt showed; never by what checks expect."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.review import Proposal
from common.task import Assignment
from common.trajectory import CheckResult, Observation, Step, StopReason, Trajectory, Verdict
from reviewer.hints import HINTS
from reviewer.lacks import LIMITS
from reviewer.policy import Policy
from reviewer.propose import propose
from tests.reviewer.endings import PASSED, STEPS, STOPS, ended, judged, often, step
from workers.sandboxes.protocol import ExecResult, Status
from workers.scenes.code import _describe
from workers.scenes.code_constraints import CodeConstraints

POLICY = Policy.load(models=["small", "big"])
HINT, WARMTH = "hints", "task.sampling.temperature"


def failed(number: int, text: str, tool: str = "run_python", **arguments: Any) -> Step:
    one = step(number, tool, success=False)
    action = one.action.model_copy(update={"arguments": arguments or {"code": "main()"}})
    return one.model_copy(update={"action": action, "observation": Observation(text=text)})


def showed(*texts: str, **fields: Any) -> Trajectory:
    """An attempt whose failed steps showed these texts; ``fields`` of its task."""
    steps = tuple(failed(n, text) for n, text in enumerate(texts, 1))
    return ended(steps=steps, assignment=Assignment(task=judged(**fields)))


def of_people(trajectory: Trajectory) -> list[Proposal]:
    """The proposals people would be asked about; every other one is green and fits."""
    asked = []
    for proposal in propose(trajectory):
        ruling = POLICY.ruling(proposal, trajectory.assignment)
        assert ruling.refused is None
        assert set(proposal.evidence) <= {s.step_id for s in trajectory.steps}
        assert proposal.reason
        if ruling.level != "green":
            asked.append(proposal.model_copy(update={"level": ruling.level}))
    return asked


def only(trajectory: Trajectory) -> Proposal:
    [proposal] = of_people(trajectory)
    return proposal


# -- nobody is asked ------------------------------------------------------------------------------


def test_a_failed_attempt_is_given_advice_and_a_warmer_sample() -> None:
    advice, warmer = propose(ended(steps=(step(1, success=False),)))
    assert (advice.field, warmer.field) == (HINT, WARMTH)
    assert isinstance(advice.after, list) and set(advice.after) <= set(HINTS.values())
    assert (warmer.before, warmer.after) == (None, 0.7)
    assert advice.evidence == warmer.evidence == (1,)


def test_a_seed_is_moved_on_or_the_retry_would_be_the_same() -> None:
    for seed, then in ((0, 1), (7, 8), (2**63 - 1, 0)):
        attempt = ended(assignment=Assignment(task=judged(sampling={"seed": seed})))
        [moved] = [p for p in propose(attempt) if p.field == "task.sampling.seed"]
        assert (moved.before, moved.after) == (seed, then)
        assert POLICY.ruling(moved, attempt.assignment).level == "green"


def test_what_passed_is_never_taken_to_people() -> None:
    lacked = ended(
        PASSED, steps=(failed(1, "ModuleNotFoundError: No module named 'numpy'"), step(2)),
        stop_reason=StopReason.TIMEOUT,
    )  # fmt: skip
    assert of_people(lacked) == []


def test_advice_is_given_besides_what_people_wrote_and_instead_of_older_advice() -> None:
    own = ("Use the calendar of 1582.", "Mind the leap years.")
    told = Assignment(task=judged(), revision=2, hints=(own[0], HINTS["timeout"], own[1]))
    advice, *_ = propose(ended(steps=(step(1, success=False),), assignment=told))
    assert advice.after == [*own, HINTS["error"], HINTS["stdout"]]
    assert POLICY.ruling(advice, told).level == "green"
    same = told.model_copy(update={"hints": tuple(advice.after)})
    again = propose(ended(steps=(step(1, success=False),), assignment=same))
    assert HINT not in [p.field for p in again]


def test_a_failure_alone_is_no_reason_to_take_another_model() -> None:
    assert of_people(ended(steps=(step(1, success=False),))) == []


# -- a person chooses -----------------------------------------------------------------------------


def call(tool: str) -> dict[str, Any]:
    function = {"name": tool, "arguments": "{}"}
    return {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}


def test_who_asks_for_tools_that_are_hidden_may_be_shown_them() -> None:
    narrow = judged(constraints={"only_expected_tools": True}, expected_tools=["python"])
    as_text = {"role": "assistant", "content": '{"tool": "read_file", "arguments": {}}'}
    broken = {"role": "assistant", "content": "{not json", "tool_calls": [None, {"function": 1}]}
    quoted = {"role": "user", "content": '{"tool": "run_shell"}'}

    def attempt(*messages: dict[str, Any]) -> Trajectory:
        return ended(assignment=Assignment(task=narrow), messages=messages)

    offer = only(attempt(call("run_shell"), as_text, broken))
    assert (offer.field, offer.level) == ("task.constraints.only_expected_tools", "yellow")
    assert (offer.before, offer.after) == (True, False)
    assert "run_shell, read_file" in offer.reason
    assert of_people(attempt(call("run_shell"), quoted, broken)) == [], "once is a slip"
    assert of_people(attempt(*map(call, ["hammer", "hammer", "run_python", "run_python"]))) == []


# -- people approve -------------------------------------------------------------------------------

MISSING = "Traceback (most recent call last):\nModuleNotFoundError: No module named '{}'"


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("numpy", "numpy"), ("sklearn.linear_model", "scikit-learn"), ("PIL", "pillow"),
        ("cv2", "opencv-python-headless"), ("yaml", "pyyaml"), ("bs4", "beautifulsoup4"),
        ("zope_interface", "zope-interface"),
    ],
)  # fmt: skip
def test_a_package_that_is_not_there_is_asked_for_by_its_own_name(
    module: str, package: str
) -> None:
    lacked = only(showed("1", MISSING.format(module), MISSING.format(module)))
    assert (lacked.field, lacked.level) == ("task.constraints.python_packages", "red")
    assert (lacked.before, lacked.after) == (None, [package])
    assert lacked.evidence == (2, 3)


def test_packages_are_added_to_those_it_has() -> None:
    texts = [MISSING.format(name) for name in ("numpy", "Pandas", "tkinter", "pandas")]
    lacked = only(showed(*texts, constraints={"python_packages": ["NumPy"]}))
    assert (lacked.before, lacked.after) == (["NumPy"], ["NumPy", "pandas"])


def test_a_module_of_the_tasks_or_the_agents_own_is_no_package() -> None:
    given = {"files": {"shapes/__init__.py": "", "tools.py": ""}}
    texts = [MISSING.format(name) for name in ("shapes", "tools", "spoken", "helper", "lib")]
    spoken = "Write spoken.py."
    attempt = showed(*texts, constraints=given, description=spoken)
    written = failed(8, "no", "write_file", path="helper.py", content="")
    by_shell = failed(9, "no", "run_shell", command="mkdir -p src && cat > src/lib.py")
    steps = (*attempt.steps, written, by_shell)
    assert of_people(attempt.model_copy(update={"steps": steps})) == []
    other = failed(8, "no", "write_file", path="myhelper.py", content="")
    lacked = only(attempt.model_copy(update={"steps": (*attempt.steps, other)}))
    assert lacked.after == ["helper", "lib"]


def test_an_image_brings_its_own_packages() -> None:
    assert of_people(showed(MISSING.format("numpy"), constraints={"image": "python:3.12"})) == []


def ran(status: Status, stderr: str = "") -> str:
    """What the code scene shows of a program that ended like this."""
    return _describe(
        ExecResult(status=status, exit_code=1, stdout="", stderr=stderr, duration=1.0), 30.0
    )


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        ("memory_mb", ran("oom")),
        ("memory_mb", ran("error", "Traceback:\nMemoryError")),
        ("memory_mb", ran("error", "numpy._core._exceptions._ArrayMemoryError: Unable")),
        ("memory_mb", "error: sandbox s ran out of memory and is gone: x"),
        ("disk_mb", ran("error", "OSError: [Errno 28] No space left on device")),
        ("disk_mb", "error: cannot write big: No space left on device"),
        ("pids", ran("pids_limit")),
    ],
)
def test_a_limit_it_ran_into_may_be_doubled_up_to_the_most_there_is(limit: str, text: str) -> None:
    default, most = LIMITS[limit]
    field = CodeConstraints.model_fields[limit]
    assert field.default == default
    assert {"le": most} in [{"le": getattr(bound, "le", None)} for bound in field.metadata]
    for has, then in ((None, 2 * default), (most // 2 + 1, most)):
        constraints = {} if has is None else {limit: has}
        lacked = only(showed("fine", text, constraints=constraints))
        assert (lacked.field, lacked.level) == (f"task.constraints.{limit}", "red")
        assert (lacked.before, lacked.after, lacked.evidence) == (has, then, (2,))
    assert of_people(showed(text, constraints={limit: most})) == []


def test_who_ran_out_of_time_may_be_given_twice_as_much() -> None:
    def late(timeout: float) -> Trajectory:
        task_ = judged(timeout=timeout)
        return ended(assignment=Assignment(task=task_), stop_reason=StopReason.TIMEOUT)

    more = only(late(300))
    assert (more.field, more.level) == ("task.timeout", "red")
    assert (more.before, more.after, more.evidence) == (300.0, 600.0, (1,))
    assert only(late(80_000)).after == 86_400.0
    assert of_people(late(86_400)) == []


UNKNOWN = "urllib.error.URLError: <urlopen error [Errno -3] Temporary failure in name resolution>"
FETCH = "urllib.request.urlopen('https://Data.example.org/a.csv?x=https://b.example.org')"


def fetching(*steps: Step, **constraints: Any) -> Trajectory:
    return ended(steps=steps, assignment=Assignment(task=judged(constraints=constraints)))


def test_hosts_it_tried_to_reach_again_and_again_are_shown_to_people() -> None:
    steps = (failed(1, UNKNOWN, code=FETCH), failed(2, UNKNOWN, code=FETCH))
    lacked = only(fetching(*steps, memory_mb=256))
    assert (lacked.field, lacked.level) == ("task.constraints", "red")
    assert lacked.before == {"memory_mb": 256}
    hosts = ["data.example.org", "b.example.org"]
    assert lacked.after == {"memory_mb": 256, "network": "allowlist", "hosts": hosts}
    assert CodeConstraints.model_validate(lacked.after)
    assert lacked.evidence == (1, 2)
    some = only(fetching(*steps, network="allowlist", hosts=["b.example.org"]))
    assert (some.field, some.level) == ("task.constraints.hosts", "red")
    assert some.after == ["b.example.org", "data.example.org"]


def test_one_try_no_host_or_a_package_is_no_case_for_a_network() -> None:
    assert of_people(fetching(failed(1, UNKNOWN, code=FETCH))) == []
    nameless = [failed(n, UNKNOWN, code="connect(host)") for n in (1, 2)]
    assert of_people(fetching(*nameless)) == []
    pip = [failed(n, UNKNOWN, command="pip install x -i https://a.example.org") for n in (1, 2)]
    assert of_people(fetching(*pip)) == []


def test_other_scenes_have_other_constraints() -> None:
    assert of_people(showed(ran("oom"), MISSING.format("numpy"), task_type="web")) == []


# -- what checks expect ---------------------------------------------------------------------------

SECRET = st.text("0123456789abcdef", min_size=8, max_size=12).map("expected-".__add__)


@often
@given(SECRET, STEPS, STOPS, st.sampled_from(["stdout", "command", "file", "answer"]))
def test_nothing_a_check_expects_is_in_any_proposal(
    secret: str, steps: tuple[Step, ...], stop: StopReason, kind: str
) -> None:
    checks = {
        "stdout": {"type": "stdout", "expected": secret},
        "command": {"type": "command", "run": secret, "files": {secret: secret}, "stdout": secret},
        "file": {"type": "file", "path": "x", "expected": secret},
        "answer": {"type": "answer", "expected": secret, "aliases": [secret]},
    }
    found = CheckResult(id="c", passed=False, detail=f"ModuleNotFoundError: {secret}, {UNKNOWN}")
    attempt = ended(
        Verdict(passed=False, reward=0.0, checks=(found,)), steps=steps, stop_reason=stop,
        assignment=Assignment(task=judged(checks=[checks[kind]], reference={"answer": secret})),
    )  # fmt: skip
    proposals = propose(attempt)
    assert proposals
    assert secret not in "".join(p.model_dump_json() for p in proposals)
    assert propose(attempt) == proposals
