"""The client against every way a provider goes wrong, over real connections."""

from __future__ import annotations

import asyncio

import pytest

from common.llm.client import OpenAIChat, is_loopback
from common.llm.http import NEVER_CONNECTED, Pool, proxy_for
from common.llm.types import (
    Capabilities,
    ModelMisconfigured,
    ModelRateLimited,
    ModelRefused,
    ModelUnavailable,
)
from common.task import Sampling
from tests.common.llm.conftest import KEY, TOOLS, Connect, asked, config
from tests.helpers import eventually
from tests.standin import Standin, Turn

RUN = Turn(tool="run_python", arguments={"code": "print(1)"})
PLAIN = Sampling()


async def ask(model: OpenAIChat, task: str = "t", deadline: float = 20.0):
    return await model.complete(asked(task), TOOLS, PLAIN, deadline=deadline)


async def test_a_native_call_is_read_with_its_usage(standin: Standin, connect: Connect) -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 60},
    }
    standin.script.add("t", Turn(text="Let me see.", tool="run_python",
                                 arguments={"code": "print(1)"}, usage=usage))  # fmt: skip
    model = connect()
    reply = await ask(model)
    (call,) = reply.calls
    assert (call.tool, call.arguments, call.error) == ("run_python", {"code": "print(1)"}, None)
    assert (reply.parse, reply.finish_reason) == ("native", "tool_calls")
    assert reply.thought == "Let me see."
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (100, 7)
    assert reply.usage.cached_tokens == 60
    assert not reply.usage.estimated
    assert reply.sent == ()
    (record,) = model.records
    assert (record.error_type, record.retries, record.parse) == (None, 0, "native")


async def test_a_standin_is_known_as_one(standin: Standin, connect: Connect) -> None:
    standin.script.add("t", RUN)
    model = connect()
    assert model.source == "api"
    assert (await ask(model)).source == "standin"
    assert model.source == "standin"


@pytest.mark.parametrize(
    ("fault", "label"),
    [
        ("500", "http_5xx"), ("503:0.01", "http_5xx"), ("broken_json", "broken_json"),
        ("html", "wrong_content_type"), ("no_choices", "no_choices"),
        ("no_finish", "no_finish_reason"), ("cut", "connection"), ("429:0.01", "rate_limited"),
        ("429", "rate_limited"),
    ],
)  # fmt: skip
async def test_a_passing_fault_is_retried(
    standin: Standin, connect: Connect, fault: str, label: str
) -> None:
    standin.script.add("t", RUN, faults={"1": fault, "2": fault})
    model = connect()
    reply = await ask(model)
    assert reply.calls[0].arguments == {"code": "print(1)"}
    assert len(standin.of("t")) == 3
    (record,) = model.records
    assert record.faults == (label, label)
    assert (record.retries, record.error_type) == (2, None)


@pytest.mark.parametrize("fault", ["500", "broken_json", "html", "no_choices", "no_finish", "cut"])
async def test_a_lasting_fault_makes_the_model_unavailable(
    standin: Standin, connect: Connect, fault: str
) -> None:
    standin.script.add("t", RUN, faults={"*": fault})
    model = connect()
    with pytest.raises(ModelUnavailable) as caught:
        await ask(model)
    assert not isinstance(caught.value, ModelRateLimited)
    assert caught.value.as_failure().failure_class == "infrastructure"
    assert len(standin.of("t")) == 4
    assert model.records[0].error_type == "unavailable"
    assert model.records[0].retries == 3


@pytest.mark.parametrize("fault", ["stall", "drip:0.05"])
async def test_a_hanging_or_dripping_answer_ends_at_the_deadline(
    standin: Standin, connect: Connect, fault: str
) -> None:
    standin.script.add("t", RUN, faults={"*": fault})
    model = connect()
    clock = asyncio.get_running_loop().time
    started = clock()
    with pytest.raises(ModelUnavailable, match=r"no whole answer .* within 0\.5 s"):
        await ask(model, deadline=0.5)
    assert 0.5 <= clock() - started < 5  # a drip at this pace would take half a minute
    assert model.records[0].faults == ("timeout",)


async def test_blank_lines_before_an_answer_are_no_fault(
    standin: Standin, connect: Connect
) -> None:
    standin.script.add("t", RUN, faults={"1": "blank_lines"})
    assert (await ask(connect())).calls[0].tool == "run_python"
    assert len(standin.of("t")) == 1


async def test_no_server_at_all_is_unavailable() -> None:
    model = OpenAIChat(config("http://127.0.0.1:1/v1"))
    with pytest.raises(ModelUnavailable, match="lost the connection"):
        await model.complete(asked(), TOOLS, PLAIN, deadline=0.6)
    await model.close()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("401", "FLEET_LLM_API_KEY"), ("402", "no credit left"), ("403", "FLEET_LLM_MODEL"),
        ("404", "FLEET_LLM_BASE_URL"),
    ],
)  # fmt: skip
async def test_what_only_a_person_can_mend_is_not_retried_and_names_the_setting(
    standin: Standin, connect: Connect, fault: str, says: str
) -> None:
    standin.script.add("t", RUN, faults={"*": fault})
    model = connect()
    with pytest.raises(ModelMisconfigured) as caught:
        await ask(model)
    assert says in str(caught.value)
    assert "custom" in str(caught.value)
    assert KEY not in str(caught.value)
    assert KEY not in repr(model)
    assert len(standin.of("t")) == 1
    assert standin.journal[0].headers["authorization"] == f"Bearer {KEY}"
    assert model.records[0].error_type == "misconfigured"


@pytest.mark.parametrize("fault", ["400", "422"])
async def test_a_refused_request_is_not_retried(
    standin: Standin, connect: Connect, fault: str
) -> None:
    standin.script.add("t", RUN, faults={"*": fault})
    model = connect()
    with pytest.raises(ModelRefused, match=f"HTTP {fault}") as caught:
        await ask(model)
    assert caught.value.as_failure().failure_class == "agent"
    assert len(standin.of("t")) == 1


@pytest.mark.parametrize("fault", ["bad_arguments", "length"])
async def test_unreadable_arguments_are_an_error_and_no_arguments(
    standin: Standin, connect: Connect, fault: str
) -> None:
    standin.script.add("t", RUN, faults={"1": fault})
    (call,) = (await ask(connect())).calls
    assert call.tool == "run_python"
    assert call.error is not None
    assert call.arguments == {}
    assert call.raw_arguments.startswith("{")


async def test_a_cut_off_call_with_valid_arguments_is_not_run_either(
    standin: Standin, connect: Connect
) -> None:
    standin.script.add("t", Turn(tool="run_python", arguments={"code": "x"},
                                 finish_reason="length"))  # fmt: skip
    (call,) = (await ask(connect())).calls
    assert "cut off" in (call.error or "")


async def test_nonsense_and_unknown_tools_are_the_agents_affair(
    standin: Standin, connect: Connect
) -> None:
    standin.script.add("t", RUN, faults={"1": "nonsense", "2": "wrong_tool"})
    model = connect()
    first, second = await ask(model), await ask(model)
    assert first.calls == ()
    assert "blue" in first.text
    assert second.calls[0].tool == "no_such_tool"
    assert second.calls[0].error is None


async def test_a_filtered_answer_is_a_refusal(standin: Standin, connect: Connect) -> None:
    standin.script.add("t", Turn(text="", finish_reason="content_filter"))
    with pytest.raises(ModelRefused, match="content filter"):
        await ask(connect())


async def test_a_missing_usage_is_estimated(standin: Standin, connect: Connect) -> None:
    standin.script.add("t", RUN, faults={"1": "no_usage"})
    usage = (await ask(connect())).usage
    assert usage.estimated
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens > 0
    assert usage.cost_usd is None


async def test_what_providers_hide_in_a_message_is_echoed(
    standin: Standin, connect: Connect
) -> None:
    standin.script.add(
        "t",
        Turn(tool="run_python", arguments={"code": "1"}, reasoning="Hm.", signature="c2ln"),
        Turn(tool="finish", arguments={"answer": "1"}),
    )
    model = connect()
    first = await ask(model)
    assert first.thought == "Hm."
    result = {"role": "tool", "tool_call_id": first.calls[0].call_id, "content": "1"}
    chat = asked("t", first.message, result)
    second = await model.complete(chat, TOOLS, PLAIN, deadline=20)
    assert second.calls[0].tool == "finish"
    echoed = standin.journal[1].body["messages"][1]
    assert echoed == first.message
    assert echoed["reasoning_content"] == "Hm."
    assert echoed["tool_calls"][0]["extra_content"]["google"]["thought_signature"] == "c2ln"
    assert "refusal" not in echoed  # it was null
    del first.message["tool_calls"][0]["extra_content"]
    with pytest.raises(ModelRefused, match="signature"):
        await model.complete(chat, TOOLS, PLAIN, deadline=20)


async def test_our_ids_go_to_servers_on_this_machine_only(
    standin: Standin, connect: Connect
) -> None:
    standin.script.add("named", RUN)
    headers = {"x-fleet-task": "named", "x-fleet-attempt": "a1"}
    model = connect()
    await model.complete(asked("other"), TOOLS, PLAIN, deadline=20, headers=headers)
    (entry,) = standin.of("named")
    assert entry.attempt == "a1"
    standin.script.add("other", RUN)
    elsewhere = OpenAIChat(config(standin.url), trace_headers=False)
    await elsewhere.complete(asked("other"), TOOLS, PLAIN, deadline=20, headers=headers)
    await elsewhere.close()
    assert "x-fleet-task" not in standin.of("other")[0].headers
    assert is_loopback("http://localhost:1/v1")
    assert is_loopback("http://[::1]:1/v1")
    assert not is_loopback("https://api.deepseek.com")


async def test_sampling_and_extra_fields_reach_the_provider(
    standin: Standin, connect: Connect
) -> None:
    standin.script.add("t", RUN)
    capabilities = Capabilities(
        tool_mode="native",
        parallel_tools=False,
        max_tokens_field="max_completion_tokens",
        extra_body={"thinking": {"type": "disabled"}, "temperature": 1},
    )
    model = connect(capabilities=capabilities)
    sampling = Sampling(model="another", temperature=0.7, top_p=0.9, seed=3, max_tokens=50)
    reply = await model.complete(asked(), TOOLS, sampling, deadline=20)
    assert reply.model == "another"
    body = standin.journal[0].body
    assert {name: body[name] for name in body if name not in ("messages", "tools")} == {
        "model": "another",
        "thinking": {"type": "disabled"},
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 3,
        "max_completion_tokens": 50,
        "parallel_tool_calls": False,
    }


async def test_nothing_of_the_sdks_own_environment_is_sent(
    standin: Standin, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another-account")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-another-account")
    standin.script.add("t", RUN)
    await ask(connect())
    assert not any("another-account" in value for value in standin.journal[0].headers.values())


async def test_check_says_who_answered(standin: Standin, connect: Connect) -> None:
    standin.script.add("*", Turn(text="Ready."))
    assert (await connect().check()).startswith("custom: some-model answered in ")


async def test_a_cancelled_call_is_recorded_and_frees_its_slot(
    standin: Standin, connect: Connect
) -> None:
    standin.script.add("t", RUN, faults={"1": "stall"})
    model = connect(concurrency=1)
    first = asyncio.create_task(ask(model))
    await eventually(lambda: bool(standin.journal), "the first request arrives")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert model.records[0].error_type == "cancelled"
    assert (await ask(model)).calls


def test_the_environments_proxy_is_used_where_it_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "inside.example")
    proxy_for.cache_clear()
    assert proxy_for("https://api.example/v1") == "http://proxy:3128"
    assert proxy_for("https://inside.example/v1") is None
    proxy_for.cache_clear()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_written_without_a_scheme_speaks_http(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", "proxy.example:3128")
    proxy_for.cache_clear()
    assert proxy_for(f"{scheme}://api.example/v1") == "http://proxy.example:3128"
    proxy_for.cache_clear()


async def test_a_proxy_that_is_no_address_is_nobody_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://:3128")
    proxy_for.cache_clear()
    pool = Pool().share()
    with pytest.raises(NEVER_CONNECTED):  # and so not paid for
        await pool.post("https://api.example/v1", b"{}", {})
    await pool.release()
    proxy_for.cache_clear()


async def test_the_pool_closes_with_its_last_model(standin: Standin) -> None:
    pool = Pool()
    models = [OpenAIChat(config(standin.url), pool=pool) for _ in range(2)]
    await models[0].close()
    assert not pool.closed
    await models[1].close()
    assert pool.closed
