"""Everything an operator can set, read once from the environment (`FLEET_*`) and `.env`."""

from __future__ import annotations

import json
import os
import socket
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from common.failures import ConfigurationError
from common.model import explain

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """Settings of one process. Passed down; no other module reads the environment."""

    model_config = SettingsConfigDict(
        env_prefix="FLEET_", env_file=".env", extra="ignore", frozen=True,
        use_attribute_docstrings=True,
    )  # fmt: skip

    # Where things are
    redis_url: str | None = None
    """Valkey or Redis >= 7: `redis://:password@host:6379/0`, or the master behind Sentinels:
    `redis+sentinel://:password@host:26379,host2:26379/service/0?sentinel_password=…` (`rediss` with
    TLS). Absent: `fleet up` starts an embedded Valkey."""
    output: Path = Path("output")
    """The store: trajectories, blobs, reviews, rejected lines."""
    cache: Path = Field(
        default_factory=lambda: (
            Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trajectory-fleet"
        )
    )
    """Model weights, fetched once."""
    packages: Path = Field(default_factory=lambda: _data_folder() / "packages")
    """Python packages that tasks may ask for, made by `fleet packages prepare`. Started by root,
    each jail is a user of its own, so every user must be able to get there."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """/metrics, /healthz, /readyz. 0: a free port, printed in the log."""
    metrics_host: str = "127.0.0.1"
    log_level: str = "INFO"

    # The queue
    lease: float = Field(default=30.0, gt=0)
    """Seconds after which a silent owner loses its work. Renewed every third of it."""
    max_deliveries: int = Field(default=3, ge=1)
    """Consumers that may die on an entry before it is dead-lettered as poison."""
    max_retries: int = Field(default=5, ge=0)
    """Retries of an attempt that infrastructure broke."""
    max_waits: int = Field(default=100, ge=0)
    """Retries of an attempt that a provider's rate limit held up for FLEET_LLM_RATE_LIMIT_BUDGET.
    Each waited minutes already: about a day. They use up no other retries."""
    retry_delay: float = Field(default=2.0, gt=0)
    """Seconds before the first retry; doubles each time, with jitter, up to 5 minutes."""
    max_backlog: int = Field(default=100_000, ge=1)
    """Waiting entries per scene before the dispatcher holds back."""
    ledger_ttl: float = Field(default=7 * 86_400.0, gt=0)
    """Seconds a finished task's id is remembered."""
    drain_grace: float = Field(default=30.0, ge=0)
    """Seconds running episodes get to end after SIGTERM before they are handed back."""
    max_line_bytes: int = Field(default=1 << 20, ge=1024)
    """The longest line of tasks.jsonl that is read."""

    agent: Literal["llm", "oracle", "nop"] = "llm"
    """Who acts on tasks whose line does not say."""

    # Workers
    concurrency: int = Field(default=8, ge=1, le=1000)
    sandbox: str = "nsjail"
    """nsjail, docker or opensandbox."""
    sandbox_pool: int = Field(default=2, ge=0, le=100)
    """Sandboxes kept ready for each scene of a worker. 0: each is started when it is needed."""
    step_timeout: float = Field(default=30.0, gt=0)
    """Seconds for one tool call."""
    allow_unsafe: bool = False
    """Work although a sandbox does not hold what it promises; each trajectory then says so."""
    docker_image: str | None = None
    """Of the docker back-end, for tasks that name none. It needs Python 3.9 or newer."""
    docker_pull: Literal["never", "missing"] = "never"
    """Whether images that are not on the host are fetched."""
    opensandbox_domain: str | None = None
    """Host and port of the OpenSandbox server (0.1.9 or newer)."""
    opensandbox_protocol: Literal["http", "https"] = "http"
    opensandbox_api_key: SecretStr | None = None
    opensandbox_image: str = "python:3.13-slim-trixie"
    """For tasks that name none. It needs Python 3.9 or newer."""
    opensandbox_proxy: bool = False
    """Reach sandboxes through the server, where they cannot be reached directly."""
    opensandbox_network: Literal["policy", "closed"] = "policy"
    """How programs are kept off the network: by the server's egress sidecar, or because the network
    it puts sandboxes into has no way out."""
    opensandbox_create_timeout: float = Field(default=120.0, gt=0)
    """Seconds for one sandbox to be there and answer; a first start also pulls its image."""
    opensandbox_cpus: float = Field(default=1.0, gt=0)
    """Processors one sandbox may use at once."""

    # Models, in the order in which they are chosen when several are set
    gemini_api_key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("FLEET_GEMINI_API_KEY", "GEMINI_API_KEY")
    )
    deepseek_api_key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("FLEET_DEEPSEEK_API_KEY", "DEEPSEEK_API_KEY")
    )
    openai_api_key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("FLEET_OPENAI_API_KEY", "OPENAI_API_KEY")
    )
    dashscope_api_key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("FLEET_DASHSCOPE_API_KEY", "DASHSCOPE_API_KEY")
    )
    llm_base_url: str | None = None
    """Any OpenAI-compatible URL (vLLM, Ollama, SGLang): `http://host:8000/v1`."""
    llm_api_key: SecretStr | None = None
    llm_provider: str | None = None
    """Forces one: gemini, deepseek, openai, dashscope, custom, embedded."""
    llm_model: str | None = None
    """Instead of the provider's default model."""
    llm_deadline: float = Field(default=120.0, gt=0)
    """Seconds for one model call, its retries included."""
    llm_rate_limit_budget: float = Field(default=600.0, ge=0)
    """Seconds one call may wait for 429s before the task goes back to the queue."""
    llm_concurrency: int = Field(default=64, ge=1)
    """Calls in flight per process."""
    llm_price: tuple[Price, Price] | None = None
    """What the model of a custom URL costs: US dollars per million prompt and completion tokens, as
    `[0.4, 1.6]`; `[0, 0]` for one of your own. A budget in dollars needs it."""
    llm_rpm: int = Field(default=0, ge=0)
    """Requests a minute to one provider key, of the whole fleet. 0: no limit known."""
    llm_tpm: int = Field(default=0, ge=0)
    """Tokens a minute to one provider key, prompts and answers, of the whole fleet. 0: none."""
    budget_usd: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """US dollars the run may spend on models; `fleet up` sets it, `fleet budget` changes it."""
    budget_tokens: int | None = Field(default=None, ge=0)
    """Tokens the run may use."""
    # The reviewer
    judges: str = "off"
    """Models that grade what checks let through: `off`, `auto` (every provider with a key;
    who did not act goes first), or names with commas between: `deepseek,openai:gpt-5-mini`."""
    judge_votes: int = Field(default=3, ge=1, le=15)
    """Answers to each question, of which the median counts."""
    judge_floor: float = Field(default=0.6, ge=0, le=1)
    """Cohen's kappa between judge and verifier below which no judge accepts anything alone."""
    proposer: str = "off"
    """A model that suggests changes to tasks that fail: `off`, `auto`, or a name as in `judges`."""
    rubrics: Path | None = None
    """A folder of rubrics (`<scene>.yaml`) that go before those that come with the fleet."""
    ask_people: Literal["early", "late", "never"] = "late"
    """When a failed task waits for a person: at its first proposal that needs one; once what the
    reviewer may change alone did not help; never (such proposals are only written down)."""
    approval_ttl: float = Field(default=3 * 86_400.0, gt=0, le=366 * 86_400.0)
    """Seconds a proposal waits for people; then the task goes on without it."""
    approval_people: int = Field(default=1, ge=1, le=5)
    """Different people who must approve a red change."""
    api_tokens: Annotated[dict[str, SecretStr], NoDecode] = Field(default_factory=dict)
    """Who may decide over HTTP, as JSON of names and tokens: `{"ana": "..."}`."""

    model_file: Path | None = None
    """A GGUF file for the embedded model, instead of the pinned one."""
    embedded_url: str | None = None
    """Where an embedded model already listens (set by `fleet up` for its workers)."""
    embedded_key: SecretStr | None = None

    @field_validator("judges", "proposer", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return "off" if value == "" else value

    @field_validator("rubrics", mode="before")
    @classmethod
    def _none(cls, value: object) -> object:
        """An empty folder would be the one we are in."""
        return None if value == "" else value

    @field_validator("api_tokens", mode="before")
    @classmethod
    def _read_tokens(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value or "{}")
        except ValueError:
            raise ValueError('must be JSON of names and tokens: {"ana": "..."}') from None

    commit: str | None = None
    """Of this code, for the provenance of trajectories; set by image builds and `fleet up`."""
    parent_pid: int | None = None
    """Set by `fleet up`: end when that process is gone."""

    @cached_property
    def host(self) -> str:
        return socket.gethostname()


def _data_folder() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/trajectory-fleet")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "trajectory-fleet"


def _variable(field: str) -> str:
    name, *inner = field.split(".")
    return ".".join(("FLEET_" + name.upper(), *inner))


def load(**overrides: object) -> Settings:
    """Read the settings. Raises `ConfigurationError` naming variable and reason."""
    try:
        return Settings(**{k: v for k, v in overrides.items() if v is not None})  # type: ignore[arg-type]
    except SettingsError as error:  # what should be JSON is not; the value may be a secret
        cause = error.__cause__ or error
        raise ConfigurationError(f"bad settings: {error} ({type(cause).__name__})") from None
    except ValidationError as error:
        what = "; ".join(f"{_variable(field)}: {reason}" for field, reason in explain(error))
        raise ConfigurationError(f"bad settings: {what}") from None
