// What both programs in JavaScript have in common: the twin of `_drive.py`, which says more.
"use strict";

const fs = require("node:fs");
const { performance } = require("node:perf_hooks");

const PERCENTILES = [50, 99, 99.9];
const LAST = 10;

const turn = () => new Promise((resolve) => setImmediate(resolve));

const readJob = () => JSON.parse(fs.readFileSync(process.argv[2], "utf8"));

// Return the session after the text.
const changed = (session, text) => ({ n: session.n + 1, last: [...session.last, text].slice(-LAST) });

const numberOf = (user) => Number(user.split(":").pop()) + 1;

function updateOf(user, text, updateId) {
  const id = numberOf(user);
  return {
    update_id: updateId,
    message: {
      message_id: updateId,
      date: 1700000000,
      chat: { id, type: "private", first_name: "Ann" },
      from: { id, is_bot: false, first_name: "Ann" },
      text,
    },
  };
}

// Call `dispatch` with updates, 64 at a time, until the time is over. Each begins on a turn of the loop of its own, as a request
// does: otherwise the steps of 64 would be mixed even where none of them waits for anything.
async function drive(job, dispatch) {
  const durations = [];
  let next = 0;
  const cpu = process.cpuUsage();
  const started = performance.now();
  const until = started + job.seconds * 1000;

  async function call() {
    for (;;) {
      await turn();
      const [user, text] = job.events[next++ % job.events.length];
      const began = performance.now();
      await dispatch(updateOf(user, text, next));
      const ended = performance.now();
      durations.push(ended - began);
      if (ended >= until) return;
    }
  }

  await Promise.all(Array.from({ length: job.in_flight }, call));
  const { user, system } = process.cpuUsage(cpu);
  return { seconds: (performance.now() - started) / 1000, cpu_seconds: (user + system) / 1e6, durations };
}

// Print the one line that the benchmark reads; `counterOf` reads a user's counter back from the store.
async function report(job, { durations, ...times }, counterOf) {
  const ordered = Float64Array.from(durations).sort();
  const percentile = (percent) => ordered[Math.max(0, Math.ceil((ordered.length * percent) / 100) - 1)];
  const latency = Object.fromEntries(PERCENTILES.map((percent) => [`p${percent}`, percentile(percent)]));
  const counters = {};
  for (const user of job.users) counters[user] = await counterOf(user);
  const line = { events: durations.length, ...times, flush_seconds: 0, latency_ms: latency, counters };
  process.stdout.write(JSON.stringify(line) + "\n");
}

module.exports = { changed, drive, numberOf, readJob, report, turn };
