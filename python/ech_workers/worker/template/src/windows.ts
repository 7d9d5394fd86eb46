// The windows of simple mode: each side says in texts how many bytes it takes, since the platform says nothing of what waits.

/** What a side takes at a time, at most: enough for 20 MB/s over 200 ms. */
const LARGEST_WINDOW = 4 * 1024 * 1024;
/** What a client may send before the server has said how much it takes. */
const FIRST_WINDOW = 256 * 1024;
const WINDOW_UPDATE = /^WINDOW:(\d{1,9})$/;

/** Both windows of a connection, as one of its sides sees them. */
export class ByteWindows {
  /** The peer has windows. */
  #inUse = false;
  /** Bytes that the peer takes yet. */
  #room = Number.POSITIVE_INFINITY;
  readonly #size: number;
  /** Bytes that this side takes and has not told the peer of. */
  #untold: number;
  #wake: (() => void) | undefined;

  /** limit: bytes that this side can hold. Texts wait beside those of the window. */
  constructor(limit: number) {
    this.#size = Math.min(LARGEST_WINDOW, limit >> 1);
    this.#untold = this.#size - FIRST_WINDOW;
  }

  /** For the client of a server that has windows: what it says before its request. */
  begin(): string {
    this.#inUse = true;
    this.#room = FIRST_WINDOW;
    this.#untold = this.#size;
    return this.#update();
  }

  /** Takes a text of the peer; false: it is about something else. */
  receive(text: string): boolean {
    const found = WINDOW_UPDATE.exec(text);
    if (found === null) return false;
    // A client says so first.
    if (!this.#inUse) this.#room = 0;
    this.#inUse = true;
    this.#room += Number(found[1]);
    this.#wake?.();
    return true;
  }

  sent(count: number): void {
    this.#room -= count;
  }

  /** Bytes of the peer were passed on. What to tell it: an update for each quarter of a window. */
  taken(count: number): string | undefined {
    if (!this.#inUse) return undefined;
    this.#untold += count;
    if (this.#untold === 0 || 4 * this.#untold < this.#size) return undefined;
    return this.#update();
  }

  /** Resolves to how many bytes may be sent, at least one. */
  async sendable(): Promise<number> {
    while (this.#room <= 0) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.#room;
  }

  /** The connection is over: nobody waits any more. */
  end(): void {
    this.#room = Number.POSITIVE_INFINITY;
    this.#wake?.();
  }

  #update(): string {
    const text = `WINDOW:${this.#untold}`;
    this.#untold = 0;
    return text;
  }
}
