// Multiplexed mode: many connections in one WebSocket, each with a window that holds its client back.
import { parseTarget } from "./address";
import { joinBytes } from "./bytes";
import { asFailure, FAILURE_STATUS, TargetFailure } from "./failure";
import type { MessageSocket } from "./messages";
import type { DeploymentSettings } from "./settings";
import { LINGER, openTarget, type TargetConnection } from "./target";
import { FRAME_HEADER, GO_AWAY_PROTOCOL_ERROR, YamuxSession, type YamuxStream } from "./yamux";

/** Of a read from the target, and of the frame that carries it, in bytes. */
const FRAME_SIZE = 64 * 1024;
/** Of a write: all that a window lets arrive. */
const LONGEST_WRITE = 256 * 1024;
/** Of a preamble, newline included. */
const LONGEST_PREAMBLE = 512;
const EXTENDED = 2;
const EXTENDED_HEADER = 6;

/** A stream's first bytes. */
interface StreamPreamble {
  target: string;
  /** The client wants to be told what came of it. */
  extended: boolean;
  /** What followed, for the target. */
  early: Uint8Array;
  length: number;
}

export class MultiplexedSession {
  readonly #peer: MessageSocket;
  readonly #settings: DeploymentSettings;
  readonly #yamux: YamuxSession;
  #socketsOpen = 0;

  constructor(peer: MessageSocket, settings: DeploymentSettings) {
    this.#peer = peer;
    this.#settings = settings;
    this.#yamux = new YamuxSession(peer, {
      side: "server",
      window: settings.streamWindow,
      // A stream beyond it is reset before it is acknowledged, so that its client can place it on another session.
      streamLimit: settings.socketLimit,
      onStream: (stream) => {
        this.#serveStream(stream).catch(() => stream.reset());
      },
    });
  }

  /** Runs until the client ends the WebSocket or breaks the protocol. */
  async run(first: Uint8Array): Promise<void> {
    try {
      this.#yamux.receive(first);
      for (;;) {
        const message = await this.#peer.next();
        if (message === undefined) break;
        if (typeof message !== "string") this.#yamux.receive(message);
      }
    } catch {
      this.#yamux.goAway(GO_AWAY_PROTOCOL_ERROR);
    } finally {
      this.#peer.close(1000, "");
      this.#yamux.end();
    }
  }

  async #serveStream(stream: YamuxStream): Promise<void> {
    const preamble = await readPreamble(stream);
    if (preamble === undefined) {
      stream.reset();
      return;
    }
    stream.taken(preamble.length);
    // A socket may outlive its stream, while it is being opened.
    if (this.#socketsOpen >= this.#settings.socketLimit) {
      const limit = `all ${this.#settings.socketLimit} sockets of this session are in use`;
      await refuseStream(stream, preamble, new TargetFailure("socket-limit", limit));
      return;
    }
    this.#socketsOpen++;
    try {
      await this.#serveTarget(stream, preamble);
    } finally {
      this.#socketsOpen--;
    }
  }

  async #serveTarget(stream: YamuxStream, preamble: StreamPreamble): Promise<void> {
    let connection: TargetConnection;
    try {
      const target = parseTarget(preamble.target);
      if (typeof target === "string") throw new TargetFailure("failed", target);
      connection = await openTarget(target, this.#settings);
    } catch (error) {
      await refuseStream(stream, preamble, asFailure(error));
      return;
    }
    try {
      if (preamble.extended) await stream.write(statusAnswer(0, ""));
      const up = carryUp(stream, connection, preamble.early);
      // A target that says nothing, or takes nothing, does not keep its connection longer than the stream.
      const broken = stream.broken.then(() =>
        stream.hasPeerEnded ? Promise.race([up, scheduler.wait(LINGER)]) : undefined,
      );
      await Promise.race([Promise.all([up, carryDown(stream, connection)]), broken]);
    } finally {
      // Nothing after two clean ends; the end of the other direction when one was broken.
      connection.abort();
      stream.reset();
    }
  }
}

async function carryUp(stream: YamuxStream, connection: TargetConnection, early: Uint8Array): Promise<void> {
  let bytes: Uint8Array | undefined = early;
  while (bytes !== undefined) {
    if (bytes.length > 0) {
      await connection.write(bytes);
      stream.taken(bytes.length);
    }
    bytes = await stream.read(LONGEST_WRITE);
  }
  await connection.finish();
}

async function carryDown(stream: YamuxStream, connection: TargetConnection): Promise<void> {
  for (;;) {
    const size = Math.min(await stream.sendable(), FRAME_SIZE);
    const bytes = await connection.read(size, FRAME_HEADER);
    if (bytes === undefined) break;
    await stream.sendInPlace(bytes);
  }
  stream.finish();
}

/** Undefined: it is none. */
async function readPreamble(stream: YamuxStream): Promise<StreamPreamble | undefined> {
  let bytes: Uint8Array = new Uint8Array(0);
  while (bytes.length <= LONGEST_PREAMBLE) {
    const more = await stream.read(LONGEST_PREAMBLE);
    if (more === undefined) return undefined;
    bytes = joinBytes([bytes, more], bytes.length + more.length);
    const extended = bytes[0] === EXTENDED;
    const [start, end] = extended ? [EXTENDED_HEADER, extendedEnd(bytes)] : [0, bytes.indexOf(10)];
    if (end === undefined || end > LONGEST_PREAMBLE) return undefined;
    const length = extended ? end : end + 1;
    if (end < 0 || bytes.length < length) {
      if (bytes.length >= LONGEST_PREAMBLE) return undefined;
      continue;
    }
    const target = new TextDecoder().decode(bytes.subarray(start, end)).replace(/\r+$/, "");
    return { target, extended, early: bytes.subarray(length), length };
  }
  return undefined;
}

/** -1: not there yet; undefined: a version or command that is not known. */
function extendedEnd(bytes: Uint8Array): number | undefined {
  const [, version = 1, command = 1] = bytes;
  if (version !== 1 || command !== 1) return undefined;
  return bytes.length < EXTENDED_HEADER ? -1 : EXTENDED_HEADER + (((bytes[4] ?? 0) << 8) | (bytes[5] ?? 0));
}

async function refuseStream(stream: YamuxStream, preamble: StreamPreamble, failure: TargetFailure): Promise<void> {
  if (!preamble.extended) {
    stream.reset();
    return;
  }
  await stream.write(statusAnswer(FAILURE_STATUS[failure.word], failure.message));
  stream.finish();
  // What the client still sends is thrown away, up to its own end or a window's worth.
  while ((await stream.read(LONGEST_WRITE)) !== undefined) {}
}

function statusAnswer(status: number, reason: string): Uint8Array {
  const text = new Uint8Array(255);
  const { written } = new TextEncoder().encodeInto(reason, text);
  return Uint8Array.of(EXTENDED, status, written, ...text.subarray(0, written));
}
