/** Pieces smaller than this are kept together. */
const SMALL_PIECE = 4096;

/** Parts of this length together, in one buffer; a single part is not copied. */
export function joinBytes(parts: readonly Uint8Array[], length: number): Uint8Array {
  const [only] = parts;
  if (only !== undefined && parts.length === 1) return only;
  const whole = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/**
 * Bytes that wait for somebody slower. They take up no more than a few times their number, whatever they came in: a piece can
 * be the rest of a large message, and each piece that is kept by itself costs some hundred bytes more.
 */
export class ByteQueue {
  #parts: Uint8Array[] = [];
  /** Free bytes behind the last part, in its buffer. */
  #room = 0;

  get isEmpty(): boolean {
    return this.#parts.length === 0;
  }

  /** The buffer is the queue's from then on. */
  push(piece: Uint8Array): void {
    const last = this.#parts.at(-1);
    if (piece.length === 0 && last !== undefined) return;
    if (last === undefined || piece.length >= SMALL_PIECE) {
      this.#parts.push(2 * piece.length < piece.buffer.byteLength ? piece.slice() : piece);
      this.#room = 0;
    } else if (piece.length <= this.#room) {
      const grown = new Uint8Array(last.buffer, last.byteOffset, last.length + piece.length);
      grown.set(piece, last.length);
      this.#parts[this.#parts.length - 1] = grown;
      this.#room -= piece.length;
    } else {
      const fresh = new Uint8Array(SMALL_PIECE);
      fresh.set(piece);
      this.#parts.push(fresh.subarray(0, piece.length));
      this.#room = SMALL_PIECE - piece.length;
    }
  }

  /** The first bytes, about `size` of them or what came in one piece; undefined: there are none. */
  take(size: number): Uint8Array | undefined {
    if (this.isEmpty) return undefined;
    let [count, length] = [0, 0];
    for (const part of this.#parts) {
      if (count > 0 && length + part.length > size) break;
      length += part.length;
      count++;
    }
    const taken = this.#parts.splice(0, count);
    if (this.isEmpty) this.#room = 0;
    return joinBytes(taken, length);
  }

  clear(): void {
    this.#parts = [];
    this.#room = 0;
  }
}
