"""Servers behind the tunnel, as one program: `python -m harness.targets FOLDER` prints their ports as a JSON line.

http: GET /bytes/N, PUT or POST /sink (answers with size and sha256), GET /slow/N (N bytes, one every 50 ms), GET /cut/N (promises twice N bytes), GET /files/PATH (from FOLDER), GET /request (the request head as it came).
echo: sends back what it gets, and half-closes when the client does.
digest: reads until the client's half-close, then answers with size and sha256.
banner: speaks first, then echoes.
silent: takes connections and says nothing.
reset: resets each connection after the first bytes.
"""

import asyncio
import hashlib
import json
import mimetypes
import random
import socket
import struct
import sys
from pathlib import Path

BLOCK = 256 << 10
BYTES = "application/octet-stream"
BANNER = b"220 ready\r\n"
# Of a length that no record, frame or window divides, so that a piece in the wrong place changes the sum.
PATTERN = random.Random(1).randbytes((1 << 20) + 7)


def pattern(size: int) -> "list[bytes]":
    """What GET /bytes/SIZE brings, in pieces."""
    whole, rest = divmod(size, len(PATTERN))
    return [PATTERN] * whole + [PATTERN[:rest]]


def pattern_sha256(size: int) -> str:
    digest = hashlib.sha256()
    for piece in pattern(size):
        digest.update(piece)
    return digest.hexdigest()


async def serve_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, folder: Path) -> None:
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])
        }
        kind, _, rest = path.lstrip("/").partition("?")[0].partition("/")
        if method in ("PUT", "POST"):
            if headers.get("expect", "").lower() == "100-continue":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await respond(writer, await digest_of(reader, int(headers["content-length"])))
        elif kind == "bytes":
            await begin(writer, 200, int(rest))
            if method != "HEAD":
                for piece in pattern(int(rest)):
                    for start in range(0, len(piece), BLOCK):
                        writer.write(memoryview(piece)[start : start + BLOCK])
                        await writer.drain()
        elif kind == "slow":
            await begin(writer, 200, int(rest))
            for _ in range(int(rest)):
                writer.write(b".")
                await asyncio.sleep(0.05)
        elif kind == "cut":
            await begin(writer, 200, 2 * int(rest))
            writer.write(b"".join(pattern(int(rest))))
            return
        elif (
            kind == "files" and (file := (folder / rest).resolve()).is_file() and file.is_relative_to(folder.resolve())
        ):
            content = file.read_bytes()
            await begin(writer, 200, len(content), mimetypes.guess_type(file)[0] or BYTES)
            writer.write(content)
        elif kind == "request":
            await respond(writer, head)
        else:
            await begin(writer, 404, 0)
        await writer.drain()
        if headers.get("connection", "").lower() == "close":
            return


async def begin(writer: asyncio.StreamWriter, status: int, length: int, kind: str = BYTES) -> None:
    writer.write(f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode())
    await writer.drain()


async def respond(writer: asyncio.StreamWriter, body: bytes) -> None:
    await begin(writer, 200, len(body))
    writer.write(body)


async def digest_of(reader: asyncio.StreamReader, length: int | None) -> bytes:
    """Reads `length` bytes, or up to the end."""
    digest = hashlib.sha256()
    size = 0
    while length is None or size < length:
        piece = await reader.read(BLOCK if length is None else min(BLOCK, length - size))
        if not piece:
            break
        digest.update(piece)
        size += len(piece)
    return json.dumps({"bytes": size, "sha256": digest.hexdigest()}).encode()


async def serve_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(BLOCK):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()


async def serve_banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(BANNER)
    await serve_echo(reader, writer)


async def serve_digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await digest_of(reader, None))
    await writer.drain()


async def serve_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(BLOCK):
        pass


async def serve_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(BLOCK)
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def main(folder: Path) -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve_http(reader, writer, folder)

    services = {
        "http": http,
        "echo": serve_echo,
        "banner": serve_banner,
        "digest": serve_digest,
        "silent": serve_silent,
        "reset": serve_reset,
    }
    ports = {}
    for name, service in services.items():

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, service: object = service) -> None:
            assert callable(service)
            try:
                await service(reader, writer)
            except (OSError, asyncio.IncompleteReadError):
                pass  # the client went away
            finally:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=1 << 20, backlog=2048)
        ports[name] = server.sockets[0].getsockname()[1]
    print(json.dumps({"event": "listening", **ports}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
