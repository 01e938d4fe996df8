"""The faults, each with the test that catches it.

What they are modelled on: bugs of other bot libraries, stores and journals.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault: in *file*, *right* becomes *wrong*; *test* (a node id, or part of one with -k after
    a space) must then fail.
    """

    name: str
    file: str
    right: str
    wrong: str
    test: str


MUTANTS = (
    # --- the loop ---------------------------------------------------------------------------------
    Mutant(
        "a loop that is never idle keeps the threads from their work",
        "_runtime/loop_home.py",
        "            time.sleep(BREATH)",
        "            pass",
        "tests/unit/runtime/test_loop_home.py",
    ),
    # --- the turn ---------------------------------------------------------------------------------
    Mutant(
        "an event id is not recorded",
        "_turns/session_actor.py",
        "        if digest is not None:\n            context._event_id = digest",
        "        if digest is None:\n            context._event_id = digest",
        "tests/promises/test_duplicates.py -k test_an_event_delivered_twice_counts_once",
    ),
    Mutant(
        "SystemExit in a handler ends the bot",
        "_turns/session_actor.py",
        "if isinstance(error, SystemExit | KeyboardInterrupt):",
        "if isinstance(error, KeyboardInterrupt):",
        "tests/promises/test_atomic_turn.py -k test_a_failing_handler_leaves_no_trace",
    ),
    Mutant(
        "a time-out does not take the session from its handler",
        "_turns/overdue.py",
        "        context._revoked = error\n        context._session = None\n",
        "        context._revoked = error\n",
        "tests/promises/test_never_hang_on_threads.py",
    ),
    Mutant(
        "a handler that catches its cancellation is committed",
        "_turns/session_actor.py",
        "if (task := context._task) is not None and task.cancelling() > context._cancels:",
        "if (task := context._task) is not None and task.cancelling() < context._cancels:",
        "tests/promises/test_cancellation.py -k test_a_cancelled_event_is_rolled_back",
    ),
    Mutant(
        "a time-out hides from its caller that he was cancelled",
        "_turns/session_actor.py",
        "            task.uncancel()  # ours",
        "            while task.uncancel():\n                pass  # ours",
        "tests/promises/test_cancellation.py -k test_a_caller_is_cancelled_even",
    ),
    Mutant(
        "a call that has given up runs when the loop comes to it",
        "_manager/access.py",
        "            if not waits:\n",
        "            if False:\n",
        "tests/promises/test_cancellation.py -k before_the_loop_took_it",
    ),
    Mutant(
        "a turn commits over a conflict that came meanwhile",
        "_turns/session_actor.py",
        "if self.committed is not before:",
        "if self.committed is None and before is None:",
        "tests/promises/test_no_stale_overwrite.py -k test_a_turn_that_runs_while_its_session_meets_a_conflict",
    ),
    Mutant(
        "what a conflict has taken stays at risk",
        "_flushing/outcome.py",
        "            self.settled += unflushed[VERSION] - session.flushed\n",
        "            pass\n",
        "tests/faults/test_simulation.py -k test_whatever_goes_wrong_no_promise_is_broken",
    ),
    Mutant(
        "expiry is left to the server",
        "_turns/session_actor.py",
        "if state is not None and wall >= (end := committed[ENDS]):",
        "if state is not None and wall < (end := 0):",
        "tests/unit/residents/test_expiry.py -k test_a_session_expires_by_its_last_event",
    ),
    Mutant(
        "a circle of sessions waits for ever",
        "_turns/deadlock.py",
        "raise DeadlockError",
        "return [] or DeadlockError",
        "tests/promises/test_never_hang.py -k test_every_way_of_waiting",
    ),
    Mutant(
        "a chain of turns goes on until the stack is full",
        "_turns/session_actor.py",
        "            check_depth(self.session_id)\n",
        "            pass\n",
        "tests/promises/test_too_deep.py -k chain",
    ),
    Mutant(
        "a stack that is full is taken for a store that is down",
        "_residents/loader.py",
        "        except (ActorbotError, RecursionError):",
        "        except ActorbotError:",
        "tests/promises/test_too_deep.py -k outage",
    ),
    Mutant(
        "a cancelled borrower keeps the turn",
        "_turns/session_actor.py",
        "        finally:\n            if not context._passed_on:\n                context._passed_on = True\n",
        "        else:\n            if not context._passed_on:\n                context._passed_on = True\n",
        "tests/promises/test_never_hang.py -k test_a_borrower_cancelled",
    ),
    Mutant(
        "a turn stays lent to a thread that has given up",
        "_turns/lend.py",
        "        if not self._first.take():\n            await self._undo()\n",
        "        self._first.take()\n",
        "tests/promises/test_never_hang_on_threads.py -k test_a_thread_that_has_given_up",
    ),
    # --- replies ----------------------------------------------------------------------------------
    Mutant(
        "a reply leaves before its event is in the journal",
        "_turns/acknowledge.py",
        "    journal.put(_TurnAhead(actor, context, committed, journal.lineage, acknowledged))\n",
        "    actor.send(context)\n    journal.put(_TurnAhead(actor, context, committed, journal.lineage, acknowledged))\n",
        "tests/promises/test_gate.py -k test_a_reply_leaves_after",
    ),
    Mutant(
        "a failed turn's replies are sent",
        "_turns/session_actor.py",
        "        self.shared.running.deadlines.pop(context, None)\n        context._session = context._task = None\n",
        "        self.shared.running.deadlines.pop(context, None)\n        self.send(context)\n"
        "        context._session = context._task = None\n",
        "tests/promises/test_atomic_turn.py -k test_a_failing_handler_leaves_no_trace",
    ),
    Mutant(
        "replies that nobody takes pile up",
        "_turns/session_actor.py",
        "        if context._replies is not None:\n            shared.outbox.reserve(context)\n",
        "",
        "tests/promises/test_bounded_replies.py",
    ),
    Mutant(
        "a turn that failed keeps the room of its replies",
        "_turns/session_actor.py",
        "        if context._reserved:\n",
        "        if False:\n",
        "tests/promises/test_bounded_replies.py -k gives_its_room_back",
    ),
    Mutant(
        "what a handler keeps of a busy session stays the session's",
        "_state/codec.py",
        "        if type(value) is list and getrefcount(value) > _OF_LIST:",
        "        if type(value) is list and getrefcount(value) > 10 * _OF_LIST:",
        "tests/unit/turns/test_busy_sessions.py",
    ),
    Mutant(
        "a busy session's failing turn leaves its changes",
        "_turns/session_actor.py",
        "                self.decoded = None  # this turn's now: if it fails, the bytes are what counts",
        "                pass",
        "tests/unit/turns/test_busy_sessions.py",
    ),
    # --- leaving memory ---------------------------------------------------------------------------
    Mutant(
        "a session leaves memory while it is dirty",
        "_residents/table.py",
        "clean = not actor.behind() and not actor.dirty",
        "clean = True",
        "tests/unit/residents/test_leaving.py tests/promises/test_bounded.py tests/faults/test_states.py",
    ),
    Mutant(
        "a session leaves memory with somebody in line",
        "_runtime/mailbox.py",
        "        if self.line:\n            self.closed = False\n            return False\n",
        "",
        "tests/unit/runtime/test_mailbox.py",
    ),
    # --- the flusher ------------------------------------------------------------------------------
    Mutant(
        "a write that failed is forgotten",
        "_flushing/retries.py",
        "            self._again[job.session] = job",
        "            pass",
        "tests/promises/test_outage.py tests/promises/test_close.py tests/unit/flushing",
    ),
    Mutant(
        "an outage lasts for ever",
        "_flushing/retries.py",
        "        if not jobs:\n            self.paused = False",
        "        if not jobs:\n            pass",
        "tests/promises/test_outage.py -k test_the_bot_goes_on_through_an_outage",
    ),
    Mutant(
        "one session that the store refuses holds up all others",
        "_flushing/outcome.py",
        "            self._retries.rest(failed)\n",
        "            self._retries.pause(failed, ConflictError('', ''))\n            self._queue.add_again(failed)\n",
        "tests/unit/flushing tests/promises/test_never_hang.py tests/unit/stores/test_driver_deadlines.py",
    ),
    Mutant(
        "what is committed while a write is out is not flushed",
        "_flushing/outcome.py",
        "job.made if committed is not None and committed[VERSION] > record.version else None",
        "None",
        "tests/unit/flushing/test_flusher.py -k older_state",
    ),
    Mutant(
        "a closed manager leaves its sessions unflushed",
        "_manager/closing.py",
        "    await _flush_until(parts, actors, until)\n",
        "",
        "tests/promises/test_close.py tests/promises/test_close_on_threads.py",
    ),
    Mutant(
        "whoever is marked last has all before him wait for his own time",
        "_flushing/dirty.py",
        "self._wake_at(self._due[0])",
        "self._wake_at(self._due[-1])",
        "tests/unit/flushing/test_flusher.py -k test_who_is_marked_while_others_are_taken",
    ),
    Mutant(
        "threads that compute keep a flusher that is late from the interpreter",
        "_turns/session_actor.py",
        "            shared.home.give_way()\n",
        "            pass\n",
        "tests/unit/flushing/test_flusher.py -k test_callers_give_way",
    ),
    # --- stores -----------------------------------------------------------------------------------
    Mutant(
        "a write whose reply was lost is taken for somebody else's",
        "stores/base.py",
        "    if has_id(stored, write.record.write_id):\n        return Verdict.DONE\n",
        "",
        "tests/unit/stores/test_store_contract.py -k memory",
    ),
    Mutant(
        "one write id is remembered instead of sixteen",
        "_state/record.py",
        "RING_BYTES: Final = 16 * 8",
        "RING_BYTES: Final = 8",
        "tests/servers/test_two_owners.py tests/unit/state/test_record.py tests/faults/test_states.py "
        "tests/unit/flushing/test_flusher.py",
    ),
    Mutant(
        "a stale write overwrites",
        "stores/base.py",
        "    if stored is None or write.base is None:\n        return Verdict.WRITE\n",
        "    return Verdict.WRITE\n",
        "tests/unit/stores/test_store_contract.py -k memory",
    ),
    Mutant(
        "a failed read is a new session",
        "stores/file.py",
        '            failure = StoreUnavailableError(self.name, f"reading failed: {error}", session_id=session_id)\n'
        "            failure.__cause__ = error\n            return failure\n        try:\n            return Record",
        "            return None\n        try:\n            return Record",
        "tests/unit/stores/test_store_contract.py tests/unit/stores/test_file_store.py -k 'file or File or read'",
    ),
    Mutant(
        "a record is put in place before it is synced",
        "stores/file.py",
        "            os.fsync(descriptor)\n        finally:\n            os.close(descriptor)\n\n    def _discard",
        "        finally:\n            os.close(descriptor)\n\n    def _discard",
        "tests/unit/stores/test_file_store.py",
    ),
    Mutant(
        "the folder is not synced",
        "stores/file.py",
        "            os.fsync(folder)\n        except OSError as error:\n            raise OutcomeUnknownError",
        "            pass\n        except OSError as error:\n            raise OutcomeUnknownError",
        "tests/unit/stores/test_file_store.py",
    ),
    Mutant(
        "a damaged record reads as whole",
        "_state/record.py",
        '    if zlib.crc32(data[8:]).to_bytes(4, "big") != data[4:8]:',
        "    if False and data[4:8]:",
        "tests/unit/state/test_record.py",
    ),
    Mutant(
        "the record of another session is taken for this one",
        "_state/record.py",
        "if reason is None and fields[0] != session_id:",
        "if reason is None and not fields[0]:",
        "tests/unit/stores/test_file_store.py -k test_the_file_of_another_session",
    ),
    Mutant(
        "a store that may block is read on the event loop",
        "_residents/loader.py",
        "        if self._store.may_block:\n",
        "        if False:\n",
        "tests/unit/stores/test_memory_store.py -k test_a_session_is_read_where_its_turn_runs",
    ),
    # --- the journal ------------------------------------------------------------------------------
    Mutant(
        "an event is acknowledged before its commit",
        "_turns/acknowledge.py",
        "    journal.put(_TurnAhead(actor, context, committed, journal.lineage, acknowledged))\n",
        "    ahead = _TurnAhead(actor, context, committed, journal.lineage, acknowledged)\n"
        "    ahead.settle(None)\n"
        '    untold = type("Untold", (Ahead,), {"settle": lambda *_: None})\n'
        "    journal.put(untold(actor.session_id, committed, actor.write_ids, ahead.lineages))\n",
        "tests/promises/test_prefix.py tests/unit/journal/test_journaled.py",
    ),
    Mutant(
        "the journal is not synced",
        "_journal/file.py",
        'f"synchronous={self._sync.upper()}",',
        '"synchronous=OFF",',
        "tests/faults/test_power_loss.py",
    ),
    Mutant(
        "a row goes though it is newer than what the store has",
        "_journal/places.py",
        "place.version <= version and session_id not in places",
        "session_id not in places",
        "tests/faults",
    ),
    Mutant(
        "a destroyed session comes back from the journal",
        "_turns/destroy.py",
        "        if journal is None:\n            self._write()",
        "        if journal is None or not self._actor.behind():\n            self._write()",
        "tests/promises/test_no_resurrection.py tests/unit/journal/test_journaled.py -k destroyed",
    ),
    Mutant(
        "a commit that failed is tried again on the same file",
        "_journal/journal.py",
        "            self._file.renew()\n            self._index()",
        "            self._index()",
        "tests/unit/journal/test_disk.py -k test_a_disk",
    ),
    Mutant(
        "a recovery overwrites whatever it finds",
        "_flushing/recovery.py",
        "    forced = ANYBODYS in lineages",
        "    forced = True",
        "tests/unit/journal/test_set_back.py -k somebody_else",
    ),
    Mutant(
        "a recovery takes its own write for somebody else's",
        "_flushing/recovery.py",
        "    if has_id(stored.write_ids, record.write_id):\n        return Settled(None)\n",
        "",
        "tests/unit/journal/test_journaled.py tests/faults",
    ),
    Mutant(
        "what came on top of a journal that was set back is dropped without a word",
        "_flushing/recovery.py",
        "job.set_back = job.write.record.version == job.session.lineages[0].last",
        "job.set_back = True",
        "tests/unit/journal/test_set_back.py -k set_back",
    ),
    Mutant(
        "a journal that was set back is taken for another process's conflict",
        "_flushing/outcome.py",
        "        if job.set_back and self._catch_up(job):",
        "        if job.set_back and self._catch_up(job) is None:",
        "tests/unit/journal/test_set_back.py -k set_back",
    ),
    Mutant(
        "a journal on a full disk forgets what was to be removed and set aside",
        "_journal/journal.py",
        "                self._removals.put_back(removals)\n",
        "                pass\n",
        "tests/unit/journal/test_disk.py -k test_what_the_store_has_leaves",
    ),
    Mutant(
        "two bots share a journal",
        "_runtime/file_lock.py",
        "            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        "tests/unit/journal/test_journaled.py -k second_bot",
    ),
    Mutant(
        "a forked child closes its parent's journal",
        "_journal/file.py",
        "            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))",
        "            pass",
        "tests/unit/journal/test_journaled.py -k forked",
    ),
    Mutant(
        "a new file that could not be put in its place is never used",
        "_journal/file.py",
        "        if self._connection is not None:\n            self._copy",
        "        if self._open is not None:\n            self._copy",
        "tests/faults/test_bad_disk.py -k new_file",
    ),
    Mutant(
        "a log that is damaged in its middle is taken for one that ends there",
        "_journal/wal.py",
        "        if ended:",
        "        if False:",
        "tests/unit/journal/test_journal.py -k turned",
    ),
    Mutant(
        "a flush leaves out what only the journal has",
        "_manager/verbs.py",
        "        await self._replay.flush_absent(absent)\n",
        "",
        "tests/unit/journal/test_journaled.py -k test_a_flush_brings_to_the_store_also",
    ),
    Mutant(
        "a flush leaves out what comes back into memory meanwhile",
        "_residents/replay.py",
        "        if came:",
        "        if False:",
        "tests/unit/journal/test_journaled.py -k comes_back_into_memory",
    ),
    # --- bot libraries ----------------------------------------------------------------------------
    Mutant(
        "a forged delivery is taken",
        "ext/_platform.py",
        "    if not hmac.compare_digest(given, expected):",
        "    if False:",
        "tests/ext/test_webhooks.py",
    ),
    Mutant(
        "a failing handler of python-telegram-bot leaves its changes",
        "ext/ptb.py",
        "                if failures:\n",
        "                if False:\n",
        "tests/ext/test_ptb.py",
    ),
    Mutant(
        "an update of aiogram is handled outside of a turn",
        "ext/aiogram.py",
        "            return await self._handle(handler, event, data, context.key)",
        "            return await handler(event, data)",
        "tests/ext/test_aiogram.py",
    ),
)
