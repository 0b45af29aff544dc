// node-redis against a server whose URL is the argument. Run with NODE_PATH where `redis` is installed; prints "ok".
const assert = require("node:assert/strict");
const { createClient, WatchError } = require("redis");

async function main(url) {
  for (const RESP of [2, 3]) {
    const client = createClient({ url, RESP });
    await client.connect();
    await client.flushAll();
    assert.equal(await client.ping(), "PONG");
    assert.equal(await client.set("colour", "blue", { expiration: { type: "EX", value: 100 } }), "OK");
    assert.equal(await client.get("colour"), "blue");
    assert.equal(await client.ttl("colour"), 100);
    assert.equal(await client.get("none"), null);
    assert.deepEqual(await client.mGet(["colour", "none"]), ["blue", null]);
    assert.equal(await client.incrBy("count", 5), 5);
    assert.equal(await client.set("count", "x", { condition: "NX" }), null);
    const replies = await client.multi().set("a", "1").incr("a").get("a").exec();
    assert.deepEqual(replies, ["OK", 2, "2"]);
    const many = await Promise.all(Array.from({ length: 500 }, (_, n) => client.set(`many:${n}`, `${n}`)));
    assert.ok(many.every((reply) => reply === "OK"));
    const found = new Set();
    for await (const keys of client.scanIterator({ MATCH: "many:*", COUNT: 50 })) for (const key of keys) found.add(key);
    assert.equal(found.size, 500);
    assert.equal(await client.dbSize(), 503);
    await assert.rejects(client.sendCommand(["LPUSH", "list", "1"]), /unknown command 'LPUSH': bytekv has no lists/);

    const other = client.duplicate();
    await other.connect();
    await client.watch("a");
    await other.set("a", "changed");
    await assert.rejects(client.multi().set("a", "lost").exec(), WatchError);
    await other.close();
    await client.close();
  }
  console.log("ok");
}

main(process.argv[2]).catch((error) => {
  console.error(error);
  process.exit(1);
});
