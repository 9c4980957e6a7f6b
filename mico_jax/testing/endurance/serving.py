"""A server under many requests and under uploads that are no good.

  python -m mico_jax.testing.endurance.serving --checkpoint runs/demo

starts `mico-jax serve` as a user does and measures the time to the first page
and until the checkpoint answers, 50 searches at once, and the memory (resident,
of the server) before and after `--uploads` malformed uploads: cut off, of
another type, with bytes changed, of huge sizes, names of files. The server has
answered `--first` of these before memory is measured, so that what it loads
once does not count. Prints one line of JSON; fails if an answer is another than
expected.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import io
import json
import pathlib
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from mico_jax.data.build.stages.h264 import H264Options, encoded

_START = 600.0  # seconds that a server may take
_NAMES = ("../../etc/passwd", "/etc/passwd", "C:\\x.png", "file:///etc/passwd",
          "depth:mm:/etc/passwd", "x.tar:../y", "%2e%2e/x", "a\0b")  # fmt: skip


def good_files() -> dict[str, bytes]:
  """Small files that are read, by their query."""
  rng = np.random.default_rng(0)
  picture = io.BytesIO()
  pixels = rng.integers(0, 256, (64, 48, 3), np.uint8)
  Image.fromarray(pixels).save(picture, "PNG")
  sound = io.BytesIO()
  soundfile.write(sound, rng.normal(0, 0.1, 16000), 16000, format="FLAC")
  depth = io.BytesIO()
  np.save(depth, rng.uniform(1, 9, (32, 32)).astype(np.float32))
  frames = ((i / 8, pixels) for i in range(8))
  return {
    "modality=image": picture.getvalue(),
    "modality=audio": sound.getvalue(),
    "modality=video": encoded(frames, 1.0, H264Options(size=0)),
    "modality=depth&stated=m": depth.getvalue(),
  }


def bombs() -> dict[str, list[bytes]]:
  """Small files that claim, or unpack to, much."""
  header = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 0, 0, 0, 0)
  rows = zlib.compress(b"\0" * 5_000_000, 9)
  huge = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data))
    + name
    + data
    + struct.pack(">I", zlib.crc32(name + data))
    for name, data in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
  )
  hours = io.BytesIO()
  soundfile.write(hours, np.zeros(8000 * 3600), 8000, format="FLAC")
  archive = io.BytesIO()
  with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
    file.writestr("x.png", b"\0" * 20_000_000)
  text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (900000, 900000)}"
  npy = b"\x93NUMPY\x01\0" + struct.pack("<H", len(text) + 1) + text + b"\n"
  return {
    "modality=image": [huge, archive.getvalue(), hours.getvalue()],
    "modality=audio": [hours.getvalue(), archive.getvalue()],
    "modality=video": [hours.getvalue(), archive.getvalue(), huge],
    "modality=depth&stated=m": [npy, huge, archive.getvalue()],
  }


def malformed(count: int) -> Iterator[tuple[str, bytes]]:
  """Queries and uploads that cannot be used."""
  rng, good, large = np.random.default_rng(1), good_files(), bombs()
  queries = list(good)
  for i in range(count):
    query = queries[i // 6 % len(queries)]
    data = good[query]
    kind = i % 6
    if kind == 0:
      yield query, data[: int(rng.integers(1, len(data) - 30))]
    elif kind == 1:
      yield query, rng.bytes(int(rng.integers(1, 20_000)))
    elif kind == 2:  # its first bytes are those of its type
      yield query, data[:16] + rng.bytes(2000)
    elif kind == 3:
      yield query, large[query][i // 24 % len(large[query])]
    elif kind == 4:
      yield query, _NAMES[i // 6 % len(_NAMES)].encode()
    else:
      changed = np.frombuffer(data, np.uint8).copy()
      changed[rng.integers(0, len(changed), 40)] ^= 255
      yield query, changed.tobytes()


class Server:
  """A server in a process of its own.

  Attributes:
    page: seconds until its page was there.
    ready: seconds until its checkpoint answered.
  """

  def __init__(self, arguments: list[str]):
    """Starts it.

    Raises:
      RuntimeError: if it ends, or takes too long.
    """
    begun = time.monotonic()
    command = [sys.executable, "-m", "mico_jax", "serve", "--port", "0"]
    self._process = subprocess.Popen(
      [*command, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert self._process.stdout is not None
    address = self._process.stdout.readline().split()
    if not address:
      raise RuntimeError("the server ended.")
    self._port = int(address[0].rpartition(":")[2])
    self.page = self._wait(begun, lambda: self.send("GET", "/")[0] == 200)
    self.ready = self._wait(
      begun, lambda: b'"ready"' in self.send("GET", "/health")[1]
    )

  def _wait(self, begun: float, there: Any) -> float:
    while time.monotonic() - begun < _START:
      with contextlib.suppress(OSError):
        if there():
          return time.monotonic() - begun
      if self._process.poll() is not None:
        raise RuntimeError(f"the server ended: {self._process.returncode}.")
      time.sleep(0.05)
    raise RuntimeError(f"the server was not ready within {_START:g} s.")

  def send(
    self, method: str, path: str, body: bytes | None = None, kind: str = ""
  ) -> tuple[int, bytes]:
    """Status and content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=99)
    headers = {"Content-Type": kind} if kind else {}
    with contextlib.closing(connection):
      connection.request(method, path, body, headers)
      answer = connection.getresponse()
      return answer.status, answer.read()

  def resident(self) -> float:
    """MB of its memory."""
    status = pathlib.Path(f"/proc/{self._process.pid}/status").read_text()
    line = next(x for x in status.splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1e3

  def close(self) -> None:
    """Ends it."""
    self._process.terminate()
    self._process.wait(30)


def measure(server: Server, uploads: int, first: int) -> dict[str, Any]:
  """What the server did; see the module.

  Raises:
    RuntimeError: for an answer that is not expected.
  """
  text = json.dumps({"text": "a red cube", "only": "each"}).encode()
  search = lambda _: server.send("POST", "/search", text, "application/json")[0]
  begun = time.monotonic()
  search(0)
  compiled = time.monotonic() - begun
  begun = time.monotonic()
  with ThreadPoolExecutor(50) as pool:
    answers = collections.Counter(pool.map(search, range(50)))
  together = time.monotonic() - begun
  for query, data in good_files().items():
    if server.send("POST", f"/embed?{query}", data)[0] != 200:
      raise RuntimeError(f"a good upload was refused: {query}")
  before, statuses = 0.0, collections.Counter[int]()
  for i, (query, data) in enumerate(malformed(first + uploads)):
    if i == first:
      before = server.resident()
    status, content = server.send("POST", f"/embed?{query}", data)
    if status not in (200, 400, 413, 422) or b"Traceback" in content:
      raise RuntimeError(f"{status} for {query}: {content[:200]!r}")
    statuses[status] += i >= first
  after = server.resident()
  return {
    "page_seconds": round(server.page, 2),
    "ready_seconds": round(server.ready, 2),
    "first_search_seconds": round(compiled, 2),
    "searches_at_once": dict(answers),
    "searches_seconds": round(together, 2),
    "uploads": dict(statuses),
    "resident_mb": [round(before, 1), round(after, 1)],
    "grown": round(after / before - 1, 4),
  }


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", required=True, metavar="PATH")
  parser.add_argument("--uploads", type=int, default=1000, metavar="N")
  parser.add_argument("--first", type=int, default=200, metavar="N")
  args = parser.parse_args()
  server = Server(["--checkpoint", args.checkpoint])
  try:
    found = measure(server, args.uploads, args.first)
  finally:
    server.close()
  print(json.dumps(found))
  if set(found["searches_at_once"]) != {200}:
    raise SystemExit("a search was refused.")


if __name__ == "__main__":
  main()
