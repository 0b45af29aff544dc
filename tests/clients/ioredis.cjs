// ioredis against a server whose URL is the argument. Run with NODE_PATH where `ioredis` is installed; prints "ok".
const assert = require("node:assert/strict");
const { Redis } = require("ioredis");

async function main(url) {
  const client = new Redis(url, { enableAutoPipelining: true });
  await client.flushall();
  assert.equal(await client.ping(), "PONG");
  assert.equal(await client.set("colour", "blue", "EX", 100), "OK");
  assert.equal(await client.get("colour"), "blue");
  assert.equal(await client.ttl("colour"), 100);
  assert.equal(await client.get("none"), null);
  assert.deepEqual(await client.getBuffer("colour"), Buffer.from("blue"));
  assert.deepEqual(await client.mget("colour", "none"), ["blue", null]);
  assert.equal(await client.incrby("count", 5), 5);
  assert.deepEqual(await client.multi().set("a", "1").incr("a").get("a").exec(), [[null, "OK"], [null, 2], [null, "2"]]);
  const pipeline = client.pipeline();
  for (let n = 0; n < 500; n++) pipeline.set(`many:${n}`, n);
  assert.ok((await pipeline.exec()).every(([error, reply]) => error === null && reply === "OK"));
  const found = new Set();
  for await (const keys of client.scanStream({ match: "many:*", count: 50 })) for (const key of keys) found.add(key);
  assert.equal(found.size, 500);
  assert.equal(await client.dbsize(), 503);
  await assert.rejects(client.lpush("list", "1"), /unknown command 'lpush': bytekv has no lists/i);

  const other = client.duplicate();
  const careful = new Redis(url);
  await careful.watch("a");
  await other.set("a", "changed");
  assert.equal(await careful.multi().set("a", "lost").exec(), null);
  assert.equal(await client.get("a"), "changed");
  await Promise.all([client.quit(), other.quit(), careful.quit()]);
  console.log("ok");
}

main(process.argv[2]).catch((error) => {
  console.error(error);
  process.exit(1);
});
