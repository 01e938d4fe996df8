// bottender: updates go to the bot's request handler, as its server gives them; `sync: true`, because otherwise it answers before
// it has handled them. Nothing is faked: no reply is sent.
"use strict";

const {
  MemorySessionStore, MongoSessionStore, RedisSessionStore, TelegramBot,
} = require("bottender");
const { changed, drive, numberOf, readJob, report, turn } = require("./_drive.js");

function makeStore(job) {
  if (job.store === "memory") return new MemorySessionStore(job.variant === "room" ? job.users.length : 500);
  if (job.store === "redis") {
    const { hostname, port, pathname, password } = new URL(job.url);
    const db = Number(pathname.slice(1) || 0);
    const options = { host: hostname, port: Number(port || 6379), db, keyPrefix: `${job.place}:` };
    return new RedisSessionStore(password ? { ...options, password } : options);
  }
  const url = new URL(job.url);
  url.pathname = `/${job.database}`; // the one place where this store takes a database
  return new MongoSessionStore({ url: url.href, collectionName: job.place });
}

async function main() {
  const job = readJob();
  const bot = new TelegramBot({ accessToken: "1:a-token-that-is-never-sent", sessionStore: makeStore(job), sync: true });
  bot.setInitialState({ n: 0, last: [] });
  bot.onEvent(async (context) => {
    const before = context.state;
    if (job.handler === "awaits") await turn();
    context.setState(changed(before, context.event.text));
  });
  const handle = bot.createRequestHandler();
  const measured = await drive(job, (update) => handle(update, {}));
  const read = (user) => bot.sessions.read(`telegram:${numberOf(user)}`);
  await report(job, measured, async (user) => (await read(user))?._state?.n ?? 0);
  process.exit(0); // its stores have no way to close their connection
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
