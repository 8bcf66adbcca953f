"""Chat templates: what they may do, and what is stopped."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime

import pytest
from shoal_server.errors import InvalidRequest
from shoal_server.front.chat import ChatMessage, ChatTemplate, TemplateRefused, _Render

HELLO = [ChatMessage(role="user", content="hello")]


async def render(source: str, messages: list[ChatMessage] = HELLO, limit_s: float = 5.0, size: int = 10_000) -> str:
    return await ChatTemplate(source, {"bos_token": "<s>"}).render(messages, time_limit_s=limit_s, max_characters=size)


async def test_a_template_like_those_of_transformers() -> None:
    source = """{{ bos_token }}{% for message in messages %}
    {% if message['role'] == 'user' %}
        {{- '[U]' + message['content'] | trim + '\\n' }}
    {%- else %}
        {%- generation %}{{ '[A]' ~ message.content }}{% endgeneration %}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '[A]' }}{% endif %}{% if tools %}tools{% endif %}"""
    messages = [*HELLO, ChatMessage(role="assistant", content="hi"), ChatMessage(role="user", content=" more ")]
    assert await render(source, messages) == "<s>[U]hello\n[A]hi[U]more\n[A]"


async def test_what_templates_expect_is_there() -> None:
    assert await render("{{ strftime_now('%Y') }}") == str(datetime.now().astimezone().year)
    assert await render("{{ {'k': '<é>'} | tojson }}") == '{"k": "<é>"}'
    assert await render("{{ '**%s** {}' % 'x' }}") == "**x** {}"
    assert await render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"


async def test_a_refusal_of_the_template_is_the_clients_error() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        await render("{{ raise_exception('roles must alternate') }}")


async def test_a_refusal_that_quotes_the_conversation_is_not_shown() -> None:
    with pytest.raises(InvalidRequest) as caught:
        await render("{{ raise_exception('bad: ' + messages[0].content) }}")
    assert "hello" not in str(caught.value)


def test_a_malformed_template_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(TemplateRefused, match="line 2"):
        ChatTemplate("\n{% if %}", {})


FOREVER = "{% for a in range(99999) %}"
ENDLESS = 3 * FOREVER + 3 * "{% endfor %}"


async def test_an_endless_loop_is_stopped_and_its_thread_ends() -> None:
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match=r"took longer than 0\.2 s"):
        await render(ENDLESS, limit_s=0.2)
    assert time.monotonic() - began < 2
    async with asyncio.timeout(5):
        while _Render.num_running:  # noqa: ASYNC110 - no event tells of the thread's end
            await asyncio.sleep(0.01)
    assert await render("fine") == "fine"


async def test_an_endless_loop_does_not_hold_up_the_event_loop() -> None:
    num_turns = 0

    async def count_turns() -> None:
        nonlocal num_turns
        while True:
            await asyncio.sleep(0.01)
            num_turns += 1

    counting = asyncio.create_task(count_turns())
    with pytest.raises(InvalidRequest):
        await render(ENDLESS, limit_s=0.3)
    counting.cancel()
    assert num_turns >= 3, "of some thirty; a loop that is held up makes one at the most"


async def test_the_output_is_bounded() -> None:
    with pytest.raises(InvalidRequest, match="more than 1,000 characters"):
        await render("{% for a in range(99999) %}xxxxxxxxxx{% endfor %}", size=1000)


GROW = "{%% set ns = namespace(x='aaaaaaaa') %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10**10 }}",
        "{{ [1] * 10**9 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%0999999999d' % 1 }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 999999) }}",
        "{{ '%*d' | format(99999999, 1) }}",
        "{{ 'x'.ljust(10**9) }}",
        "{{ 'x' | center(10**9) }}",
        "{{ 'x' | indent(10**9, true) }}",
        GROW % "ns.x ~ ns.x",
        GROW % "ns.x + ns.x",
        GROW % "ns.x | replace('a', 'aaaa')",
        GROW % "ns.x.replace('a', 'aaaa')",
        "{{ (['x' * 99999] * 99999) | join('y' * 99999) }}",
        "{{ ('x' * 99999).join(['x'] * 99999) }}",
    ],
)
async def test_operations_that_would_build_something_huge_are_refused(source: str) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match="too large"):
        await render(source, limit_s=2)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[0] }}",
        "{{ messages.__class__.__bases__[0].__subclasses__() }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(content='x') }}",
        "{{ nobody.at.all }}",
        "{{ 1 / 0 }}",
        "{% include 'x' %}",
    ],
)
async def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await render(source)
    assert caught.value.violations[0].field == "generation.chat"
