// Targets that the platform does not let a Worker reach: another server of this protocol connects to them.
import { formatTarget, type TargetAddress } from "./address";
import { isFailureWord, TargetFailure } from "./failure";
import { MessageSocket } from "./messages";
import type { DeploymentSettings } from "./settings";
import type { TargetConnection } from "./target";

/** Connects to a target through the relay. Rejects with a TargetFailure. */
export async function openRelay(target: TargetAddress, settings: DeploymentSettings): Promise<TargetConnection> {
  const { peer, extended, hasWindows } = await reachRelay(settings);
  if (hasWindows) peer.send(peer.windows.begin());
  peer.send(extended ? `OPEN:${formatTarget(target)}` : `CONNECT:${formatTarget(target)}|`);
  // The relay has its own limit on the target; ours is for a relay that says nothing.
  const answer = await peer.next(0, 2 * settings.connectTimeout);
  if (answer === "CONNECTED") return relayConnection(peer, extended);
  peer.close(1000, "");
  if (typeof answer !== "string") throw new TargetFailure("failed", "the relay did not answer");
  const [kind, word = "", ...reason] = answer.split(":");
  if (kind === "FAILED" && isFailureWord(word)) throw new TargetFailure(word, `relay: ${reason.join(":")}`);
  throw new TargetFailure("failed", `relay: ${answer.slice(answer.indexOf(":") + 1)}`);
}

interface RelaySocket {
  peer: MessageSocket;
  extended: boolean;
  hasWindows: boolean;
}

async function reachRelay(settings: DeploymentSettings): Promise<RelaySocket> {
  const headers = new Headers({ Upgrade: "websocket" });
  if (settings.relayToken !== "") headers.set("Sec-WebSocket-Protocol", settings.relayToken);
  let response: Response;
  try {
    response = await fetch(settings.relay.replace(/^ws/, "http"), {
      headers,
      signal: AbortSignal.timeout(settings.connectTimeout),
    });
  } catch (error) {
    throw new TargetFailure("failed", `the relay cannot be reached: ${error instanceof Error ? error.message : error}`);
  }
  if (response.webSocket === null) {
    await response.body?.cancel();
    throw new TargetFailure("failed", `the relay does not accept the token or the path (status ${response.status})`);
  }
  const features = (response.headers.get("X-Stream-Extensions") ?? "").split(",").map((feature) => feature.trim());
  const extended = features[0] === "1" && features.includes("simple-open");
  return {
    peer: new MessageSocket(response.webSocket, settings.uploadLimit),
    extended,
    hasWindows: extended && features.includes("simple-window"),
  };
}

function relayConnection(peer: MessageSocket, extended: boolean): TargetConnection {
  let finished = false;
  let ended = false;
  /** Of a message that was larger than what was asked for. */
  let rest: Uint8Array | undefined;
  const endWhenBoth = () => {
    if (finished && ended) peer.close(1000, "");
  };
  return {
    async read(size, room) {
      while (!ended) {
        const message = rest ?? (await peer.next());
        rest = undefined;
        if (message instanceof Uint8Array) {
          if (message.length === 0) continue;
          if (message.length > size) rest = message.subarray(size);
          const framed = new Uint8Array(room + Math.min(size, message.length));
          framed.set(message.subarray(0, size), room);
          peer.taken(framed.length - room);
          return framed.subarray(room);
        }
        if (message === "PING") {
          peer.send("PONG");
        } else if (extended ? message === "FIN" : message === "CLOSE") {
          ended = true;
        } else if (message === undefined || message === "CLOSE") {
          throw new TargetFailure("failed", "the relay cut the connection");
        }
      }
      endWhenBoth();
      return undefined;
    },
    async write(bytes) {
      for (let rest = bytes; rest.length > 0; ) {
        const size = await peer.windows.sendable();
        if (peer.closed) throw new TargetFailure("failed", "the relay cut the connection");
        peer.send(rest.subarray(0, size));
        rest = rest.subarray(size);
      }
      await peer.drained();
    },
    async finish() {
      finished = true;
      // A relay of the deployed protocol cannot be told: it would end both directions.
      if (extended) peer.send("FIN");
      endWhenBoth();
    },
    abort: () => peer.close(1000, ""),
  };
}
