// Who may use this server.
import type { DeploymentSettings } from "./settings";

/** How a request showed the token; undefined: it did not. */
export type TokenPlace = "header" | "path" | undefined;

export async function findToken(request: Request, settings: DeploymentSettings): Promise<TokenPlace> {
  if (settings.token === "") return undefined;
  const { pathname } = new URL(request.url);
  const inHeader = await isSecret(request.headers.get("Sec-WebSocket-Protocol") ?? "", settings.token);
  const inPath = await isSecret(withoutSlashes(pathname), settings.token);
  if (inPath) return "path";
  return inHeader && (settings.entryPath === "/" || pathname === settings.entryPath) ? "header" : undefined;
}

/** Without those at both ends. A regular expression would take time in proportion to the square of their number. */
function withoutSlashes(path: string): string {
  let [start, end] = [0, path.length];
  while (path[start] === "/") start++;
  while (end > start && path[end - 1] === "/") end--;
  return path.slice(start, end);
}

/** Takes the same time for every text of one length: digests are compared, all of them. */
async function isSecret(text: string, secret: string): Promise<boolean> {
  const encoder = new TextEncoder();
  const [one, other] = await Promise.all(
    [text, secret].map((each) => crypto.subtle.digest("SHA-256", encoder.encode(each))),
  );
  const [left, right] = [new Uint8Array(one as ArrayBuffer), new Uint8Array(other as ArrayBuffer)];
  let difference = 0;
  for (let at = 0; at < left.length; at++) difference |= (left[at] ?? 0) ^ (right[at] ?? 0);
  return difference === 0;
}
