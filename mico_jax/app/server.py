"""The endpoints as an ASGI application.

    GET  /                     the page
    GET  /health               state, checkpoint, gallery, limits
    POST /embed /search /caption /answer /attention /show /play
    GET  /item/ROW/thumbnail   JPEG
    GET  /item/ROW/player      FLAC or H.264

A question is JSON (`{"text": "a red cube", "k": 5}`), or the bytes of a file
with the rest in the address (`?modality=depth&stated=mm`). Errors are JSON,
`{"error": ...}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mico_jax.app.limits import Limits, Refused
from mico_jax.app.waiting import Line
from mico_jax.config import ConfigError
from mico_jax.failures import TransientError

if TYPE_CHECKING:  # they take seconds to import, and the page comes first
  from mico_jax.app.engine import Engine
  from mico_jax.app.uploads import Question

_FILES = {
  "page.html": "text/html; charset=utf-8",
  "page.css": "text/css; charset=utf-8",
  "page.js": "text/javascript; charset=utf-8",
}
_HEADERS = {
  "Content-Security-Policy": (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' "
    "blob: data:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
  ),
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Permissions-Policy": "camera=(self), microphone=(self)",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
}
_FIELDS = {"text", "modality", "stated", "k", "only", "match"}
_JSON_BYTES = 64 * 1024
_PREVIEWS = 256  # that wait


class Service:
  """The state of a server: the engine, once it is there, and the lines.

  Attributes:
    engine: None while the checkpoint is loaded.
    limits: of requests.
    line: of questions, which the device answers one at a time.
    previews: of pictures and players.
    doing: what goes on while there is no engine.
  """

  def __init__(self, limits: Limits):
    """Has no engine yet."""
    self.limits = limits
    self.engine: Engine | None = None
    self.doing = "loading the checkpoint"
    self.line = Line(limits.waiting, limits.held_bytes)
    self.previews = Line(_PREVIEWS, threads=2)

  def ready(self) -> Engine:
    """The engine.

    Raises:
      Refused: while there is none.
    """
    if self.engine is None:
      raise Refused(503, f"not ready yet: {self.doing}.")
    return self.engine

  def health(self) -> dict[str, Any]:
    """What /health says."""
    engine = self.engine
    state: dict[str, Any] = {
      "status": "loading" if engine is None else "ready",
      "waiting": self.line.taken,
      "most_waiting": self.line.most,
    }
    if engine is None:
      return state | {"doing": self.doing}
    return state | engine.describe()


def make_app(service: Service, hosts: Sequence[str]) -> Any:
  """The application.

  Args:
    service: what answers.
    hosts: names under which the server may be asked; "*": any. Others are
      refused, so that no foreign page reaches it under a name of its own.
  """
  from starlette.applications import Starlette
  from starlette.responses import Response
  from starlette.routing import Route

  folder = pathlib.Path(__file__).parent
  pages = {name: (folder / name).read_bytes() for name in _FILES}

  def page(name: str) -> Callable[..., Any]:
    async def send(request: Any) -> Any:
      del request
      return Response(pages[name], media_type=_FILES[name])

    return send

  async def health(request: Any) -> Any:
    del request
    return _json(service.health())

  routes = [
    Route("/", page("page.html")),
    *(Route(f"/{name}", page(name)) for name in _FILES),
    Route("/health", health),
    *(
      Route(f"/{name}", _asks(service, answer), methods=["POST"])
      for name, answer in _QUESTIONS.items()
    ),
    *(
      Route(f"/item/{{row:int}}/{name}", _item(service, make))
      for name, make in _ITEMS.items()
    ),
  ]
  app = Starlette(
    routes=routes,
    exception_handlers={404: _not_found, 405: _not_found},
  )
  return _Guarded(app, frozenset(hosts))


class _Guarded:
  """Adds the security headers; refuses what pages of others send."""

  def __init__(self, app: Any, hosts: frozenset[str]):
    self._app, self._hosts = app, hosts

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return

    async def headed(message: Any) -> None:
      if message["type"] == "http.response.start":
        added = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
        message["headers"] = [*message.get("headers", ()), *added]
      await send(message)

    headers = dict(scope["headers"])
    origin = headers.get(b"origin", b"").decode("latin-1")
    here = headers.get(b"host", b"").decode("latin-1")
    answer = self._app
    if not (self._hosts & {"*", _name_of(here)}):
      answer = _error(400, "this server is not asked under that name.")
    elif origin and urlsplit(origin).netloc != here:
      answer = _error(403, "pages of other sites may not ask this server.")
    await answer(scope, receive, headed)


def _name_of(host: str) -> str:
  """The name in "NAME:PORT"; "" if there is none."""
  with contextlib.suppress(ValueError):  # of brackets that do not fit
    return urlsplit(f"//{host}").hostname or ""
  return ""


# ------------------------------------------------------------- questions
def _search(engine: Engine, asked: Question, given: dict[str, Any]) -> Any:
  return engine.search(
    asked,
    _integer(given.get("k", 10)),
    _string(given, "only"),
    str(given.get("match", "")).lower() in ("1", "true"),
  )


_QUESTIONS: dict[str, Callable[[Engine, Question, dict[str, Any]], Any]] = {
  "embed": lambda engine, asked, given: engine.embed(asked),
  "search": _search,
  "caption": lambda engine, asked, given: engine.caption(asked),
  "answer": lambda engine, asked, given: engine.answer(asked),
  "attention": lambda engine, asked, given: engine.attention(asked),
  "show": lambda engine, asked, given: engine.shown(asked),
  "play": lambda engine, asked, given: engine.played(asked),
}


_ITEMS: dict[str, Callable[[Engine, int], Any]] = {
  "thumbnail": lambda engine, row: engine.thumbnail(row),
  "player": lambda engine, row: engine.player(row),
}


def _asks(service: Service, answer: Callable[..., Any]) -> Callable[..., Any]:
  """A handler of questions."""

  async def handle(request: Any) -> Any:
    async def work() -> Any:
      engine = service.ready()
      async with service.line.place() as run:
        body = _Body(service.line, service.limits)
        try:
          given = await asyncio.wait_for(
            body.read(request), service.limits.upload_time
          )
          return await run(_answered, engine, answer, given, body)
        finally:
          body.release()

    return await _respond(work)

  return handle


def _answered(
  engine: Engine, answer: Callable[..., Any], given: dict[str, Any], body: _Body
) -> Any:
  asked = engine.question(
    text=_string(given, "text").strip(),
    data=body.data,
    key=_string(given, "modality"),
    stated=_string(given, "stated"),
  )
  return answer(engine, asked, given)


class _Body:
  """The content of a request, as large as it may be.

  Attributes:
    data: the upload.
  """

  def __init__(self, line: Line, limits: Limits):
    self.data = b""
    self._line, self._limits, self._held = line, limits, 0

  async def read(self, request: Any) -> dict[str, Any]:
    """Reads it; returns the fields of the question.

    Raises:
      Refused: for more than is taken, or fields that are none.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    given: dict[str, Any] = dict(request.query_params)
    told = kind.lower() == "application/json"
    most = _JSON_BYTES if told else self._limits.upload_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > most:
      raise _too_large(most)
    parts = []
    async for part in request.stream():
      self._line.hold(len(part))
      self._held += len(part)
      if self._held > most:
        raise _too_large(most)
      parts.append(part)
    data = b"".join(parts)
    if told:
      given |= _fields(data)
    else:
      self.data = data
    if unknown := set(given) - _FIELDS:
      raise Refused(
        400,
        f"unknown field {min(unknown)[:40]!r}; known: "
        f"{', '.join(sorted(_FIELDS))}.",
      )
    return given

  def release(self) -> None:
    """Gives the bytes back."""
    self._line.release(self._held)
    self._held, self.data = 0, b""


def _fields(data: bytes) -> dict[str, Any]:
  try:
    found = json.loads(data)
  except (ValueError, RecursionError) as error:
    raise Refused(400, f"not readable as JSON: {error}") from error
  if not isinstance(found, dict):
    raise Refused(
      400, 'expected a JSON object, such as {"text": "a red cube"}.'
    )
  return found


def _too_large(most: int) -> Refused:
  return Refused(413, f"larger than {most / 2**20:g} MiB, which is the limit.")


def _string(given: dict[str, Any], name: str) -> str:
  value = given.get(name, "")
  if not isinstance(value, str) or "\0" in value:
    raise Refused(400, f"{name} must be a text, got {str(value)[:40]!r}.")
  if not value.isascii():
    try:
      value.encode()
    except UnicodeEncodeError:
      raise Refused(400, f"{name} is no text that UTF-8 holds.") from None
  return value


def _integer(value: Any) -> int:
  with contextlib.suppress(TypeError, ValueError):
    if not isinstance(value, (bool, float)):
      return int(value)
  raise Refused(400, f"k must be an integer, got {str(value)[:40]!r}.")


# ------------------------------------------------------------- items
def _item(service: Service, make: Callable[..., Any]) -> Callable[..., Any]:
  """A handler of an item of the gallery, which its row alone names."""

  async def handle(request: Any) -> Any:
    async def work() -> Any:
      engine = service.ready()
      async with service.previews.place() as run:
        return await run(make, engine, request.path_params["row"])

    return await _respond(work)

  return handle


# ------------------------------------------------------------- answers
async def _respond(work: Callable[[], Any]) -> Any:
  """The response of what `work` gives or raises."""
  from starlette.requests import ClientDisconnect
  from starlette.responses import Response

  from mico_jax.modalities import DecodeError

  try:
    found = await work()
  except Refused as error:
    return _error(error.status, str(error))
  except TimeoutError:
    return _error(408, "the upload took too long.")
  except ClientDisconnect:
    return _error(400, "the upload ended early.")
  except TransientError as error:  # also of a decoder that hangs
    return _error(422, str(error))
  except (DecodeError, ConfigError, ValueError) as error:
    return _error(422, " ".join(str(error).split())[:500])
  except Exception as error:
    traceback.print_exception(error, file=sys.stderr)
    return _error(500, "an error of this server, which its log tells about.")
  if isinstance(found, tuple):
    kind, data = found
    kept = {"Cache-Control": "private, max-age=600"}
    return Response(data, media_type=kind, headers=kept)
  return _json(found)


def _json(value: Any, status: int = 200, **headers: str) -> Any:
  from starlette.responses import Response

  text = json.dumps(value, allow_nan=False)
  return Response(
    text,
    status_code=status,
    media_type="application/json",
    headers={"Cache-Control": "no-store", **headers},
  )


def _error(status: int, message: str) -> Any:
  more = {"Retry-After": "1"} if status in (429, 503) else {}
  # An upload that nobody reads must not be taken for the next request.
  return _json({"error": message}, status, Connection="close", **more)


async def _not_found(request: Any, error: Any) -> Any:
  return _error(error.status_code, f"{request.method}: {error.detail}.")
