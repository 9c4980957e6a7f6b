"""The processes of a run meet, so that those that are missing can be named.

JAX waits for the others for minutes and then aborts without saying for whom.
Here process 0 listens on the port behind the coordinator's; the others tell it
who they are, and it tells all of them who came.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mico_jax import failures
from mico_jax.config import ConfigError
from mico_jax.parallel.place import Place, find_place

START_LIMIT = "MICO_JAX_START_LIMIT"
START_SECONDS = 120
LOST = 75  # as `run.cluster.status.LOST`: start it again
_GRACE = 2.0  # seconds that process 0 has to answer at its end

Card = dict[str, Any]  # what a process tells of itself; "process": its number


def gather(
  place: Place,
  card: Callable[[], Card],
  end: float,
  *,
  longer: float = 0.0,
  done: threading.Event | None = None,
) -> list[Card]:
  """The cards of the processes that came, in their order.

  Args:
    place: of this process.
    card: makes its card, at the moment when it is told; process 0 adds "late"
      to those with a "clock": how far that is from its own, in seconds.
    end: of waiting, on the clock of `time.monotonic`.
    longer: seconds that one waits beyond `end` for the answer of a process 0
      that is there, which may have started later.
    done: ends the waiting early.
  """
  done = done or threading.Event()
  if place.process == 0:
    return _collect(place, card, end, done)
  return _tell(place, card, end, longer, done)


def _collect(
  place: Place, card: Callable[[], Card], end: float, done: threading.Event
) -> list[Card]:
  """Process 0: takes the cards of the others and sends all of them back."""
  cards = {place.process: card()}
  waiting: list[socket.socket] = []
  with socket.create_server(("", place.port), backlog=1024) as server:
    server.settimeout(0.5)
    while len(cards) < len(place.hosts) and not done.is_set():
      if time.monotonic() > end:
        break
      try:
        connection, _ = server.accept()
      except TimeoutError:
        continue
      connection.settimeout(5)
      with (
        contextlib.suppress(OSError, ValueError, KeyError, TypeError),
        connection.makefile("r") as file,
      ):
        told = json.loads(file.readline())
        # Told at the moment it arrives, so that clocks can be compared.
        if "clock" in told:
          told["late"] = told["clock"] - time.time()
        cards[told["process"]] = told
      waiting.append(connection)
    found = [cards[i] for i in sorted(cards)]
    answer = (json.dumps(found) + "\n").encode()
    for connection in waiting:
      with contextlib.suppress(OSError), connection:
        connection.sendall(answer)
  return found


def _tell(
  place: Place,
  card: Callable[[], Card],
  end: float,
  longer: float,
  done: threading.Event,
) -> list[Card]:
  """Another process: tells process 0 and waits for its answer."""
  while time.monotonic() < end and not done.is_set():
    with contextlib.suppress(OSError, ValueError):
      left = max(end - time.monotonic(), 0.1)
      address = (place.address, place.port)
      with socket.create_connection(address, timeout=left) as connection:
        # Process 0 answers at its own end.
        connection.settimeout(left + longer + _GRACE)
        connection.sendall((json.dumps(card()) + "\n").encode())
        with connection.makefile("r") as file:
          return json.loads(file.readline())
    done.wait(0.2)
  return [card()]


def missing(place: Place | None, cards: Sequence[Mapping[str, Any]]) -> str:
  """Who has not come, in words.

  Args:
    place: of this process; None: unknown.
    cards: of those that came.
  """
  if place is None:
    return "at least one other process"
  seen = {card["process"]: card for card in cards}
  if 0 not in seen:
    return f"{place.hosts[0]} ({place.address}, port {place.port})"
  names = [
    name if name == f"process {i}" else f"process {i} ({name})"
    for i, name in enumerate(place.hosts)
    if i not in seen
  ]
  more = f" and {len(names) - 8} more" if len(names) > 8 else ""
  return f"{', '.join(names[:8])}{more}" if names else "none: JAX hangs"


def guard(
  environment: Mapping[str, str],
  limit: float,
  *,
  end: Callable[[int], Any] = os._exit,
) -> Callable[[], None]:
  """Ends this process if the others do not start in time, naming them.

  It only watches beside JAX: with a closed port a complete run starts still.

  Args:
    environment: variables, as for `find_place`.
    limit: seconds.
    end: called with `LOST`; ends the process, which waits inside of JAX.

  Returns:
    To be called when the others are there.
  """
  there = threading.Event()
  until = time.monotonic() + limit

  def watch() -> None:
    place, cards = None, []
    with contextlib.suppress(ConfigError, OSError, ValueError):
      found = find_place(environment)
      own = {"process": found.process, "host": socket.gethostname()}
      cards = gather(found, lambda: own, until, longer=limit, done=there)
      place = found
    # When all have come, JAX has still to connect.
    if there.wait(max(until - time.monotonic(), 0.0)):
      return
    failures.say(
      f"mico-jax: error: the run is not complete after {limit:g} s; missing or "
      f"out of reach: {missing(place, cards)}. Start all processes with the "
      f"same command; {START_LIMIT}=SECONDS waits longer."
    )
    if place is not None and place.process == 0:
      time.sleep(_GRACE / 2)  # with it ends JAX in those that read the answer
    end(LOST)

  threading.Thread(target=watch, daemon=True).start()
  return there.set
