"""What a line of tasks.jsonl says: the task, how success is checked, and how it may be solved."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Annotated, Any, Literal

import orjson
from pydantic import ConfigDict, Field, JsonValue, field_validator, model_validator

from common.model import Contract


class SceneName(StrEnum):
    CODE = "code"
    WEB = "web"
    GUI = "gui"
    MOBILE = "mobile"
    DESKTOP = "desktop"
    REASONING = "reasoning"
    DEEP_SEARCH = "deep_search"
    MULTI_AGENT = "multi_agent"
    TOOLACE = "toolace"
    TOUCAN = "toucan"
    SEARCH2QA = "search2qa"
    ENVSCALER = "envscaler"


SCENE_ALIASES = {"code_exec": "code", "mobile_agent": "mobile", "mcp_tool": "toucan"}

EXPECTED_TOOLS: dict[str, tuple[str, ...]] = {
    # what users write          our tools it stands for
    "python_executor": ("run_python",),
    "python": ("run_python",),
    "code_executor": ("run_python", "run_shell"),
    "shell": ("run_shell",),
    "bash": ("run_shell",),
    "file_reader": ("read_file",),
    "file_writer": ("write_file",),
    "file_editor": ("read_file", "write_file"),
    "browser": ("browser",),
    "web_navigator": ("browser",),
    "web_search": ("web_search",),
    "calculator": ("run_python",),
    "run_python": ("run_python",),
    "run_shell": ("run_shell",),
    "read_file": ("read_file",),
    "write_file": ("write_file",),
}
"""The users' tool names, mapped to ours. Our own names stand for themselves."""

MAX_STEPS = 500
"""Of one episode, whatever a task or a review asks for."""
_TASK_ID = re.compile(r"(?!\.)[\w.:\-]{1,128}")
_MAX_ID_BYTES = 200  # it becomes a folder name, and file systems count bytes: at most 255


class _CheckBase(Contract):
    id: str | None = Field(default=None, min_length=1, max_length=64)
    """Name in the verdict; the type and position when absent."""


class StdoutCheck(_CheckBase):
    """Compare what a program prints with what it should print."""

    type: Literal["stdout"]
    expected: str
    match: Literal["exact", "lines", "contains", "regex"] = "exact"
    """`exact` ignores white space at the end; `lines` ignores it at the end of every line;
    `regex` searches, with `^` and `$` at every line."""
    run: str | None = None
    """Shell command to run in the sandbox afterwards; it must end with exit code 0. Absent: the
    agent's own last successful run counts."""
    stdin: str = ""
    timeout: float = Field(default=30.0, gt=0, le=600)
    """Seconds."""


class CommandCheck(_CheckBase):
    """Run a command the agent never saw; hidden files are put in after the agent has finished."""

    type: Literal["command"]
    run: str = Field(min_length=1)
    files: dict[str, str] = Field(default_factory=dict)
    """Hidden files, path in the work folder to content; put in only for this check."""
    exit_code: int = Field(default=0, ge=-255, le=255)
    stdout: str | None = None
    """Regular expression its output must contain: guards against programs that exit early."""
    stdin: str = ""
    timeout: float = Field(default=60.0, gt=0, le=600)
    """Seconds."""


class FileCheck(_CheckBase):
    """Look at one file the agent should have left in its work folder."""

    type: Literal["file"]
    path: str = Field(min_length=1)
    expected: str | None = None
    match: Literal["exact", "lines", "contains", "regex", "json"] = "exact"
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    exists: bool = True


class AnswerCheck(_CheckBase):
    """Compare the answer the agent gave to `finish` with the right one."""

    type: Literal["answer"]
    expected: str | float | list[str]
    """Whole numbers beyond 2^53 as text: JSON readers round them."""
    match: Literal["exact", "numeric", "regex", "set", "contains"] = "exact"
    tolerance: float = Field(default=1e-6, ge=0)
    """For `numeric`: relative or absolute, whichever allows more."""
    aliases: list[str] = Field(default_factory=list)
    ignore_case: bool = True


Check = Annotated[StdoutCheck | CommandCheck | FileCheck | AnswerCheck, Field(discriminator="type")]


class ReferenceAction(Contract):
    """One tool call of a known-good solution."""

    tool: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)


class Reference(Contract):
    """A known-good solution: what the oracle plays, and what `fleet validate` proves."""

    actions: tuple[ReferenceAction, ...] = ()
    answer: str = ""
    """What the oracle gives to `finish`."""


class Sampling(Contract):
    """How the model is asked. What is absent is left to the provider."""

    model: str | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(default=None, ge=1, le=10_000_000)


class Task(Contract):
    """One line of tasks.jsonl."""

    task_id: str
    """1-128 letters, digits and `._:-`; it names the task's folder. Made from a hash if absent."""
    task_type: SceneName
    """The scene; `code_exec`, `mobile_agent` and `mcp_tool` are accepted as aliases."""
    description: str = Field(min_length=1)
    """What the agent is asked to do."""
    expected_tools: tuple[str, ...] = ()
    """Tools to show first, by the users' names or ours."""
    constraints: dict[str, JsonValue] = Field(default_factory=dict)
    """Limits and wishes of the scene, validated by the scene."""
    max_steps: int = Field(default=10, ge=1, le=MAX_STEPS)
    timeout: float = Field(default=300.0, gt=0, le=86_400)
    """Seconds for the whole episode."""
    priority: int = Field(default=5, ge=1, le=10)
    """10 goes first."""
    checks: tuple[Check, ...] = ()
    """How success is decided. None: the attempt runs, unverified."""
    reference: Reference | None = None
    agent: Literal["llm", "oracle", "nop"] = "llm"
    sampling: Sampling = Sampling()
    samples: int = Field(default=1, ge=1, le=64)
    """Independent attempts at the same task."""
    threshold: int = Field(default=80, ge=0, le=100)
    """Review score from which an attempt is accepted, if its checks passed."""
    max_iterations: int = Field(default=3, ge=1, le=10)
    """Revisions in all, the first one included."""
    resumable: bool = True
    """False: the environment can't be run again; a killed episode starts from nothing. Otherwise
    the model's answers it has paid for are replayed, and only the actions are executed again."""
    metadata: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kind = data.get("task_type")
        alias = SCENE_ALIASES.get(kind) if isinstance(kind, str) else None
        if alias is not None:
            data = {**data, "task_type": alias}
        if data.get("task_id") is None:
            data = {**data, "task_id": "task-" + digest(data)[:16]}
        return data

    @field_validator("task_id")
    @classmethod
    def _safe_id(cls, value: str) -> str:
        if not _TASK_ID.fullmatch(value):
            raise ValueError(
                "must be 1-128 letters, digits, '_', '.', ':' or '-', and not start with a dot"
            )
        if not value.isascii() and len(value.encode()) > _MAX_ID_BYTES:
            raise ValueError(f"must be at most {_MAX_ID_BYTES} bytes: it names a folder")
        return value

    @field_validator("expected_tools")
    @classmethod
    def _known_tools(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in EXPECTED_TOOLS:
                raise ValueError(f"unknown tool {name!r}; known: {', '.join(EXPECTED_TOOLS)}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        if self.agent == "oracle" and self.reference is None:
            raise ValueError("agent 'oracle' plays the reference, but the task has none")
        if "\0" in self.description:
            raise ValueError("description holds a NUL character")
        return self

    @property
    def scene(self) -> str:
        return self.task_type.value

    @property
    def lane(self) -> Literal["hi", "mid", "lo"]:
        """The stream its priority leads to: 8-10 hi, 4-7 mid, 1-3 lo."""
        return "hi" if self.priority >= 8 else "mid" if self.priority >= 4 else "lo"

    @property
    def sha256(self) -> str:
        return digest(self.model_dump(mode="json"))

    def tools_to_show(self) -> tuple[str, ...]:
        """Our names of `expected_tools`, in the users' order, without repeats."""
        return tuple(dict.fromkeys(t for name in self.expected_tools for t in EXPECTED_TOOLS[name]))


class Change(Contract):
    """One change that made a revision out of the one before it."""

    field: str
    before: JsonValue = Field(default=None, alias="from")
    after: JsonValue = Field(default=None, alias="to")
    reason: str
    level: Literal["green", "yellow", "red"]
    """Who had to agree: nobody, a person who chose, a person who approved."""
    by: tuple[str, ...] = ()
    """The people who decided; none for green."""
    approval: str | None = None
    """Id of the approval that let it through."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)


class RevisionScore(Contract):
    """What came of an earlier revision: enough to see whether iterating gains anything."""

    revision: int
    attempt_id: str
    score: int | None
    passed: bool | None
    reward: float | None = None
    """What the checks gave."""
    rubric: float | None = None
    """0-1, of the rubric alone."""

    @property
    def merit(self) -> tuple[bool, float, float]:
        """What one revision is compared with another by: the verifier first, then the rubric."""
        return (self.passed is True, self.reward or 0.0, self.rubric or 0.0)


class Assignment(Contract):
    """What a stream entry carries: the task as it is to be run, and where it came from."""

    task: Task
    revision: int = Field(default=1, ge=1)
    sample: int = Field(default=0, ge=0)
    hints: tuple[str, ...] = ()
    """Sentences a review added to the system prompt."""
    changes: tuple[Change, ...] = ()
    """What this revision changed against the one before."""
    history: tuple[RevisionScore, ...] = ()
    original_max_steps: int | None = None
    """`max_steps` of the first revision, where a review raised it."""
    refused: tuple[str, ...] = ()
    """What people did not want in an earlier revision: `common.approvals.refusal_key` of each."""

    @property
    def unit(self) -> str:
        """Names one piece of work of a task, e.g. `r2-s0`: exactly one attempt of it commits."""
        return f"r{self.revision}-s{self.sample}"

    def encode(self) -> bytes:
        return orjson.dumps(self.model_dump(mode="json", exclude_defaults=True))


def digest(value: Any) -> str:
    """Return the sha256 (hex) of ``value`` as canonical JSON."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
