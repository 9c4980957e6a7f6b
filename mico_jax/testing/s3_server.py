"""An S3 server of this machine: moto, with writes one after the other.

Amazon's store decides conditions (If-Match, If-None-Match) and writes at once;
moto decides first and writes then, which other requests may get between.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

from mico_jax.testing.ports import free_port

_SERVER = """
import sys, threading
from moto.s3 import responses
from moto.server import main

guard = threading.Lock()
put = responses.S3Response.put_object

def one_by_one(self):
  with guard:
    return put(self)

responses.S3Response.put_object = one_by_one
main(["-H", "127.0.0.1", "-p", sys.argv[1]])
"""


@contextlib.contextmanager
def running(setenv: Callable[[str, str], None]) -> Iterator[str]:
  """Runs the server with an empty bucket.

  Args:
    setenv: sets a variable of the environment, `monkeypatch.setenv` say.

  Yields:
    The bucket, "s3://bucket".
  """
  port = free_port()
  url = f"http://127.0.0.1:{port}"
  process = subprocess.Popen(
    [sys.executable, "-c", _SERVER, str(port)],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    for _ in range(600):
      if process.poll() is not None:
        raise RuntimeError("moto did not start; is moto[server] installed?")
      try:
        request = urllib.request.Request(f"{url}/bucket", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        break
      except urllib.error.URLError:
        time.sleep(0.1)
    setenv("AWS_ENDPOINT_URL", url)
    setenv("AWS_ACCESS_KEY_ID", "a")
    setenv("AWS_SECRET_ACCESS_KEY", "b")
    setenv("AWS_DEFAULT_REGION", "us-east-1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield "s3://bucket"
  finally:
    process.kill()
    process.wait()
