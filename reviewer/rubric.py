"""Rubrics: one YAML file a scene, saying what a good attempt is and what shows it.

reviewer/rubrics/<scene>.yaml comes with the fleet; a folder of one's own goes before it.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from common import strict_yaml
from common.failures import ConfigurationError
from common.model import Contract, explain
from common.task import SceneName, digest
from reviewer.signals import ALWAYS, SIGNALS

OUTCOME = "outcome"
"""The criterion that asks whether the task was done at all; no dimension may be called that."""
_FOLDER = Path(__file__).with_name("rubrics")
_LEVELS = (1, 2, 3, 4, 5)


def _all_levels(anchors: dict[int, str]) -> dict[int, str]:
    missing = [str(level) for level in _LEVELS if not anchors.get(level, "").strip()]
    if missing:
        raise ValueError(f"no text for level {', '.join(missing)}; each of 1 to 5 needs one")
    if beyond := sorted(anchors.keys() - set(_LEVELS)):
        raise ValueError(f"level {beyond[0]} is none; there are 1 to 5")
    return dict(sorted(anchors.items()))


Anchors = Annotated[dict[int, str], AfterValidator(_all_levels)]
"""Level 1-5 → what an attempt looks like that has earned it."""


class Criterion(Contract):
    """One question to a judge, and what each answer means."""

    question: str = Field(min_length=1)
    anchors: Anchors


class DimensionSpec(Criterion):
    """One side of an attempt, how much it counts, and what shows it."""

    id: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    title: str = Field(min_length=1)
    weight: float = Field(ge=0)
    """Against the weights of the other dimensions."""
    signals: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Deterministic signals that feed it, each with its share against the others."""
    judge: float = Field(default=0.0, ge=0, le=1)
    """Share of a judge's grade in this dimension, where there is one; signals have the rest."""

    @field_validator("id")
    @classmethod
    def _not_taken(cls, value: str) -> str:
        if value == OUTCOME:
            raise ValueError(f"{OUTCOME!r} is the question whether the task was done")
        return value

    @field_validator("signals")
    @classmethod
    def _known(cls, value: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(value.keys() - set(SIGNALS)):
            raise ValueError(f"unknown signal {unknown[0]!r}; known: {', '.join(SIGNALS)}")
        return value

    @model_validator(mode="after")
    def _fed(self) -> DimensionSpec:
        if not self.signals and not self.judge:
            raise ValueError(f"nothing feeds {self.id!r}: it has neither signals nor a judge")
        return self


class Rubric(Contract):
    """What the attempts of one scene are measured by."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.]{0,47}$")
    version: int = Field(ge=1)
    """Goes up with every change, so that scores tell by what they were made."""
    scene: SceneName
    outcome: Criterion
    """Asked where no check can say whether the task was done."""
    dimensions: tuple[DimensionSpec, ...] = Field(min_length=1)

    @field_validator("dimensions")
    @classmethod
    def _consistent(cls, value: tuple[DimensionSpec, ...]) -> tuple[DimensionSpec, ...]:
        for name, times in Counter(dimension.id for dimension in value).items():
            if times > 1:
                raise ValueError(f"{times} dimensions have the id {name!r}")
        if not sum(dimension.weight for dimension in value) > 0:
            raise ValueError("the weights add up to 0")
        if not any(d.weight and ALWAYS & d.signals.keys() for d in value):
            raise ValueError(
                "a score may rest on nothing: one dimension with a weight must have one of the "
                f"signals that every attempt has ({', '.join(sorted(ALWAYS))})"
            )
        return value

    @property
    def label(self) -> str:
        """Name and version, as reviews and people cite it: `code-2`."""
        return f"{self.name}-{self.version}"

    @cached_property
    def sha256(self) -> str:
        """Of what it says, however the file is laid out."""
        return digest(self.model_dump(mode="json"))


def load(path: Path) -> Rubric:
    """Read one rubric. Raises `ConfigurationError` naming file, field or line, and reason."""
    try:
        content = strict_yaml.parse(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"rubric {path}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or no YAML
        raise ConfigurationError(f"rubric {path}: {error}") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"rubric {path}: holds no fields")
    try:
        return Rubric.model_validate(content)
    except ValidationError as error:
        what = "; ".join(f"{field}: {reason}" for field, reason in explain(error))
        raise ConfigurationError(f"rubric {path}: {what}") from None


def rubric_for(scene: str, folder: Path | None = None) -> Rubric:
    """Return the rubric of ``scene``: from ``folder`` if it has one, else the fleet's own.

    A changed file is read again. Raises `ConfigurationError` as `load` does, and where the folder
    is not there or a file is of another scene.
    """
    scene = SceneName(scene).value
    path = _FOLDER / f"{scene}.yaml"
    if folder is not None:
        if not folder.is_dir():
            raise ConfigurationError(f"rubrics: {folder} is no folder")
        own = folder / path.name
        path = own if own.exists() else path
    try:
        stat = path.stat()
    except OSError as error:
        raise ConfigurationError(f"rubric {path}: {error.strerror}") from None
    rubric = _as_of(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)
    if rubric.scene != scene:
        raise ConfigurationError(f"rubric {path}: scene: is {rubric.scene.value}, not {scene}")
    return rubric


def rubrics(folder: Path | None = None) -> dict[str, Rubric]:
    """Return the rubrics of all scenes. Raises `ConfigurationError` as `rubric_for` does, and for
    a file in ``folder`` that is named after no scene: nobody would ever read it.
    """
    found = {scene.value: rubric_for(scene.value, folder) for scene in SceneName}
    if folder is not None:
        for path in sorted(folder.iterdir()):
            if path.suffix in (".yaml", ".yml") and path.name not in {f"{s}.yaml" for s in found}:
                raise ConfigurationError(
                    f"rubric {path}: is named after no scene; the names are "
                    + ", ".join(f"{s}.yaml" for s in found)
                )
    return found


@lru_cache(maxsize=64)
def _as_of(path: Path, _changed: int, _size: int, _inode: int) -> Rubric:
    return load(path)
