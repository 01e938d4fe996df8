// grammY: updates go to `bot.handleUpdate`, as a webhook gives them; the session is the plugin's, with grammY's own adapters.
// Faked is what `getMe` would have answered; nothing else is asked.
"use strict";

const { Bot, MemorySessionStorage, session } = require("grammy");
const { sequentialize } = require("@grammyjs/runner");
const { RedisAdapter } = require("@grammyjs/storage-redis");
const { MongoDBAdapter } = require("@grammyjs/storage-mongodb");
const { Redis } = require("ioredis");
const { MongoClient } = require("mongodb");
const { changed, drive, numberOf, readJob, report, turn } = require("./_drive.js");

const ME = {
  id: 1, is_bot: true, first_name: "Bot", username: "bench_bot", can_join_groups: false,
  can_read_all_group_messages: false, supports_inline_queries: false, can_connect_to_business: false, has_main_web_app: false,
};

// Return the storage, and what closes its connection.
async function makeStorage(job) {
  if (job.store === "memory") return [new MemorySessionStorage(), async () => {}];
  if (job.store === "redis") {
    const redis = new Redis(job.url, { keyPrefix: `${job.place}:` });
    return [new RedisAdapter({ instance: redis }), () => redis.quit()];
  }
  const client = await new MongoClient(job.url).connect();
  const collection = client.db(job.database).collection(job.place);
  return [new MongoDBAdapter({ collection }), () => client.close()];
}

async function main() {
  const job = readJob();
  const [storage, close] = await makeStorage(job);
  const bot = new Bot("1:a-token-that-is-never-sent", { botInfo: ME });
  if (job.variant === "sequentialize") bot.use(sequentialize((ctx) => String(ctx.chat.id)));
  bot.use(session({ initial: () => ({ n: 0, last: [] }), storage }));
  bot.on("message:text", async (ctx) => {
    const before = ctx.session;
    if (job.handler === "awaits") await turn();
    ctx.session = changed(before, ctx.message.text);
  });
  const measured = await drive(job, (update) => bot.handleUpdate(update));
  await report(job, measured, async (user) => (await storage.read(String(numberOf(user))))?.n ?? 0);
  await close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
