"""actorbot inside the bot libraries that people already have: one module for each, imported only when wanted.

Each needs its library, which an extra of the same name installs: `pip install '.[aiogram]'` in a clone of actorbot, for
`actorbot.ext.aiogram`.
"""
