// Connections to targets: from here, or by the relay where the platform does not let a Worker through.
import { connect } from "cloudflare:sockets";
import { formatTarget, isWithin, parseIp, type TargetAddress } from "./address";
import { asFailure, TargetFailure } from "./failure";
import { openRelay } from "./relay";
import type { DeploymentSettings } from "./settings";

/** A connection to a target. */
export interface TargetConnection {
  /**
   * The next bytes, at most `size`, in a buffer of their own with `room` free bytes before them; undefined at the end.
   * Rejects when the connection broke.
   */
  read(size: number, room: number): Promise<Uint8Array | undefined>;
  /** Resolves when the bytes were taken. */
  write(bytes: Uint8Array): Promise<void>;
  /** Ends the direction to the target. */
  finish(): Promise<void>;
  /** Ends both. */
  abort(): void;
}

/** Milliseconds that a target has for what a client sent before it went away. */
export const LINGER = 10_000;
const LOOKUP_TIMEOUT = 3000;

/** Names that were found on the platform's own addresses; shared by the requests of an isolate. */
const namesOnPlatform = new Set<string>();
const NAMES_REMEMBERED = 512;

/** Connects to a target. Rejects with a TargetFailure. */
export async function openTarget(target: TargetAddress, settings: DeploymentSettings): Promise<TargetConnection> {
  if (target.port === 25) throw new TargetFailure("not-allowed", "the platform closes port 25 to Workers");
  if (settings.relay !== "" && isOnPlatform(target, settings)) return openRelay(target, settings);
  try {
    return await openSocket(target, settings);
  } catch (error) {
    const failure = asFailure(error);
    if (failure.word !== "failed") throw failure;
    const explained = await explainFailure(target, settings);
    // "failed": nobody could say why, so it may be the platform.
    if (settings.relay !== "" && (explained.word === "platform-address" || explained.word === "failed")) {
      return openRelay(target, settings);
    }
    throw explained;
  }
}

async function openSocket(target: TargetAddress, settings: DeploymentSettings): Promise<TargetConnection> {
  const hostname = target.ip?.length === 16 ? `[${target.host}]` : target.host;
  const socket = connect({ hostname, port: target.port }, { secureTransport: "off", allowHalfOpen: true });
  // Each failure is also seen where it is waited for.
  socket.closed.catch(() => {});
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(new TargetFailure("timed-out", `the target did not answer within ${settings.connectTimeout / 1000} s`));
    }, settings.connectTimeout);
  });
  try {
    await Promise.race([socket.opened, late]);
  } catch (error) {
    socket.close().catch(() => {});
    const message = asFailure(error).message;
    if (/limit|too many/i.test(message)) throw new TargetFailure("socket-limit", message);
    throw error;
  } finally {
    clearTimeout(timer ?? null);
  }
  return socketConnection(socket);
}

function socketConnection(socket: Socket): TargetConnection {
  const reader = socket.readable.getReader({ mode: "byob" });
  const writer = socket.writable.getWriter();
  writer.closed.catch(() => {});
  let writing = 0;
  return {
    async read(size, room) {
      // A new buffer for each read: what was sent from is still in use by the runtime.
      const { value, done } = await reader.read(new Uint8Array(new ArrayBuffer(room + size), room));
      return done ? undefined : value;
    },
    async write(bytes) {
      writing++;
      await writer.write(bytes);
      writing--;
    },
    finish: () => writer.close(),
    abort() {
      // Alone, it closes the connection at once. After cancel() or abort() on the streams it would stay open; but what a
      // target does not take is given up only so.
      socket.close().catch(() => {});
      if (writing > 0) writer.abort().catch(() => {});
    },
  };
}

function isOnPlatform(target: TargetAddress, settings: DeploymentSettings): boolean {
  return target.ip === undefined ? namesOnPlatform.has(target.host) : isWithin(target.ip, settings.platformPrefixes);
}

/** The platform says the same of every target that it cannot reach, so a resolver is asked what there is to know. */
async function explainFailure(target: TargetAddress, settings: DeploymentSettings): Promise<TargetFailure> {
  const addresses = target.ip === undefined ? await lookUp(target.host, settings.resolver) : [target.ip];
  if (addresses === undefined) {
    return new TargetFailure("failed", `the platform could not connect to ${formatTarget(target)}`);
  }
  if (addresses.length === 0) return new TargetFailure("unknown-name", `the name ${target.host} has no address`);
  if (addresses.some((ip) => isWithin(ip, settings.platformPrefixes))) {
    if (target.ip === undefined) {
      if (namesOnPlatform.size >= NAMES_REMEMBERED) namesOnPlatform.clear();
      namesOnPlatform.add(target.host);
    }
    return new TargetFailure(
      "platform-address",
      "the target is on the platform's own addresses, which a Worker cannot reach: give it a relay, or use another server",
    );
  }
  if (addresses.every((ip) => isWithin(ip, settings.privatePrefixes))) {
    return new TargetFailure("not-allowed", "the target is on a private address, which a Worker cannot reach");
  }
  return new TargetFailure("refused", `the target ${formatTarget(target)} refused the connection`);
}

/** The addresses of a name; none if it does not exist, undefined if that cannot be found out. */
async function lookUp(name: string, resolver: string): Promise<Uint8Array[] | undefined> {
  const found: Uint8Array[] = [];
  for (const type of ["A", "AAAA"]) {
    const url = new URL(resolver);
    url.searchParams.set("name", name);
    url.searchParams.set("type", type);
    try {
      const answer = await fetch(url, {
        headers: { accept: "application/dns-json" },
        signal: AbortSignal.timeout(LOOKUP_TIMEOUT),
      });
      if (!answer.ok) {
        await answer.body?.cancel();
        return undefined;
      }
      const { Status, Answer } = (await answer.json()) as { Status: number; Answer?: { data: string }[] };
      if (Status === 3) return [];
      if (Status !== 0) return undefined;
      for (const { data } of Answer ?? []) {
        const ip = parseIp(data);
        if (ip !== undefined) found.push(ip);
      }
    } catch {
      return undefined;
    }
  }
  return found;
}
