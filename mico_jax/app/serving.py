"""Starting and ending a server."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mico_jax import extras
from mico_jax.app.limits import Limits
from mico_jax.app.server import Service, make_app
from mico_jax.config import ConfigError

if TYPE_CHECKING:
  from mico_jax.app.engine import Engine

_IDLE = 10  # seconds after which a connection without a request is closed
_STOP = 3  # seconds that requests may take to end


def check_installed() -> None:
  """Checks that the extra is there.

  Raises:
    ConfigError: if it is not.
  """
  try:
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
  except ImportError as error:
    raise ConfigError(
      f"serve needs {error.name}: {extras.install('app')}."
    ) from None


def listen(host: str, port: int) -> socket.socket:
  """A socket that takes connections.

  Args:
    host: name or address.
    port: 0: any that is free.

  Raises:
    ConfigError: if it cannot be had.
  """
  opened = None
  try:
    family, kind, _, _, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    opened = socket.socket(family, kind)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind(address)
    opened.listen(256)
  except (OSError, OverflowError) as error:
    if opened is not None:
      opened.close()
    raise ConfigError(
      f"cannot listen on {host}:{port}: {error}; give another --host or --port."
    ) from error
  return opened


def is_local(host: str) -> bool:
  """Whether only this machine reaches an address."""
  if host == "localhost":
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def allowed_hosts(host: str) -> list[str]:
  """Names under which a server may be asked."""
  if is_local(host):
    return ["localhost", "127.0.0.1", "::1", host]
  return ["*"]


def serve(
  load: Callable[[Service], Engine],
  opened: socket.socket,
  *,
  hosts: list[str],
  limits: Limits,
  ready: Callable[[Engine], None],
) -> None:
  """Answers requests until the process is told to end.

  The page is there at once; the checkpoint is loaded meanwhile.

  Args:
    load: makes the engine, in a thread of its own.
    opened: socket that listens.
    hosts: see `make_app`.
    limits: of requests.
    ready: called when the engine is there.

  Raises:
    Exception: that `load` raises.
  """
  service = Service(limits)
  server = make_server(service, hosts)
  failed: list[BaseException] = []

  def prepare() -> None:
    try:
      service.engine = load(service)
      ready(service.engine)
    except BaseException as error:
      failed.append(error)
      server.should_exit = True

  threading.Thread(target=prepare, name="mico-load", daemon=True).start()
  try:
    server.run(sockets=[opened])
  finally:
    service.line.close()
    service.previews.close()
  if failed:
    raise failed[0]


def make_server(service: Service, hosts: list[str]) -> Any:
  """A uvicorn server of a service."""
  import uvicorn

  config = uvicorn.Config(
    make_app(service, hosts),
    log_level="warning",
    access_log=False,
    server_header=False,
    lifespan="off",
    ws="none",
    loop="asyncio",
    http="h11",
    limit_concurrency=1000,
    timeout_keep_alive=_IDLE,
    timeout_graceful_shutdown=_STOP,
  )
  return uvicorn.Server(config)
