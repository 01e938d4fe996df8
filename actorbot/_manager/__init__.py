"""What a bot embeds: `SessionManager`.

Read `manager` first: each verb in its two forms, for the loop and for threads. `access` says who
may call a verb, and from where; `verbs` does its work, once for both. `options` checks what the
manager is made with, and `parts` makes of it what a started manager consists of. `receipt` is what
`submit` returns. `many` has the verbs for several sessions, of which `releasing` lets some go in
order; `looks` shows how the manager is, from what `figures` counts. `closing` ends everything in
order, `losing` what another process has taken over, and `exits` sees to managers that nobody
closes. `embedding` is what `actorbot.ext` may ask of a manager.

Only `actorbot` itself, `_bot` and, through `embedding`, `actorbot.ext` import this room.
"""
