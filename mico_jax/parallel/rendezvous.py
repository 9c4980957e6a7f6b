"""Processes of a run report to process 0, so that missing ones can be named.

JAX waits minutes for missing processes and then aborts without naming them.
Here process 0 listens on the port after the coordinator's; the other processes
send it a card, and it answers with the cards of all that came.
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
LOST = 75  # exit status, as `run.cluster.status.LOST`: start the run again
_GRACE = 2.0  # seconds in which process 0 answers after its deadline

Card = dict[str, Any]  # facts about a process; "process": its index


def gather(
  place: Place,
  card: Callable[[], Card],
  end: float,
  *,
  longer: float = 0.0,
  done: threading.Event | None = None,
) -> list[Card]:
  """Cards of the processes that came, in their order.

  Args:
    place: of this process.
    card: makes the card of this process when it is sent. Process 0 adds "late"
      to cards with a "clock": its difference to the clock of process 0, in
      seconds.
    end: deadline on the clock of `time.monotonic`.
    longer: seconds to wait beyond `end` for the answer of a process 0 that
      accepted the connection but may have started later.
    done: event that ends the waiting early.
  """
  done = done or threading.Event()
  if place.process == 0:
    return _collect(place, card, end, done)
  return _send(place, card, end, longer, done)


def _collect(
  place: Place, card: Callable[[], Card], end: float, done: threading.Event
) -> list[Card]:
  """Process 0: receives the cards of the others and sends all of them back."""
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
        other = json.loads(file.readline())
        if "clock" in other:  # was read just before the card was sent
          other["late"] = other["clock"] - time.time()
        cards[other["process"]] = other
      waiting.append(connection)
    ordered = [cards[i] for i in sorted(cards)]
    answer = (json.dumps(ordered) + "\n").encode()
    for connection in waiting:
      with contextlib.suppress(OSError), connection:
        connection.sendall(answer)
  return ordered


def _send(
  place: Place,
  card: Callable[[], Card],
  end: float,
  longer: float,
  done: threading.Event,
) -> list[Card]:
  """Another process: sends its card to process 0 and waits for the answer."""
  while time.monotonic() < end and not done.is_set():
    with contextlib.suppress(OSError, ValueError):
      left = max(end - time.monotonic(), 0.1)
      address = (place.address, place.port)
      with socket.create_connection(address, timeout=left) as connection:
        # Process 0 answers at its own deadline.
        connection.settimeout(left + longer + _GRACE)
        connection.sendall((json.dumps(card()) + "\n").encode())
        with connection.makefile("r") as file:
          return json.loads(file.readline())
    done.wait(0.2)
  return [card()]


def missing(place: Place | None, cards: Sequence[Mapping[str, Any]]) -> str:
  """The missing processes, as text.

  Args:
    place: of this process; None: unknown.
    cards: of the processes that came.
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
  """Ends this process if others do not start in time, and names them.

  It only watches while JAX connects: a complete run starts even if the port of
  `Place` is closed.

  Args:
    environment: variables, as for `find_place`.
    limit: seconds to wait.
    end: called with `LOST`; ends the process, which waits inside of JAX.

  Returns:
    A function to call when all processes are connected.
  """
  complete = threading.Event()
  until = time.monotonic() + limit

  def watch() -> None:
    place, cards = None, []
    with contextlib.suppress(ConfigError, OSError, ValueError):
      here = find_place(environment)
      card = {"process": here.process, "host": socket.gethostname()}
      cards = gather(here, lambda: card, until, longer=limit, done=complete)
      place = here
    # JAX may still have to connect after all cards have come.
    if complete.wait(max(until - time.monotonic(), 0.0)):
      return
    failures.say(
      f"mico-jax: error: the run is not complete after {limit:g} s; missing or "
      f"out of reach: {missing(place, cards)}. Start all processes with the "
      f"same command; {START_LIMIT}=SECONDS waits longer."
    )
    if place is not None and place.process == 0:
      # JAX in the other processes ends with this one: let them read first.
      time.sleep(_GRACE / 2)
    end(LOST)

  threading.Thread(target=watch, daemon=True).start()
  return complete.set
