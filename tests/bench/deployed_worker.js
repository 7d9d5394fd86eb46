// A Worker as the deployed scripts are: simple mode, reads of the default size, nothing waits for anything.
import { connect } from "cloudflare:sockets";

export default {
  async fetch(request, variables) {
    const token = request.headers.get("Sec-WebSocket-Protocol");
    if (request.headers.get("Upgrade") !== "websocket" || token !== variables.TOKEN) return new Response("It works");
    const [client, server] = Object.values(new WebSocketPair());
    server.binaryType = "arraybuffer";
    server.accept();
    serve(server).catch(() => server.close());
    return new Response(null, { status: 101, webSocket: client, headers: { "Sec-WebSocket-Protocol": token } });
  },
};

async function serve(socket) {
  let writer;
  socket.addEventListener("message", async ({ data }) => {
    if (typeof data !== "string") {
      await writer?.write(new Uint8Array(data));
    } else if (data.startsWith("CONNECT:")) {
      const [host, port] = data.slice(8).split("|")[0].split(":");
      const target = connect({ hostname: host, port: Number(port) });
      await target.opened;
      writer = target.writable.getWriter();
      socket.send("CONNECTED");
      const reader = target.readable.getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        socket.send(value);
      }
      socket.send("CLOSE");
      socket.close();
    } else if (data === "CLOSE") {
      await writer?.close();
    }
  });
}
