// Why a target was not reached: one list for every mode.

/** Word of simple mode, and the status of the extended preamble: RFC 1928's codes, and from 0xF0 on this protocol's own. */
export const FAILURE_STATUS = {
  failed: 1,
  "not-allowed": 2,
  "network-unreachable": 3,
  "host-unreachable": 4,
  refused: 5,
  "timed-out": 6,
  "unknown-name": 0xf0,
  "platform-address": 0xf1,
  "socket-limit": 0xf2,
} as const;

export type FailureWord = keyof typeof FAILURE_STATUS;

export class TargetFailure extends Error {
  constructor(
    readonly word: FailureWord,
    reason: string,
  ) {
    super(reason);
  }
}

export function asFailure(error: unknown): TargetFailure {
  if (error instanceof TargetFailure) return error;
  return new TargetFailure("failed", error instanceof Error ? error.message : String(error));
}

export function isFailureWord(word: string): word is FailureWord {
  return Object.hasOwn(FAILURE_STATUS, word);
}
