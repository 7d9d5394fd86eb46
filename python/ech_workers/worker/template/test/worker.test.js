// Tries the Worker in the real runtime: `npm test`.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, before, test } from "node:test";
import { build } from "esbuild";
import workerd from "workerd";

const token = "a-token-for-tests";
const entry = "/entry";
let folder, runtime, port, echo;

before(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "worker-"));
  await build({
    entryPoints: ["src/index.ts"],
    outfile: path.join(folder, "worker.js"),
    bundle: true,
    format: "esm",
    external: ["cloudflare:*"],
    loader: { ".html": "text" },
  });
  await writeFile(
    path.join(folder, "config.capnp"),
    `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = .worker), (name = "internet", network = (allow = ["public", "private"]))],
  sockets = [(name = "http", address = "127.0.0.1:0", service = "main", http = ())]);
const worker :Workerd.Worker = (
  modules = [(name = "worker.js", esModule = embed "worker.js")], compatibilityDate = "2026-11-01",
  bindings = [(name = "TOKEN", text = "${token}"), (name = "ENTRY_PATH", text = "${entry}")], globalOutbound = "internet");
`,
  );
  runtime = spawn(workerd.default, ["serve", "config.capnp", "config", "--control-fd=1"], { cwd: folder });
  runtime.stderr.pipe(process.stderr);
  const [line] = await once(runtime.stdout, "data");
  port = JSON.parse(line).port;
  echo = net.createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket)).listen(0, "127.0.0.1");
  await once(echo, "listening");
});

after(async () => {
  // At once: it would wait for its connections.
  runtime.kill("SIGKILL");
  echo.close();
  await rm(folder, { recursive: true });
});

/** The next message. */
async function next(socket) {
  const [event] = await once(socket, "message");
  return event.data;
}

async function open(route, protocol) {
  const socket = new WebSocket(`ws://127.0.0.1:${port}${route}`, protocol);
  socket.binaryType = "arraybuffer";
  await new Promise((resolve, reject) => {
    socket.addEventListener("open", resolve);
    socket.addEventListener("error", () => reject(new Error("no WebSocket")));
  });
  return socket;
}

test("everybody sees the page", async () => {
  const answer = await fetch(`http://127.0.0.1:${port}/`);
  assert.equal(answer.status, 200);
  assert.equal(await answer.text(), await readFile("src/page.html", "utf8"));
});

test("a wrong token sees the page too", async () => {
  await assert.rejects(open(entry, "another-token"));
  await assert.rejects(open("/elsewhere", token));
});

for (const [place, route, protocol] of [
  ["header", entry, token],
  ["path", `/${token}`, undefined],
]) {
  test(`a connection with the token in the ${place}`, async () => {
    const socket = await open(route, protocol);
    socket.send(`CONNECT:127.0.0.1:${echo.address().port}|`);
    assert.equal(await next(socket), "CONNECTED");
    socket.send(new TextEncoder().encode("hello"));
    assert.equal(new TextDecoder().decode(await next(socket)), "hello");
    socket.close();
  });
}

test("a bad target is answered", async () => {
  const socket = await open(entry, token);
  socket.send("OPEN:nowhere");
  assert.match(await next(socket), /^FAILED:failed:bad target/);
});
