// The Worker's yamux over one TCP connection, following a plan that another implementation follows at the other end.
// POST {port, side, window, plan}: a session with 127.0.0.1:port; the answer says of each stream what happened.
import { connect } from "cloudflare:sockets";
import { StreamReset, YamuxSession, type YamuxStream } from "../../python/ech_workers/worker/template/src/yamux";

interface StreamPlan {
  ours: boolean;
  /** Sent before our half-close. */
  bytes: number;
  /** Milliseconds in which nothing is read. */
  stopped: number;
  /** Received bytes after which we reset the stream; -1: never. */
  resetAfter: number;
}

interface Job {
  port: number;
  side: "client" | "server";
  window: number;
  /** Whether we end the session, or wait for the peer to. */
  ends: boolean;
  plan: StreamPlan[];
}

const PIECE = 65536;
const SEND_LIMIT = 256 * 1024;

export default {
  async fetch(request): Promise<Response> {
    return Response.json(await runJob((await request.json()) as Job));
  },
} satisfies ExportedHandler;

async function runJob(job: Job): Promise<object> {
  const socket = connect({ hostname: "127.0.0.1", port: job.port }, { allowHalfOpen: true, secureTransport: "off" });
  await socket.opened;
  const writer = socket.writable.getWriter();
  let waiting = 0;
  const carrier = {
    send(bytes: Uint8Array) {
      waiting += bytes.length;
      writer.write(bytes).then(
        () => {
          waiting -= bytes.length;
        },
        () => {},
      );
    },
    async drained() {
      while (waiting > SEND_LIMIT) await scheduler.wait(1);
    },
    isCongested: () => waiting > 4 * SEND_LIMIT,
  };
  const ours = job.plan.filter((plan) => plan.ours);
  const theirs = job.plan.filter((plan) => !plan.ours);
  const following: Promise<object>[] = [];
  const session = new YamuxSession(carrier, {
    side: job.side,
    window: job.window,
    streamLimit: job.plan.length,
    onStream(stream) {
      const plan = theirs[(stream.id - (job.side === "client" ? 2 : 1)) / 2];
      if (plan !== undefined) following.push(follow(stream, plan));
    },
  });
  const reader = socket.readable.getReader({ mode: "byob" });
  const reading = (async () => {
    for (;;) {
      const { value, done } = await reader.read(new Uint8Array(PIECE)).catch(() => ({ value: undefined, done: true }));
      if (done || value === undefined) break;
      session.receive(value);
    }
    session.end();
  })();
  for (const plan of ours) following.push(follow(session.openStream(), plan));
  while (following.length < job.plan.length) await scheduler.wait(5);
  const streams = await Promise.all(following);
  if (job.ends) {
    // What was sent last is on its way to a peer that may not have read it.
    while (waiting > 0) await scheduler.wait(1);
    await scheduler.wait(300);
    await writer.close();
  }
  const left = session.streamCount;
  await reading;
  socket.close().catch(() => {});
  return { streams, left };
}

async function follow(stream: YamuxStream, plan: StreamPlan): Promise<object> {
  const outcome = { resetByUs: false, resetByPeer: false, ended: false };
  const [sent, received] = [new crypto.DigestStream("SHA-256"), new crypto.DigestStream("SHA-256")];
  let [sentBytes, receivedBytes] = [0, 0];
  const write = async () => {
    const digest = sent.getWriter();
    try {
      while (sentBytes < plan.bytes) {
        const piece = new Uint8Array(Math.min(plan.bytes - sentBytes, 1 + Math.floor(Math.random() * PIECE)));
        crypto.getRandomValues(piece);
        await stream.write(piece);
        sentBytes += piece.length;
        await digest.write(piece);
      }
      stream.finish();
    } catch (error) {
      if (!(error instanceof StreamReset)) throw error;
    }
    await digest.close();
  };
  const read = async () => {
    const digest = received.getWriter();
    try {
      await scheduler.wait(plan.stopped);
      for (;;) {
        if (plan.resetAfter >= 0 && receivedBytes >= plan.resetAfter) {
          outcome.resetByUs = true;
          stream.reset();
          break;
        }
        const piece = await stream.read(PIECE);
        if (piece === undefined) {
          outcome.ended = true;
          break;
        }
        receivedBytes += piece.length;
        await digest.write(piece.slice());
        stream.taken(piece.length);
      }
    } catch (error) {
      if (!(error instanceof StreamReset)) throw error;
      outcome.resetByPeer = true;
    }
    await digest.close();
  };
  await Promise.all([write(), read()]);
  return {
    id: stream.id,
    sent: sentBytes,
    sent_sha256: hex(await sent.digest),
    received: receivedBytes,
    received_sha256: hex(await received.digest),
    ended: outcome.ended,
    reset_by_us: outcome.resetByUs,
    reset_by_peer: outcome.resetByPeer,
  };
}

function hex(digest: ArrayBuffer): string {
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
