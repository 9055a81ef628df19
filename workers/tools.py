"""What an agent may do: tools with schemas, arguments checked before anything runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jsonschema
import orjson
from jsonschema.protocols import Validator

from common.failures import Failure
from common.trajectory import Action

FINISH = "finish"


@dataclass(frozen=True)
class ToolOutput:
    """What a tool call caused. ``text`` is whole: the episode cuts the view, keeps the rest."""

    text: str
    success: bool = True
    exit_code: int | None = None
    failure: Failure | None = None
    """Of class `agent`, where the call failed by the agent's doing."""
    images: tuple[tuple[bytes, str, str], ...] = ()
    """``(data, media type, extension)``"""


@dataclass(frozen=True)
class Tool:
    """One thing an agent may do."""

    name: str
    description: str
    parameters: dict[str, Any]
    """JSON Schema of the arguments."""
    run: Callable[[dict[str, Any]], Awaitable[ToolOutput]] | None = None
    """None for `finish`, which the episode itself understands."""

    @property
    def schema(self) -> dict[str, Any]:
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self.parameters,
            },
        }


def parameters(required: Iterable[str] = (), **properties: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of an object with just these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


FINISH_TOOL = Tool(
    FINISH,
    "End the task. Call it once the work is done; give the answer the task asks for, if any.",
    parameters(answer={"type": "string", "description": "The final answer, nothing else."}),
)


@lru_cache(maxsize=1024)
def _validator(schema: bytes) -> Validator:
    """Every episode of a scene shows the same tools: what checks them is made once."""
    return jsonschema.Draft202012Validator(orjson.loads(schema))


@dataclass
class Toolbox:
    """The tools of one episode, in the order in which the model sees them."""

    tools: tuple[Tool, ...]
    _validators: dict[str, Validator] = field(default_factory=dict)

    @classmethod
    def of(cls, tools: Iterable[Tool], *, first: tuple[str, ...], only: bool) -> Toolbox:
        """Put the tools named in ``first`` first; with ``only``, leave the others out."""
        named = {tool.name: tool for tool in tools}
        front = [named[name] for name in first if name in named]
        rest = [] if only and front else [t for name, t in named.items() if name not in first]
        return cls((*front, *rest, FINISH_TOOL))

    @property
    def schemas(self) -> list[dict[str, Any]]:
        return [tool.schema for tool in self.tools]

    def __getitem__(self, name: str) -> Tool:
        return next(tool for tool in self.tools if tool.name == name)

    def objection(self, action: Action) -> str | None:
        """Return what is wrong with a call, in words the model can act on; None if nothing is."""
        names = [tool.name for tool in self.tools]
        if action.tool not in names:
            return f"there is no tool {action.tool[:64]!r}; the tools are: {', '.join(names)}"
        validator = self._validators.get(action.tool)
        if validator is None:
            validator = _validator(orjson.dumps(self[action.tool].parameters))
            self._validators[action.tool] = validator
        problems = [
            f"{'.'.join(str(p) for p in e.absolute_path) or 'arguments'}: {e.message[:300]}"
            for e in validator.iter_errors(action.arguments)
        ]
        return f"bad arguments for {action.tool}: {'; '.join(problems[:3])}" if problems else None
