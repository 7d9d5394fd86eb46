// The first message of a WebSocket says what it carries: one connection, or many.

import type { MessageSocket } from "./messages";
import { MultiplexedSession } from "./multiplexed";
import type { DeploymentSettings } from "./settings";
import { serveSimple } from "./simple";
import { GO_AWAY_PROTOCOL_ERROR, goAwayFrame } from "./yamux";

/** A client may keep connections ready. */
const FIRST_MESSAGE_TIMEOUT = 120_000;

export async function serveFirstMessage(peer: MessageSocket, settings: DeploymentSettings): Promise<void> {
  const first = await peer.next(0, FIRST_MESSAGE_TIMEOUT);
  if (first === undefined) {
    peer.close(1000, "");
  } else if (typeof first === "string") {
    await serveSimple(peer, first, settings);
  } else if (first[0] !== 0) {
    peer.send("ERROR:expected CONNECT:host:port|");
    peer.close(1000, "");
  } else if (!settings.multiplexed) {
    peer.send(goAwayFrame(GO_AWAY_PROTOCOL_ERROR));
    peer.close(1000, "multiplexed mode is off");
  } else {
    await new MultiplexedSession(peer, settings).run(first);
  }
}
