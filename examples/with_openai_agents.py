"""A console bot that is an agent of the OpenAI Agents SDK.

End it and start it again: it still knows what you talked about.

OPENAI_API_KEY=sk-… python examples/with_openai_agents.py

Install: pip install '.[agents]' in a clone
"""

import os
import sys

from agents import Agent, RunContextWrapper, Runner, function_tool

from actorbot import ConsoleBot, Context, FileSessionStore
from actorbot.ext.agents import AgentSession


@function_tool
async def remember_nickname(run: RunContextWrapper[Context], nickname: str) -> str:
    """Remember what the user wants to be called."""
    run.context.session["nickname"] = nickname  # rolled back if the run fails
    return "remembered"


agent = Agent[Context](name="Helper", instructions="Answer in one sentence.", tools=[remember_nickname])


def make_bot(folder: str) -> ConsoleBot:
    bot = ConsoleBot(session_store=FileSessionStore(folder))

    @bot.on_event
    async def answer(context: Context) -> None:
        memory = AgentSession(bot.manager, context.session_id, max_items=100)
        result = await Runner.run(agent, context.event.message.text, session=memory, context=context)
        context.send_text(str(result.final_output))

    @bot.on_error
    async def apologise(context: Context, error: Exception) -> None:
        context.send_text(f"That went wrong, and I have forgotten it: {error}")

    return bot


if __name__ == "__main__":
    if "OPENAI_API_KEY" not in os.environ:
        sys.exit("Set OPENAI_API_KEY to your key of the OpenAI API.")
    make_bot(".sessions").run()
