"""actorbot inside the bot libraries that people already use: one module for each.

A module is imported only when it is wanted, and needs its library, which an extra of the same name
installs: in a clone of actorbot, `pip install '.[aiogram]'` is for `actorbot.ext.aiogram`.

`ptb` (python-telegram-bot), `aiogram`, `discord`, `slack` and `line` run a library's handlers in
turns, and `agents` keeps an agent's conversation in a session. `webhooks` knows the webhooks of
chat platforms without any HTTP, and `asgi` serves them. The files with an underscore are shared by
those. Of the rest of actorbot they use only public names, `actorbot._manager.embedding`, and
`actorbot._running.shown`.
"""
