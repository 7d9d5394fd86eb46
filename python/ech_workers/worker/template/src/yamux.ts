// yamux (the specification of hashicorp/yamux), without a word about what carries it or what it carries.
import { ByteQueue } from "./bytes";

/** In front of each frame: version, type, flags, stream, length. */
export const FRAME_HEADER = 12;
/** Both directions of a stream begin with it. */
export const INITIAL_WINDOW = 256 * 1024;
/**
 * Payload of the longest frame that our client sends: with its header it fills a message of 64 KiB, four TLS records less the
 * header of the message.
 */
const LONGEST_PAYLOAD = 4 * 16384 - 8 - FRAME_HEADER;
/** A stream may have so many windows at most: its own, and those of streams that are not open. */
const MOST_SHARES = 6;
export const GO_AWAY_NORMAL = 0;
export const GO_AWAY_PROTOCOL_ERROR = 1;

const TYPE_DATA = 0;
const TYPE_WINDOW_UPDATE = 1;
const TYPE_PING = 2;
const TYPE_GO_AWAY = 3;
const FLAG_SYN = 1;
const FLAG_ACK = 2;
const FLAG_FIN = 4;
const FLAG_RST = 8;

/** What carries a session's bytes. */
export interface YamuxCarrier {
  /** The buffer is the carrier's from then on. */
  send(bytes: Uint8Array): void;
  /** Resolves when there is room for more data. */
  drained(): Promise<void>;
  /** Too much waits to be sent already for answers that a peer can do without. */
  isCongested(): boolean;
}

export interface YamuxOptions {
  side: "client" | "server";
  /** Bytes that the peer may send ahead on each of as many streams as there can be, once it has used up the first 256 KiB. */
  window: number;
  /** Streams of the peer at a time; more are reset. */
  streamLimit: number;
  onStream: (stream: YamuxStream) => void;
}

/** The peer broke the protocol: the session is over. */
export class YamuxViolation extends Error {}

/** The stream was reset, or its session ended. */
export class StreamReset extends Error {}

export class YamuxSession {
  readonly options: YamuxOptions;
  /** The peer takes no new streams. */
  goingAway = false;
  readonly #carrier: YamuxCarrier;
  readonly #streams = new Map<number, YamuxStream>();
  #nextStream: number;
  readonly #header = new Uint8Array(FRAME_HEADER);
  #headerLength = 0;
  /** What is still to come of the present data frame, and for whom; undefined: nobody any more. */
  #payloadLeft = 0;
  #payloadStream: YamuxStream | undefined;
  #payloadEnds = false;

  constructor(carrier: YamuxCarrier, options: YamuxOptions) {
    this.#carrier = carrier;
    this.options = options;
    this.#nextStream = options.side === "client" ? 1 : 2;
  }

  get streamCount(): number {
    return this.#streams.size;
  }

  /** Of a stream that uses it. Fewer streams share what all could have: a larger window is waited for less often. */
  get streamWindow(): number {
    const { window, streamLimit } = this.options;
    return Math.floor(window * Math.min(MOST_SHARES, Math.max(1, streamLimit / this.#streams.size)));
  }

  /** Opens a stream; the peer learns of it with the first frame. */
  openStream(): YamuxStream {
    const stream = new YamuxStream(this, this.#nextStream, true);
    this.#nextStream += 2;
    this.#streams.set(stream.id, stream);
    return stream;
  }

  /** Takes what came, whatever its borders. Throws YamuxViolation. The bytes are the session's from then on. */
  receive(bytes: Uint8Array): void {
    let at = 0;
    while (at < bytes.length) {
      if (this.#payloadLeft > 0) {
        const piece = bytes.subarray(at, at + this.#payloadLeft);
        at += piece.length;
        this.#payloadLeft -= piece.length;
        this.#payloadStream?.arrived(piece);
        if (this.#payloadLeft === 0) this.#endPayload();
        continue;
      }
      const part = bytes.subarray(at, at + FRAME_HEADER - this.#headerLength);
      this.#header.set(part, this.#headerLength);
      this.#headerLength += part.length;
      at += part.length;
      if (this.#headerLength === FRAME_HEADER) {
        this.#headerLength = 0;
        this.#handleHeader();
      }
    }
  }

  /** Tells the peer that there will be no new streams (GO_AWAY_NORMAL), or that it broke the protocol. */
  goAway(code: number): void {
    this.#carrier.send(goAwayFrame(code));
  }

  /** The carrier is gone. */
  end(): void {
    for (const stream of this.#streams.values()) stream.resetByPeer();
    this.#streams.clear();
  }

  sendFrame(type: number, flags: number, stream: number, value: number): void {
    this.#carrier.send(writeHeader(new Uint8Array(FRAME_HEADER), type, flags, stream, value));
  }

  async sendData(framed: Uint8Array): Promise<void> {
    this.#carrier.send(framed);
    await this.#carrier.drained();
  }

  forget(stream: YamuxStream): void {
    this.#streams.delete(stream.id);
  }

  #handleHeader(): void {
    const view = new DataView(this.#header.buffer);
    const [version, type, flags] = [view.getUint8(0), view.getUint8(1), view.getUint16(2)];
    const [id, value] = [view.getUint32(4), view.getUint32(8)];
    if (version !== 0 || type > TYPE_GO_AWAY) throw new YamuxViolation("unknown version or type");
    if (type === TYPE_PING) {
      if (flags & FLAG_SYN && !this.#carrier.isCongested()) this.sendFrame(TYPE_PING, FLAG_ACK, 0, value);
    } else if (type === TYPE_GO_AWAY) {
      this.goingAway = true;
    } else {
      this.#handleStreamFrame(type, flags, id, value);
    }
  }

  #handleStreamFrame(type: number, flags: number, id: number, value: number): void {
    if (flags & FLAG_SYN) this.#acceptStream(id);
    const stream = this.#streams.get(id);
    if (flags & FLAG_RST) {
      stream?.resetByPeer();
      this.#streams.delete(id);
    }
    if (type === TYPE_WINDOW_UPDATE) {
      stream?.allowed(value);
      if (flags & FLAG_FIN) stream?.endedByPeer();
      return;
    }
    stream?.charge(value);
    this.#payloadLeft = value;
    this.#payloadStream = flags & FLAG_RST ? undefined : stream;
    this.#payloadEnds = (flags & FLAG_FIN) !== 0;
    if (value === 0) this.#endPayload();
  }

  #endPayload(): void {
    if (this.#payloadEnds) this.#payloadStream?.endedByPeer();
    this.#payloadStream = undefined;
  }

  #acceptStream(id: number): void {
    const ours = this.options.side === "client" ? 1 : 0;
    if (id === 0 || id % 2 === ours || this.#streams.has(id)) throw new YamuxViolation(`stream ${id} cannot be opened`);
    if (this.#streams.size >= this.options.streamLimit) {
      this.sendFrame(TYPE_WINDOW_UPDATE, FLAG_RST, id, 0);
      return;
    }
    const stream = new YamuxStream(this, id, false);
    this.#streams.set(id, stream);
    this.sendFrame(TYPE_WINDOW_UPDATE, FLAG_ACK, id, 0);
    this.options.onStream(stream);
  }
}

export class YamuxStream {
  #sendWindow = INITIAL_WINDOW;
  #receiveWindow = INITIAL_WINDOW;
  /** Arrived, and not reported as taken. */
  #untaken = 0;
  /** Of the receive window when it was last given back. */
  #size: number;
  readonly #arrived = new ByteQueue();
  #peerEnded = false;
  #weEnded = false;
  #isReset = false;
  #wakeReader: (() => void) | undefined;
  #wakeWriter: (() => void) | undefined;
  #break: () => void = () => {};
  /** Resolves when the stream is reset by either side, or its session ends. */
  readonly broken = new Promise<void>((resolve) => {
    this.#break = resolve;
  });

  constructor(
    readonly session: YamuxSession,
    readonly id: number,
    private isNew: boolean,
  ) {
    this.#size = session.options.window;
  }

  /** The peer has ended its direction. */
  get hasPeerEnded(): boolean {
    return this.#peerEnded;
  }

  /** What arrived, up to about `size` bytes; undefined at the end. Rejects with StreamReset. */
  async read(size: number): Promise<Uint8Array | undefined> {
    while (this.#arrived.isEmpty) {
      if (this.#peerEnded) return undefined;
      if (this.#isReset) throw new StreamReset();
      await new Promise<void>((resolve) => {
        this.#wakeReader = resolve;
      });
    }
    return this.#arrived.take(size);
  }

  /** Bytes were passed on: the peer may send as many more. */
  taken(count: number): void {
    this.#untaken -= count;
    // Whole messages: what is left of a window goes in a frame of its own, which costs nearly what a long one does.
    const unit = Math.min(LONGEST_PAYLOAD, this.session.options.window >> 1);
    const open = this.#receiveWindow + this.#untaken;
    const half = Math.floor(this.#size / 2 / unit);
    if (this.#isReset || this.#peerEnded || Math.floor((this.#size - open) / unit) < half) return;
    this.#size = this.session.streamWindow;
    const units = Math.floor((this.#size - open) / unit);
    if (units < 1) return;
    this.#receiveWindow += units * unit;
    this.session.sendFrame(TYPE_WINDOW_UPDATE, this.#openingFlag(), this.id, units * unit);
  }

  /** Resolves to how many bytes may be sent, at least one. Rejects with StreamReset. */
  async sendable(): Promise<number> {
    while (this.#sendWindow === 0 && !this.#isReset) {
      await new Promise<void>((resolve) => {
        this.#wakeWriter = resolve;
      });
    }
    if (this.#isReset) throw new StreamReset();
    return this.#sendWindow;
  }

  /** Sends bytes, not more than `sendable`, that have FRAME_HEADER free bytes before them in their buffer. */
  async sendInPlace(bytes: Uint8Array): Promise<void> {
    if (this.#isReset) throw new StreamReset();
    this.#sendWindow -= bytes.length;
    const framed = new Uint8Array(bytes.buffer, bytes.byteOffset - FRAME_HEADER, bytes.length + FRAME_HEADER);
    await this.session.sendData(writeHeader(framed, TYPE_DATA, this.#openingFlag(), this.id, bytes.length));
  }

  /** Sends bytes as the window allows. */
  async write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const length = Math.min(bytes.length - at, await this.sendable());
      const framed = new Uint8Array(FRAME_HEADER + length);
      framed.set(bytes.subarray(at, at + length), FRAME_HEADER);
      at += length;
      await this.sendInPlace(framed.subarray(FRAME_HEADER));
    }
  }

  /** Ends our direction. */
  finish(): void {
    if (this.#weEnded || this.#isReset) return;
    this.#weEnded = true;
    // In a frame of its own: hashicorp's implementation now and then loses it otherwise.
    this.session.sendFrame(TYPE_WINDOW_UPDATE, FLAG_FIN | this.#openingFlag(), this.id, 0);
    this.#forgetWhenOver();
  }

  /** Ends both directions at once. */
  reset(): void {
    if (this.#isReset || (this.#weEnded && this.#peerEnded)) return;
    this.session.sendFrame(TYPE_WINDOW_UPDATE, FLAG_RST, this.id, 0);
    this.session.forget(this);
    this.resetByPeer();
  }

  /** From the session: a data frame of this length was announced. */
  charge(length: number): void {
    if (length > this.#receiveWindow) throw new YamuxViolation(`stream ${this.id}: the window was overrun`);
    this.#receiveWindow -= length;
    this.#untaken += length;
  }

  arrived(bytes: Uint8Array): void {
    if (this.#isReset || this.#peerEnded) return;
    this.#arrived.push(bytes);
    this.#wakeReader?.();
  }

  allowed(count: number): void {
    this.#sendWindow = Math.min(this.#sendWindow + count, 0xffffffff);
    this.#wakeWriter?.();
  }

  endedByPeer(): void {
    this.#peerEnded = true;
    this.#wakeReader?.();
    this.#forgetWhenOver();
  }

  resetByPeer(): void {
    this.#isReset = true;
    // After both directions have ended there is nothing to take back.
    if (!this.#peerEnded) this.#arrived.clear();
    this.#wakeReader?.();
    this.#wakeWriter?.();
    this.#break();
  }

  #openingFlag(): number {
    const flag = this.isNew ? FLAG_SYN : 0;
    this.isNew = false;
    return flag;
  }

  #forgetWhenOver(): void {
    if (this.#weEnded && this.#peerEnded) this.session.forget(this);
  }
}

export function goAwayFrame(code: number): Uint8Array {
  return writeHeader(new Uint8Array(FRAME_HEADER), TYPE_GO_AWAY, 0, 0, code);
}

function writeHeader(frame: Uint8Array, type: number, flags: number, stream: number, value: number): Uint8Array {
  const view = new DataView(frame.buffer, frame.byteOffset, FRAME_HEADER);
  view.setUint16(0, type);
  view.setUint16(2, flags);
  view.setUint32(4, stream);
  view.setUint32(8, value);
  return frame;
}
