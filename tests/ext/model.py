"""A language model that answers by itself: the one thing about the agents that is made up."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

from agents import Model, ModelResponse, Usage
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)


class CountingModel(Model):
    """Answers with the number of the user's messages that it was shown: `"3"` to a third one.

    Before it answers the message "hold" it waits for `go_on`; "break" it answers with an error,
    "tool" by calling its tool.
    """

    def __init__(self, tool: str = "look", arguments: str = "{}") -> None:
        self._tool, self._arguments = tool, arguments
        self.inside, self.go_on = asyncio.Event(), asyncio.Event()
        self.calls = 0
        self.running = self.most = 0
        self._ids = itertools.count(1)

    async def get_response(self, system_instructions: Any, input: Any, *_: Any, **__: Any) -> ModelResponse:  # noqa: A002
        return ModelResponse(output=[await self._answer(input)], usage=Usage(), response_id=None)

    async def stream_response(self, system_instructions: Any, input: Any, *_: Any, **__: Any) -> AsyncIterator[Any]:  # noqa: A002
        response = Response(
            id="r", created_at=0.0, model="counting", object="response", output=[await self._answer(input)],
            parallel_tool_calls=False, tool_choice="none", tools=[],
        )  # fmt: skip
        yield ResponseCompletedEvent(response=response, sequence_number=0, type="response.completed")

    async def _answer(self, items: Any) -> Any:
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(500):  # longer than it takes all to get here
                await asyncio.sleep(0)
            said = [item["content"] for item in items if item.get("role") == "user"]
            if said[-1] == "hold":
                self.inside.set()
                await self.go_on.wait()
            if said[-1] == "break":
                raise RuntimeError("the model is down")
            if said[-1].startswith("tool") and items[-1].get("role") == "user":
                return ResponseFunctionToolCall(
                    call_id=f"c{next(self._ids)}", name=self._tool, arguments=self._arguments, type="function_call"
                )
            text = ResponseOutputText(annotations=[], text=str(len(said)), type="output_text")
            return ResponseOutputMessage(
                id=f"m{next(self._ids)}", content=[text], role="assistant", status="completed", type="message"
            )
        finally:
            self.running -= 1


def plain(items: Any) -> list[str]:
    """A conversation, readable: `["user: a", "assistant: 1"]`; calls and results by their type."""
    return [
        item["type"] if "role" not in item
        else f"{item['role']}: {item['content'] if isinstance(item['content'], str) else item['content'][0]['text']}"
        for item in items
    ]  # fmt: skip
