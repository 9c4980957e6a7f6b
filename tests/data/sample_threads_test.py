"""Threads that decode, at the end of the process that uses them."""

from __future__ import annotations

import queue
import sys

from mico_jax.data.sample_threads import SampleThreads


def test_they_end_with_the_process_without_a_word(monkeypatch):
  threads, made = SampleThreads(1, 60.0), []
  threads.run([lambda guard: lambda: made.append(1)], print, rank=0)
  assert made == [1]
  with monkeypatch.context() as end:  # modules go before the last objects
    end.setattr(sys, "is_finalizing", lambda: True)
    end.setattr(queue, "heappush", None)
    threads.__del__()
