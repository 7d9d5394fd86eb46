// A WebSocket as something to read from and to write to in turn, both bounded as far as the platform lets us.
import { ByteQueue } from "./bytes";
import { ByteWindows } from "./windows";

export type SocketMessage = string | Uint8Array;

/** What may wait in the runtime for a slow client before reading from the target stops. */
const SEND_LIMIT = 256 * 1024;
/** What a message that waits costs beside its bytes, more or less; binary ones that wait behind each other are one. */
const MESSAGE_COST = 256;
/** Code of the close: the other end sent more than could be passed on (RFC 6455 section 7.4, IANA's registry). */
const TRY_AGAIN_LATER = 1013;

export class MessageSocket {
  /** True once nothing more can be sent. */
  closed = false;
  readonly windows: ByteWindows;
  #waiting: (string | ByteQueue)[] = [];
  #first = 0;
  /** Bytes that wait, and the cost of their messages. */
  #held = 0;
  #wake: (() => void) | undefined;
  #end: () => void = () => {};
  /** Resolves once nothing more comes or goes; what has come before can still be taken. */
  readonly ended = new Promise<void>((resolve) => {
    this.#end = resolve;
  });

  /**
   * limit: bytes that may wait for `next`. Events cannot be held back, so a socket that brings more is closed; a peer that has
   * windows brings no more.
   */
  constructor(
    readonly socket: WebSocket,
    limit: number,
  ) {
    this.windows = new ByteWindows(limit);
    // Since the compatibility date 2026-03-17 binary messages are Blobs unless this is said before accept().
    socket.binaryType = "arraybuffer";
    socket.addEventListener("message", ({ data }) => {
      if (this.closed) return;
      // Not in turn: what the peer takes says nothing about what it sends.
      if (typeof data === "string" && this.windows.receive(data)) {
        // The first of a client is answered.
        this.taken(0);
        return;
      }
      this.#keep(typeof data === "string" ? data : new Uint8Array(data as ArrayBuffer));
      if (this.#held > limit) {
        // A part of it would be taken for the whole.
        this.#waiting = [];
        this.#first = 0;
        this.close(TRY_AGAIN_LATER, "more was sent than the other side takes");
      }
      this.#wake?.();
    });
    socket.addEventListener("close", () => this.close(1000, ""));
    socket.addEventListener("error", () => this.close(1011, ""));
    socket.accept();
  }

  /**
   * The next message; undefined when there will be none, or none came within the milliseconds. Binary messages that wait behind
   * it are joined to it, up to about `size` bytes: fewer, larger writes.
   */
  async next(size = 0, timeout?: number): Promise<SocketMessage | undefined> {
    if (this.#first === this.#waiting.length && !this.closed) {
      let timer: ReturnType<typeof setTimeout> | undefined;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        if (timeout !== undefined) timer = setTimeout(resolve, timeout);
      });
      this.#wake = undefined;
      clearTimeout(timer ?? null);
    }
    return this.#take(size);
  }

  /** Sends, unless the socket is closed. A buffer that was sent may not be changed. */
  send(message: SocketMessage): void {
    if (this.closed) return;
    if (typeof message !== "string") this.windows.sent(message.length);
    try {
      this.socket.send(message);
    } catch {
      this.close(1011, "");
    }
  }

  /** Bytes of the peer were passed on. */
  taken(count: number): void {
    const update = this.windows.taken(count);
    if (update !== undefined) this.send(update);
  }

  /** Waits while too much is on its way to a slow client. Runtimes that do not tell how much that is do not wait. */
  async drained(): Promise<void> {
    for (
      let pause = 1;
      !this.closed && (this.socket.bufferedAmount ?? 0) > SEND_LIMIT;
      pause = Math.min(2 * pause, 50)
    ) {
      await scheduler.wait(pause);
    }
  }

  close(code: number, reason: string): void {
    if (this.closed) return;
    this.closed = true;
    try {
      this.socket.close(code, reason);
    } catch {
      // It was gone already.
    }
    this.windows.end();
    this.#wake?.();
    this.#end();
  }

  /** So much waits for a client that does not read that nothing should be added which it can do without. */
  isCongested(): boolean {
    return (this.socket.bufferedAmount ?? 0) > 4 * SEND_LIMIT;
  }

  #keep(message: SocketMessage): void {
    this.#held += message.length;
    const last = this.#waiting.at(-1);
    if (typeof message !== "string" && last instanceof ByteQueue) {
      last.push(message);
      return;
    }
    this.#held += MESSAGE_COST;
    if (typeof message === "string") {
      this.#waiting.push(message);
    } else {
      const bytes = new ByteQueue();
      bytes.push(message);
      this.#waiting.push(bytes);
    }
  }

  #take(size: number): SocketMessage | undefined {
    const waiting = this.#waiting[this.#first];
    if (waiting === undefined) return undefined;
    const message = typeof waiting === "string" ? waiting : waiting.take(size);
    this.#held -= message?.length ?? 0;
    if (waiting instanceof ByteQueue && !waiting.isEmpty) return message;
    this.#held -= MESSAGE_COST;
    this.#waiting[this.#first++] = "";
    if (this.#first > 64 && 2 * this.#first > this.#waiting.length) {
      this.#waiting = this.#waiting.slice(this.#first);
      this.#first = 0;
    }
    return message;
  }
}
