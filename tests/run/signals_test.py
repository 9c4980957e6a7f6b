from __future__ import annotations

import os
import signal
import threading

import pytest

from mico_jax.run.cluster import signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_sets_the_flag(number, capsys):
  before = signal.getsignal(number)
  with signals.StopSignal() as stop:
    assert not stop.requested
    assert stop.exit_code == 0
    os.kill(os.getpid(), number)
    assert stop.requested
  assert stop.exit_code == 128 + number
  assert signal.getsignal(number) is before
  assert "saving" in capsys.readouterr().err


def test_second_interrupt_stops_at_once():
  with signals.StopSignal() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  assert stop.signum == signal.SIGTERM


def test_outside_the_main_thread():
  stop = signals.StopSignal()

  def work():
    with stop:
      stop.request()

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert stop.exit_code == 143
