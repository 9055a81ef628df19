"""Rubrics are data: those that come with the fleet hold what they promise, bad ones are refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.failures import ConfigurationError
from common.task import SceneName
from reviewer.rubric import Rubric, load, rubric_for, rubrics
from reviewer.signals import SIGNALS

SCENES = [scene.value for scene in SceneName]
LENGTH = re.compile(
    r"\b(long|longer|short|shorter|brief|briefly|concise|verbose|detailed|thorough|lengthy|words)\b"
)


@pytest.fixture
def content() -> dict[str, Any]:
    """The smallest rubric there is."""
    criterion = {"question": "Well?", "anchors": {n: f"level {n}" for n in range(1, 6)}}
    dimension = {
        **criterion, "id": "manners", "title": "Manners", "weight": 1, "signals": {"malformed": 1}
    }  # fmt: skip
    return {
        "name": "code", "version": 7, "scene": "code", "outcome": criterion,
        "dimensions": [dimension],
    }  # fmt: skip


def written(folder: Path, content: object, name: str = "code.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")
    return path


# -- those that come with the fleet ---------------------------------------------------------------


@pytest.mark.parametrize("scene", SCENES)
def test_every_scene_has_a_rubric_of_its_own(scene: str) -> None:
    rubric = rubric_for(scene)
    assert (rubric.name, rubric.scene.value) == (scene, scene)
    assert len(rubric.dimensions) >= 4
    assert sum(d.weight for d in rubric.dimensions) == pytest.approx(1.0)
    for dimension in rubric.dimensions:
        assert dimension.judge > 0, f"{dimension.id}: a judge has no say"
        assert sum(dimension.signals.values()) == pytest.approx(1.0 if dimension.signals else 0)


@pytest.mark.parametrize("scene", SCENES)
def test_no_anchor_speaks_of_length(scene: str) -> None:
    """Judges like long answers; a rubric must not help them to."""
    rubric = rubric_for(scene)
    for criterion in (rubric.outcome, *rubric.dimensions):
        assert criterion.question.endswith("?")
        assert len(set(criterion.anchors.values())) == 5
        for text in (criterion.question, *criterion.anchors.values()):
            assert not LENGTH.search(text.lower()), text


def test_every_signal_is_used_somewhere() -> None:
    used = {name for r in rubrics().values() for d in r.dimensions for name in d.signals}
    assert used == set(SIGNALS)


# -- one's own ------------------------------------------------------------------------------------


def test_a_folder_of_ones_own_goes_first_and_a_changed_file_is_read_again(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    path = written(tmp_path, content)
    assert rubric_for("code", tmp_path).label == "code-7"
    assert rubric_for("code", tmp_path) is rubric_for("code", tmp_path)
    assert rubric_for("web", tmp_path) == rubric_for("web")
    assert rubrics(tmp_path)["code"].version == 7
    before = path.stat().st_mtime_ns
    written(tmp_path, {**content, "version": 8})
    os.utime(path, ns=(before + 1_000_000, before + 1_000_000))
    assert rubric_for("code", tmp_path).label == "code-8"
    path.unlink()
    assert rubric_for("code", tmp_path) == rubric_for("code")


def test_its_hash_is_of_what_it_says_and_not_of_how_it_is_laid_out(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    one = load(written(tmp_path, content))
    other = load(written(tmp_path, dict(reversed(content.items()))))
    assert one.sha256 == other.sha256 == Rubric.model_validate(one.model_dump()).sha256
    content["dimensions"][0]["anchors"][3] = "something else"
    assert load(written(tmp_path, content)).sha256 != one.sha256


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"signals": {"charm": 1}}, r"dimensions\.0\.signals: unknown signal 'charm'; known: wast"),
        ({"signals": {"malformed": 0}}, r"dimensions\.0\.signals\.malformed: .*greater than 0"),
        ({"signals": {"malformed": -1}}, r"dimensions\.0\.signals\.malformed: .*greater than 0"),
        ({"signals": {"malformed": float("nan")}}, r"dimensions\.0\.signals\.malformed: "),
        ({"signals": {"grounding": 1}}, r"dimensions: a score may rest on nothing"),
        ({"signals": {}, "judge": 1}, r"dimensions: a score may rest on nothing"),
        ({"signals": {}}, r"dimensions\.0: nothing feeds 'manners'"),
        ({"weight": 0}, r"dimensions: the weights add up to 0"),
        ({"weight": -1}, r"dimensions\.0\.weight: "),
        ({"judge": 1.1}, r"dimensions\.0\.judge: "),
        ({"anchors": {1: "a", 2: "b", 5: "e"}}, r"dimensions\.0\.anchors: no text for level 3, 4"),
        ({"anchors": dict.fromkeys(range(1, 6), " ")}, r"dimensions\.0\.anchors: no text for"),
        ({"anchors": dict.fromkeys(range(6), "x")}, r"dimensions\.0\.anchors: level 0 is none"),
        ({"id": "outcome"}, r"dimensions\.0\.id: 'outcome' is the question"),
        ({"id": "Manners!"}, r"dimensions\.0\.id: "),
        ({"weigth": 1}, r"dimensions\.0\.weigth: unknown field"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_dimension_is_said_with_file_field_and_reason(
    tmp_path: Path, content: dict[str, Any], change: dict[str, Any], complaint: str
) -> None:
    content["dimensions"][0].update(change)
    path = written(tmp_path, content)
    with pytest.raises(ConfigurationError, match=f"rubric {re.escape(str(path))}: {complaint}"):
        rubric_for("code", tmp_path)


def test_two_dimensions_are_not_called_the_same(tmp_path: Path, content: dict[str, Any]) -> None:
    content["dimensions"] *= 2
    with pytest.raises(ConfigurationError, match="dimensions: 2 dimensions have the id 'manners'"):
        load(written(tmp_path, content))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: code\nversion: [1\nscene: code\n", r"line 3: "),
        ("name: code\nversion: 1\nname: other\n", r"line 3: 'name' is there twice"),
        ("name: code\nversion: !!python/object:os.system {}\n", r"line 2: "),
        ("name: code\nversion: 2024-13-45\n", r"month must be"),
        ("- code\n", r"holds no fields"),
        ("", r"holds no fields"),
        ("name: code\n", r"version: Field required; scene: Field required"),
    ],
)
def test_what_cannot_be_read_is_said_with_file_and_line(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "code.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigurationError, match=f"rubric {re.escape(str(path))}: {complaint}"):
        load(path)


def test_nothing_is_passed_over_in_silence(tmp_path: Path, content: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="is no folder"):
        rubric_for("code", tmp_path / "missing")
    with pytest.raises(ConfigurationError, match=r"missing\.yaml: No such file"):
        load(tmp_path / "missing.yaml")
    (tmp_path / "code.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(ConfigurationError, match=r"code\.yaml: .*utf-8"):
        rubric_for("code", tmp_path)
    written(tmp_path, {**content, "scene": "web"})
    with pytest.raises(ConfigurationError, match="scene: is web, not code"):
        rubric_for("code", tmp_path)
    written(tmp_path, content)
    written(tmp_path, content, "coding.yaml")
    with pytest.raises(ConfigurationError, match=r"coding\.yaml: is named after no scene"):
        rubrics(tmp_path)


def test_a_file_that_is_nested_too_deeply_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "code.yaml"
    path.write_text("name: " + "[" * 600 + "]" * 600)
    with pytest.raises(ConfigurationError, match=r"^rubric \S+code.yaml: is nested too deeply$"):
        load(path)
