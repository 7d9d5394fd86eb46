// What the deployment decides: variables in wrangler.jsonc, secrets by `wrangler secret put`.

export interface Variables {
  /** Secret: the token. Without it there is nothing here but the page. */
  TOKEN?: string;
  /** Where clients that send the token in the header connect; "/": everywhere. */
  ENTRY_PATH?: string;
  /** wss:// URL of a server of the same protocol, for targets that the platform does not let a Worker reach. */
  RELAY?: string;
  /** Secret: the relay's token, if it wants one in the header. */
  RELAY_TOKEN?: string;
  /** "on": several connections in one WebSocket, for paid plans (see README.md). */
  MULTIPLEXED?: string;
  /** Outgoing sockets that may be open at a time for one WebSocket. */
  SOCKET_LIMIT?: string;
  /** KiB that a client may send ahead on each of SOCKET_LIMIT streams of multiplexed mode, 64 to 256; fewer share them. */
  WINDOW_KIB?: string;
  /** MiB of a client's upload that may wait for a slow target. */
  UPLOAD_MIB?: string;
  /** Seconds in which a target has to answer. */
  CONNECT_SECONDS?: string;
  /** Resolver with a JSON interface; it is asked only why a target could not be reached. */
  RESOLVER?: string;
  /** The platform's own addresses, as prefixes with commas. */
  PLATFORM_PREFIXES?: string;
  /** Addresses that no platform lets a Worker reach. */
  PRIVATE_PREFIXES?: string;
}

export interface DeploymentSettings {
  token: string;
  entryPath: string;
  relay: string;
  relayToken: string;
  multiplexed: boolean;
  socketLimit: number;
  /** Bytes. */
  streamWindow: number;
  /** Bytes. */
  uploadLimit: number;
  /** Milliseconds. */
  connectTimeout: number;
  resolver: string;
  platformPrefixes: string[];
  privatePrefixes: string[];
}

/** Published by Cloudflare at https://www.cloudflare.com/ips/. */
const PUBLISHED_PREFIXES =
  "173.245.48.0/20,103.21.244.0/22,103.22.200.0/22,103.31.4.0/22,141.101.64.0/18,108.162.192.0/18,190.93.240.0/20," +
  "188.114.96.0/20,197.234.240.0/22,198.41.128.0/17,162.158.0.0/15,104.16.0.0/13,104.24.0.0/14,172.64.0.0/13," +
  "131.0.72.0/22,2400:cb00::/32,2606:4700::/32,2803:f800::/32,2405:b500::/32,2405:8100::/32,2a06:98c0::/29," +
  "2c0f:f248::/32";

/** RFC 6890. */
const RESERVED_PREFIXES =
  "0.0.0.0/8,10.0.0.0/8,100.64.0.0/10,127.0.0.0/8,169.254.0.0/16,172.16.0.0/12,192.168.0.0/16,224.0.0.0/3," +
  "::/127,fc00::/7,fe80::/10,ff00::/8";

export function readSettings(variables: Variables): DeploymentSettings {
  return {
    token: variables.TOKEN ?? "",
    entryPath: variables.ENTRY_PATH || "/",
    relay: variables.RELAY ?? "",
    relayToken: variables.RELAY_TOKEN ?? "",
    multiplexed: variables.MULTIPLEXED === "on",
    socketLimit: boundedNumber(variables.SOCKET_LIMIT, 6, 1, 1000),
    streamWindow: boundedNumber(variables.WINDOW_KIB, 256, 64, 256) * 1024,
    uploadLimit: boundedNumber(variables.UPLOAD_MIB, 32, 1, 96) * 1024 * 1024,
    connectTimeout: boundedNumber(variables.CONNECT_SECONDS, 10, 1, 60) * 1000,
    resolver: variables.RESOLVER || "https://cloudflare-dns.com/dns-query",
    platformPrefixes: (variables.PLATFORM_PREFIXES || PUBLISHED_PREFIXES).split(","),
    privatePrefixes: (variables.PRIVATE_PREFIXES || RESERVED_PREFIXES).split(","),
  };
}

function boundedNumber(text: string | undefined, usual: number, least: number, most: number): number {
  const value = Number(text || usual);
  return Number.isFinite(value) ? Math.min(most, Math.max(least, Math.floor(value))) : usual;
}
