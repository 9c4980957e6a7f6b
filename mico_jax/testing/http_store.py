"""A small HTTP server of files in memory, with ranges, delays and faults."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@contextlib.contextmanager
def serving(
  files: Mapping[str, bytes],
  *,
  latency: float = 0.0,
  fault: Callable[[int], str] = lambda _: "",
) -> Iterator[str]:
  """Serves files at the address that it gives: "http://127.0.0.1:PORT".

  Args:
    files: name -> content.
    latency: seconds before each answer.
    fault: told the number of each GET (from 0); gives "503" | "429" | "403" |
      "truncated" | "".
  """
  lock, count = threading.Lock(), [0]

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
      """Says nothing."""

    def do_HEAD(self) -> None:
      """Says how large a file is."""
      self._answer(body=False)

    def do_GET(self) -> None:
      """Sends a file or a part of it."""
      self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
      time.sleep(latency)
      what = ""
      if body:
        with lock:
          what = fault(count[0])
          count[0] += 1
      data = files.get(self.path.lstrip("/"))
      if data is None or what.isdigit():
        self.send_response(404 if data is None else int(what))
        self.send_header("Content-Length", "0")
        self.end_headers()
        return
      found = _RANGE.fullmatch(self.headers.get("Range") or "")
      if found:
        start = int(found[1])
        end = min(int(found[2] or len(data)), len(data) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
        data = data[start : end + 1]
      else:
        self.send_response(200)
      self.send_header("Content-Length", str(len(data)))
      self.send_header("ETag", '"1"')
      self.send_header("Last-Modified", "Sun, 29 Nov 2026 10:00:00 GMT")
      self.end_headers()
      if body and what == "truncated":
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True
      elif body:
        self.wfile.write(data)

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield f"http://127.0.0.1:{server.server_address[1]}"
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
