// A WebSocket as something to read from and to write to in turn, both bounded as far as the platform lets us.
import { joinBytes } from "./bytes";
import { ByteWindows } from "./windows";

export type SocketMessage = string | Uint8Array;

/** What may wait in the runtime for a slow client before reading from the target stops. */
const SEND_LIMIT = 256 * 1024;
/** Code of the close: the other end sent more than could be passed on (RFC 6455 section 7.4, IANA's registry). */
const TRY_AGAIN_LATER = 1013;

export class MessageSocket {
  /** True once nothing more can be sent. */
  closed = false;
  readonly windows: ByteWindows;
  #waiting: SocketMessage[] = [];
  #first = 0;
  #bytes = 0;
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
      const message = typeof data === "string" ? data : new Uint8Array(data as ArrayBuffer);
      this.#bytes += message.length;
      this.#waiting.push(message);
      if (this.#bytes > limit) {
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

  /** The next message; undefined when there will be none, or none came within the milliseconds. */
  async next(timeout?: number): Promise<SocketMessage | undefined> {
    if (this.#first === this.#waiting.length && !this.closed) {
      let timer: ReturnType<typeof setTimeout> | undefined;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        if (timeout !== undefined) timer = setTimeout(resolve, timeout);
      });
      this.#wake = undefined;
      clearTimeout(timer ?? null);
    }
    return this.#take();
  }

  /** Binary messages that wait already, joined to `message`, up to about `size` bytes: fewer, larger writes. */
  joined(message: Uint8Array, size: number): Uint8Array {
    const parts = [message];
    let length = message.length;
    for (;;) {
      const following = this.#waiting[this.#first];
      if (!(following instanceof Uint8Array) || length + following.length > size) break;
      this.#take();
      parts.push(following);
      length += following.length;
    }
    return joinBytes(parts, length);
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

  #take(): SocketMessage | undefined {
    const message = this.#waiting[this.#first];
    if (message === undefined) return undefined;
    this.#bytes -= message.length;
    this.#waiting[this.#first++] = "";
    if (this.#first > 64 && 2 * this.#first > this.#waiting.length) {
      this.#waiting = this.#waiting.slice(this.#first);
      this.#first = 0;
    }
    return message;
  }
}
