// The Worker: a page for everybody, a WebSocket for those with the token.
import { MessageSocket } from "./messages";
import { showPage } from "./page";
import { serveFirstMessage } from "./session";
import { type DeploymentSettings, readSettings, type Variables } from "./settings";
import { findToken } from "./token";

export default {
  async fetch(request, variables): Promise<Response> {
    const settings = readSettings(variables);
    // Another method with these header fields would end in an error page of the runtime.
    const isUpgrade = request.method === "GET" && request.headers.get("Upgrade")?.toLowerCase() === "websocket";
    if (!isUpgrade) return showPage(request);
    const place = await findToken(request, settings);
    if (place === undefined) return showPage(request);
    const [client, server] = Object.values(new WebSocketPair()) as [WebSocket, WebSocket];
    const peer = new MessageSocket(server, settings.uploadLimit);
    serveFirstMessage(peer, settings).catch(() => peer.close(1011, ""));
    return new Response(null, { status: 101, webSocket: client, headers: answerHeaders(request, settings, place) });
  },
} satisfies ExportedHandler<Variables>;

function answerHeaders(request: Request, settings: DeploymentSettings, place: "header" | "path"): Headers {
  const headers = new Headers({
    "X-Stream-Extensions": settings.multiplexed
      ? "1, connect, half-close, simple-open, simple-window, long-messages, worker"
      : "1, simple-open, simple-window, long-messages, worker",
  });
  if (place === "header") headers.set("Sec-WebSocket-Protocol", request.headers.get("Sec-WebSocket-Protocol") ?? "");
  return headers;
}
