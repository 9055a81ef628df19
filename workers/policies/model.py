"""The agent that is a language model."""

from __future__ import annotations

import hashlib
from typing import Any

from common.failures import FailureKind, FleetError
from common.llm.request import encode, examples
from common.llm.types import ChatModel, ModelMisconfigured, ModelReply, ToolMode
from common.task import Sampling
from common.trajectory import Action, Agent
from workers.policies.base import Turn
from workers.tools import FINISH, Toolbox, ToolOutput

_CHARS_PER_TOKEN = 3
_PROGRAMS = ("run_python", "run_shell")
_SHAPES_REQUESTS = {"tool_mode", "parallel_tools", "max_tokens_field", "extra_body"}
"""The capabilities that decide what a request looks like."""


class ModelPolicy:
    """Asks one model of one provider; never another within the same episode."""

    def __init__(
        self,
        model: ChatModel,
        sampling: Sampling,
        *,
        deadline: float,
        headers: dict[str, str],
        account: str = "",
    ) -> None:
        """``account``: the scene whose budget pays."""
        self._model = model
        self._account = account
        self._sampling = sampling
        # What we send where the task does not say is part of how it was sampled.
        ours = {
            k: v for k, v in model.capabilities.extra_body.items() if k in Sampling.model_fields
        }
        said = sampling.model_dump(exclude_none=True)
        self._sampled = Sampling.model_validate({**ours, **said})
        self._deadline = deadline
        self._headers = headers
        self._program: dict[str, Any] | None = None
        self._source = model.source
        self.mode: ToolMode = model.capabilities.tool_mode
        # One result may fill an eighth of the context, so that a handful of steps fit.
        self.view_chars = min(16_000, model.capabilities.max_context * _CHARS_PER_TOKEN // 8)
        self._same = encode(
            {
                "provider": model.provider,
                "model": sampling.model or model.model,
                "sampling": said,
                **model.capabilities.model_dump(mode="json", include=_SHAPES_REQUESTS),
            }
        )
        """The part of every request of this policy that does not change."""

    @property
    def agent(self) -> Agent:
        return Agent(
            kind="llm",
            model=self._sampling.model or self._model.model,
            provider=self._model.provider,
            model_source=self._source,
            sampling=self._sampled,
        )

    def show(self, toolbox: Toolbox) -> Toolbox:
        if self._model.capabilities.tool_mode != "fenced":
            return toolbox
        # A fenced block can only be a program; where there is none to run, the schema mode serves.
        programs = Toolbox(tuple(t for t in toolbox.tools if t.name in (*_PROGRAMS, FINISH)))
        self.mode = "fenced" if len(programs.tools) > 1 else "schema"
        return programs if self.mode == "fenced" else toolbox

    def examples(self, toolbox: Toolbox) -> list[dict[str, Any]]:
        if self.mode == "schema" and self._model.capabilities.few_shot:
            return examples(toolbox.schemas)
        return []

    def concludes(self, action: Action, output: ToolOutput) -> str | None:
        """In `fenced` mode the first program that runs without an error is the model's last word:
        a model that small cannot tell whether its output is right, and only spoils it. So is one
        that it repeats unchanged after seeing its error: it would do so for ever."""
        if self.mode != "fenced":
            return None
        repeated, self._program = action.arguments == self._program, dict(action.arguments)
        return output.text.strip() if output.success or repeated else None

    def request(self, chat: list[dict[str, Any]], toolbox: Toolbox) -> str:
        """Return the sha256 (hex) of all that decides what the model would be asked now."""
        asked = hashlib.sha256(self._same)
        asked.update(encode({"mode": self.mode, "tools": toolbox.schemas, "messages": chat}))
        return asked.hexdigest()

    def recall(self, turn: Turn) -> None:
        """Go on from ``turn`` as if `act` had just returned it."""
        if turn.source is not None:
            self._source = turn.source

    async def act(self, chat: list[dict[str, Any]], toolbox: Toolbox, *, deadline: float) -> Turn:
        try:
            reply = await self._model.complete(
                chat,
                toolbox.schemas,
                self._sampling,
                deadline=min(self._deadline, deadline),
                headers=self._headers,
                account=self._account,
            )
        except ModelMisconfigured as error:
            named = self._sampling.model
            if error.about_model and named is not None and named != self._model.model:
                # The line asked for it, not the operator: it costs that line alone.
                raise FleetError(
                    f"sampling.model: {error}", kind=FailureKind.INVALID_TASK
                ) from None
            raise
        self._source = reply.source
        actions = tuple(
            Action(tool=call.tool, arguments=call.arguments, call_id=call.call_id)
            for call in reply.calls
        )
        objection = next((call.error for call in reply.calls if call.error), None)
        if not reply.calls:
            if self.mode == "fenced" and reply.text.strip():
                actions = (self._finish(reply),)
            else:
                objection = "it calls no tool. Call one, or `finish` if the task is done."
        return Turn(
            message=reply.message,
            actions=actions,
            objection=objection,
            thought=reply.thought,
            usage=reply.usage,
            parse=reply.parse,
            throttled=reply.throttled,
            sent=reply.sent,
            source=reply.source,
        )

    @staticmethod
    def _finish(reply: ModelReply) -> Action:
        """Without a code block the model is done; what it says is its answer."""
        return Action(tool=FINISH, arguments={"answer": reply.text.strip()}, call_id="finish")
