// What everybody sees who has no token.
import page from "./page.html";

export function showPage(request: Request): Response {
  const status = new URL(request.url).pathname === "/" ? 200 : 404;
  return new Response(request.method === "HEAD" ? null : page, {
    status,
    headers: { "Content-Type": "text/html; charset=utf-8", "Cache-Control": "public, max-age=3600" },
  });
}
