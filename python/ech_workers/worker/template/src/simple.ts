// Simple mode: one WebSocket carries one connection. Texts control, binary messages carry.
import { parseTarget } from "./address";
import { asFailure, TargetFailure } from "./failure";
import type { MessageSocket } from "./messages";
import type { DeploymentSettings } from "./settings";
import { LINGER, openTarget, type TargetConnection } from "./target";

/** Of a read from the target, and of the message that carries it, in bytes. */
const READ_SIZE = 64 * 1024;
/** Of a write: what waits goes together, so that a write costs less than the messages that arrive meanwhile. */
const WRITE_SIZE = 1024 * 1024;

const BROKEN = "the target broke the connection";

/** Which of the two protocols the client began. */
interface SimpleRequest {
  /** OPEN: failures have words, and FIN ends one direction. CONNECT: as the deployed servers have it. */
  extended: boolean;
  target: string;
  early: string;
}

export async function serveSimple(peer: MessageSocket, first: string, settings: DeploymentSettings): Promise<void> {
  const request = readRequest(first);
  if (request === undefined) {
    refuseSimple(peer, false, new TargetFailure("failed", "expected CONNECT:host:port|"));
    return;
  }
  let connection: TargetConnection;
  try {
    const target = parseTarget(request.target);
    if (typeof target === "string") throw new TargetFailure("failed", target);
    connection = await openTarget(target, settings);
  } catch (error) {
    refuseSimple(peer, request.extended, asFailure(error));
    return;
  }
  peer.send("CONNECTED");
  const carried = new SimpleConnection(peer, connection, request);
  try {
    // A client that is gone has some time for what it sent last.
    await Promise.race([carried.run(), peer.ended.then(() => scheduler.wait(LINGER))]);
  } finally {
    peer.close(1000, "");
    connection.abort();
  }
}

function readRequest(text: string): SimpleRequest | undefined {
  if (text.startsWith("OPEN:")) return { extended: true, target: text.slice(5), early: "" };
  const bar = text.indexOf("|");
  if (!text.startsWith("CONNECT:") || bar < 0) return undefined;
  return { extended: false, target: text.slice(8, bar), early: text.slice(bar + 1) };
}

function refuseSimple(peer: MessageSocket, extended: boolean, failure: TargetFailure): void {
  peer.send(extended ? `FAILED:${failure.word}:${failure.message}` : `ERROR:${failure.message}`);
  peer.close(1000, "");
}

class SimpleConnection {
  #upEnded = false;
  #upBroken = false;
  #downEnded = false;

  constructor(
    readonly peer: MessageSocket,
    readonly connection: TargetConnection,
    readonly request: SimpleRequest,
  ) {}

  async run(): Promise<void> {
    await Promise.all([this.#carryDown(), this.#carryUp()]);
  }

  /** Target to client. */
  async #carryDown(): Promise<void> {
    const { peer, connection } = this;
    const { extended } = this.request;
    try {
      for (;;) {
        const bytes = await connection.read(Math.min(READ_SIZE, await peer.windows.sendable()), 0);
        if (bytes === undefined) break;
        if (isCloseWord(bytes)) peer.send(bytes.slice(0, 4));
        peer.send(isCloseWord(bytes) ? bytes.slice(4) : bytes);
        await peer.drained();
      }
    } catch {
      // A close without FIN says that the target broke off.
      if (!extended) peer.send("CLOSE");
      peer.close(1011, BROKEN);
      return;
    }
    this.#downEnded = true;
    peer.send(extended ? "FIN" : "CLOSE");
    if (!extended || this.#upEnded) peer.close(1000, "");
    if (this.#upBroken) peer.close(1011, BROKEN);
  }

  /** Client to target. */
  async #carryUp(): Promise<void> {
    const { peer, connection } = this;
    const { extended, early } = this.request;
    try {
      if (early !== "") await connection.write(new TextEncoder().encode(early));
      for (;;) {
        const message = await peer.next(WRITE_SIZE);
        if (message instanceof Uint8Array) {
          // Nothing belongs behind the client's end.
          if (message.length === 0 || this.#upEnded) continue;
          try {
            await connection.write(message);
          } finally {
            peer.taken(message.length);
          }
        } else if (message === "FIN" && extended) {
          if (!this.#upEnded) await connection.finish();
          this.#upEnded = true;
          if (this.#downEnded) break;
        } else if (message === "PING") {
          peer.send("PONG");
        } else if (message === "CLOSE" && !extended) {
          // All has been said; both directions end, as at the deployed servers.
          await connection.finish();
          break;
        } else if (message === undefined || message === "CLOSE") {
          break;
        }
      }
    } catch {
      // The target takes nothing more. What it still says is carried on, and what comes for it is thrown away meanwhile.
      this.#upBroken = true;
      if (this.#downEnded) peer.close(1011, BROKEN);
      for (;;) {
        const message = await peer.next();
        if (message === undefined) break;
        if (typeof message !== "string") peer.taken(message.length);
      }
    }
    peer.close(1000, "");
    // Ends the other direction too, unless it has ended by itself.
    connection.abort();
  }
}

/** Old clients take a binary message of just these bytes for the end. */
function isCloseWord(bytes: Uint8Array): boolean {
  return bytes.length === 5 && new TextDecoder().decode(bytes) === "CLOSE";
}
