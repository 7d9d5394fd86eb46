// Where a client wants to go, and IP addresses.

export interface TargetAddress {
  /** A name, an IPv4 address, or an IPv6 address without brackets. */
  host: string;
  port: number;
  /** 4 or 16 bytes; undefined for a name. */
  ip: Uint8Array | undefined;
}

const LONGEST_TARGET = 511;
const IPV4 = /^(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?!$)|$)){4}$/;
const NAME = /^(?=.{1,254}$)(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?$/;
// inet_aton's other spellings of an address: 127.1, 0x7f.1, 2130706433 (WHATWG URL, "ends in a number").
const NUMERIC_END = /(?:^|\.)(?:\d+|0[xX][0-9A-Fa-f]*)\.?$/;

/** Reads `host:port`, an IPv6 address in brackets. A string says what is wrong with it. */
export function parseTarget(text: string): TargetAddress | string {
  if (text.length > LONGEST_TARGET) return "bad target: longer than 511 bytes";
  const parts = /^(?:\[([^\]]*)\]|([^:[\]]*)):(\d{1,5})$/.exec(text);
  if (parts === null) return "bad target: expected host:port";
  const port = Number(parts[3]);
  if (port < 1 || port > 65535) return "bad target: the port is not a number between 1 and 65535";
  if (parts[1] !== undefined) {
    const ip = parseIpv6(parts[1]);
    return ip === undefined ? "bad target: not an IPv6 address" : { host: formatIp(ip), port, ip };
  }
  const host = parts[2] ?? "";
  const ip = parseIpv4(host);
  if (ip !== undefined) return { host, port, ip };
  if (NUMERIC_END.test(host)) return "bad target: an IPv4 address is written a.b.c.d";
  if (!NAME.test(host)) return "bad target: neither a name nor an address";
  return { host, port, ip: undefined };
}

/** As a target is written on the wire. */
export function formatTarget(target: TargetAddress): string {
  return target.host.includes(":") ? `[${target.host}]:${target.port}` : `${target.host}:${target.port}`;
}

export function parseIp(text: string): Uint8Array | undefined {
  return parseIpv4(text) ?? parseIpv6(text);
}

/** Whether an address is in one of the prefixes, as in 192.0.2.0/24. */
export function isWithin(ip: Uint8Array, prefixes: readonly string[]): boolean {
  return prefixes.some((prefix) => {
    const [base = "", length = ""] = prefix.trim().split("/");
    const network = parseIp(base);
    const bits = Number(length);
    return network?.length === ip.length && sharedBits(network, ip) >= bits;
  });
}

function parseIpv4(text: string): Uint8Array | undefined {
  return IPV4.test(text) ? Uint8Array.from(text.split("."), Number) : undefined;
}

/** An IPv4-mapped address gives the 4 bytes that it stands for. */
function parseIpv6(text: string): Uint8Array | undefined {
  if (!text.includes(":")) return undefined;
  let canonical: string;
  try {
    canonical = new URL(`http://[${text}]/`).hostname.slice(1, -1);
  } catch {
    return undefined;
  }
  const [head = "", tail] = canonical.split("::");
  const before = head === "" ? [] : head.split(":");
  const after = tail === undefined || tail === "" ? [] : tail.split(":");
  const zeros: string[] = Array(8 - before.length - after.length).fill("0");
  const bytes = new Uint8Array(16);
  [...before, ...zeros, ...after].forEach((group, at) => {
    const value = Number.parseInt(group, 16);
    bytes[2 * at] = value >> 8;
    bytes[2 * at + 1] = value & 255;
  });
  const mapped = bytes.subarray(0, 10).every((byte) => byte === 0) && bytes[10] === 255 && bytes[11] === 255;
  return mapped ? bytes.slice(12) : bytes;
}

function formatIp(ip: Uint8Array): string {
  if (ip.length === 4) return ip.join(".");
  const groups = Array.from({ length: 8 }, (_, at) => (((ip[2 * at] ?? 0) << 8) | (ip[2 * at + 1] ?? 0)).toString(16));
  return groups.join(":");
}

function sharedBits(one: Uint8Array, other: Uint8Array): number {
  for (let at = 0; at < one.length; at++) {
    const difference = (one[at] ?? 0) ^ (other[at] ?? 0);
    if (difference !== 0) return 8 * at + Math.clz32(difference) - 24;
  }
  return 8 * one.length;
}
