"""Stores, threads that read and decode, and the buffers of batches."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from mico_jax.checkpoint.workdir import claim_workdir
from mico_jax.config import Config, ConfigError, DataConfig, SourceConfig
from mico_jax.data.batch_maker import BatchMaker
from mico_jax.data.batches import Buffers, empty_batch
from mico_jax.data.guard import StalledDecoder
from mico_jax.data.sample_threads import SampleThreads
from mico_jax.data.samples import ArrayShape
from mico_jax.data.sources import open_sources
from mico_jax.data.stalled import Stalled
from mico_jax.data.storage import RemoteError, Span, Storage
from mico_jax.data.storage.ahead import Ahead
from mico_jax.data.storage.cached_file import BLOCK
from mico_jax.data.storage.io_threads import IoThreads, Task
from mico_jax.data.storage.stores import FsspecStore, ObstoreStore
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.failures import TransientError
from mico_jax.modalities import DecodeError
from mico_jax.testing import http_store, slow_store
from mico_jax.testing.tiny_data import (
  config_of,
  manifest_source,
  write_manifest,
)

DATA = np.random.default_rng(0).bytes(200_000)


@pytest.fixture(params=["obstore", "fsspec"])
def client(request, monkeypatch):
  if request.param == "obstore":
    pytest.importorskip("obstore")
    made = ObstoreStore()
  else:
    pytest.importorskip("aiohttp")
    made = FsspecStore()
  monkeypatch.setattr(
    "mico_jax.data.storage.remote_reads.store_of", lambda scheme: made
  )
  monkeypatch.setattr("mico_jax.failures.delays", lambda _: iter([0.01] * 9))
  return request.param


def test_ranges_over_http_with_faults(client, tmp_path):
  kinds = ("503", "429", "truncated")
  fault = lambda n: kinds[n % 3] if n % 2 else ""
  with http_store.serving({"a/x.bin": DATA}, fault=fault) as root:
    store = Storage(cache_dir=str(tmp_path), timeout=10)
    for start, size in (
      (0, 10),
      (70_000, 50_000),
      (199_990, 100),
      (5, 199_000),
    ):
      data = store.read_range(f"{root}/a/x.bin", start, size)
      assert data == DATA[start : start + size]
    assert store.read(f"{root}/a/x.bin") == DATA
    assert store.stat(f"{root}/a/x.bin").size == len(DATA)
    with store.open(f"{root}/a/x.bin") as file:
      file.seek(-5, 2)
      assert file.read() == DATA[-5:]
    with pytest.raises(DecodeError, match="nope"):
      store.read(f"{root}/nope")
  # What is in the cache is read without the store.
  assert store.read_range(f"{root}/a/x.bin", 70_000, 9) == DATA[70_000:70_009]


def test_a_refusal_stays(client, tmp_path):
  if client == "fsspec":
    pytest.skip("its HTTP client has no error of its own for it")
  with http_store.serving({"x": DATA}, fault=lambda _: "403") as root:
    store = Storage(cache_dir=str(tmp_path), timeout=10)
    with pytest.raises(DecodeError, match="refused") as error:
      store.read(f"{root}/x")
  assert "\n" not in str(error.value)


def test_a_call_that_hangs_costs_a_thread_not_the_pool():
  threads, hang = IoThreads(2), threading.Event()
  for _ in range(4):
    with pytest.raises(RemoteError, match=r"x: no answer within 0\.1 s"):
      threads.call(hang.wait, 0.1, "x")
  assert threads.call(lambda: 7, 5, "x") == 7
  with pytest.raises(ZeroDivisionError):
    threads.call(lambda: 1 // 0, 5, "x")
  hang.set()
  assert [threads.call(lambda i=i: i, 5, "x") for i in range(20)] == [
    *range(20)
  ]


def test_spans_wait_for_room_and_are_forgotten():
  held = threading.Semaphore(0)
  done: list[int] = []

  def read(span: Span) -> bytes:
    held.acquire()
    done.append(span.offset)
    return b"x" * span.size

  ahead = Ahead(IoThreads(8), room=1000)
  for i in range(5):
    ahead.plan(i, lambda i=i: [Span("f", 400 * i, 400)], read)
    time.sleep(0.05)
  assert ahead.take(Span("f", 400, 400)) is not None
  assert ahead.take(Span("f", 410, 10))[1] == 400
  assert ahead.take(Span("f", 390, 20)) is None  # in two of them
  assert ahead.take(Span("f", 800, 400)) is None  # no room yet
  for _ in range(5):
    held.release()
  for i in range(5):
    deadline = time.monotonic() + 5
    while ahead.take(Span("f", 400 * i, 400)) is None:
      assert time.monotonic() < deadline
      time.sleep(0.01)
    task, _ = ahead.take(Span("f", 400 * i, 400))
    assert len(task.future.result(5)) == 400
    ahead.done(i)
    assert ahead.take(Span("f", 400 * i, 400)) is None
  assert ahead._held == 0
  assert not ahead._pieces


class _AtOnce(IoThreads):
  """Makes calls while they are handed over."""

  def submit(self, call):
    task = Task(call)
    task.run()
    return task


def test_a_file_that_is_there_at_once_blocks_nobody():
  ahead = Ahead(_AtOnce(), room=1000)
  plan = threading.Thread(
    target=ahead.plan,
    args=(0, lambda: [Span("f")], lambda span: b"abc"),
    daemon=True,
  )
  plan.start()
  plan.join(10)
  assert not plan.is_alive()
  assert ahead._held == 3
  ahead.done(0)
  assert ahead._held == 0


def test_an_earlier_owner_takes_the_room_of_later_ones():
  read = lambda span: b"x" * span.size
  ahead = Ahead(IoThreads(8), room=1000)
  for i in (5, 4, 1, 0):  # of the two that there is room for
    ahead.plan(i, lambda i=i: [Span("f", 400 * i, 400)], read)
    time.sleep(0.05)
  for i in (0, 1, 4, 5):
    task, start = ahead.take(Span("f", 400 * i, 400))
    assert (len(task.future.result(5)), start) == (400, 400 * i)
    later = [ahead.take(Span("f", 400 * k, 400)) for k in (0, 1, 4, 5) if k > i]
    assert [x is None for x in later] == [False, True, True][: len(later)]
    ahead.done(i)
  assert ahead._held == 0
  assert not ahead._begun


def test_a_forgotten_owner_takes_no_room():
  reads: list[int] = []
  read = lambda span: reads.append(span.offset) or b"x" * span.size
  ahead = Ahead(_AtOnce(), room=1000)
  for i in (2, 3):  # of the two that there is room for
    ahead.plan(i, lambda i=i: [Span("f", 400 * i, 400)], read)

  def late():
    ahead.done(1)  # its row was read by the one who needed it
    return [Span("f", 400, 400)]

  ahead.plan(1, late, read)
  ahead.done(2)
  assert reads == [800, 1200]
  assert ahead._begun == [3]
  assert not ahead._waiting


def test_rows_of_steps_in_any_order_are_read_ahead(tmp_path):
  """Grain asks for several steps at a time, whichever comes first."""
  path = write_manifest(tmp_path, 40)
  config = config_of(a=manifest_source(path), groups=("ti",), steps=10)
  sources = open_sources(config)
  planned = []
  sources["a"].remote = True
  sources["a"].plan = lambda owner, index, keys: planned.append(owner)
  sources["a"].forget = lambda owner: None
  rows = {"one": tuple(range(4))}
  tokenizer = make_tokenizer(config.data.tokenizer)
  maker = BatchMaker(config, tokenizer, {"a": 40}, rows, Stalled(""), 10)
  maker.use(sources)
  for step in (7, 2, 0, 1, *range(3, 7), 8, 9):
    maker(step)
    assert {s for s, _ in planned} >= {step}
  assert sorted(planned) == [(s, r) for s in range(10) for r in range(4)]


@pytest.mark.parametrize(
  ("room", "low", "high"), [(0.5, 0.5, 0.75), (2.0, 0.0, 0.0)]
)
def test_the_next_epoch_finds_its_part_in_the_cache(tmp_path, room, low, high):
  """In any order; of a set that fits all, of a larger one what has room."""
  size, count = 2 * BLOCK, 120
  file = np.random.default_rng(1).bytes(size * count)
  knobs = slow_store.register().knobs
  slow_store.put("slow://set/x", file)
  limit = room * len(file) / 2**30
  store = Storage(cache_dir=str(tmp_path), timeout=10, cache_gb=limit)
  share = []
  for epoch in range(3):
    before = knobs.received
    order = np.random.default_rng(epoch).permutation(count).tolist()
    spans = [Span("slow://set/x", i * size, size) for i in order]
    for place, span in enumerate(spans):
      store.plan(place, lambda span=span: [span])
    for place, span in enumerate(spans):
      deadline = time.monotonic() + 10
      while store._ahead.take(span) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
      assert store.read_range(*span) == file[span.offset :][:size]
      store.forget(place)
    share.append((knobs.received - before) / len(file))
  assert share[0] == pytest.approx(1.0, abs=0.1)
  assert low <= share[1] <= high
  assert low <= share[2] <= high


def test_earlier_ranks_are_made_first():
  threads, order, begin = SampleThreads(1, 30.0), [], threading.Event()

  def work(name):
    def make(guard):
      begin.wait(20)
      return lambda: order.append(name)

    return make

  runs = [
    threading.Thread(
      target=threads.run,
      args=([work(f"{rank}{i}") for i in range(2)], lambda error: False),
      kwargs={"rank": rank},
    )
    for rank in (3, 1, 2)
  ]
  for run in runs:
    run.start()
    time.sleep(0.05)
  begin.set()
  for run in runs:
    run.join(10)
  # The first was taken before others came.
  assert order == ["30", "10", "11", "20", "21", "31"]


def test_a_slow_sample_delays_no_other():
  threads, order = SampleThreads(2, 30.0), []
  slow = threading.Event()

  def work(name):
    def make(guard):
      if name == "slow":
        slow.wait(20)
      return lambda: order.append(name)

    return make

  first = threading.Thread(
    target=threads.run,
    args=([work("slow"), work("a"), work("b")], lambda error: False),
  )
  first.start()
  threads.run([work("c"), work("d")], lambda error: False)
  deadline = time.monotonic() + 10
  while len(order) < 4 and time.monotonic() < deadline:
    time.sleep(0.01)  # the first thread may have come to run late
  assert sorted(order) == ["a", "b", "c", "d"]
  slow.set()
  first.join(10)
  assert order[-1] == "slow"


def test_a_sample_that_hangs_is_made_again_by_another_thread():
  threads, hang, made = SampleThreads(1, 0.2), threading.Event(), []
  tries = []

  def hanging(guard):
    guard.at("a", 3, "s3")
    tries.append(guard)
    if len(tries) == 1:
      hang.wait(20)
    return lambda: made.append(len(tries))

  other = lambda guard: lambda: made.append("other")
  threads.run([hanging, other], lambda error: error.index == 3)
  assert sorted(made, key=str) == [2, "other"]
  hang.set()  # the first one comes back, and hands in nothing
  time.sleep(0.2)
  assert len(made) == 2
  tries.clear()
  hang.clear()
  with pytest.raises(StalledDecoder, match=r"s3 \(a\[3\]\)"):
    threads.run([hanging], lambda error: False)
  hang.set()
  threads.run([other], lambda error: False)

  def fails(guard):
    raise TransientError("away")

  with pytest.raises(TransientError, match="away"):
    threads.run([other, fails, other], lambda error: False)
  threads.run([other] * 5, lambda error: False)
  assert threads._threads == 1


def test_arrays_are_used_again_once_nobody_has_them():
  spec = {
    "row": ArrayShape((4,), "int32"),
    "inputs": {"image": ArrayShape((4, 2), "uint8")},
    "text": {"tv": ArrayShape((4, 3), "int32")},
  }
  buffers = Buffers(pad=9, most=2)
  batch = buffers.take("t", spec)
  place = batch["inputs"]["image"].ctypes.data
  batch["inputs"]["image"][:] = 5
  view = batch["inputs"]["image"][1:]
  del batch
  other = buffers.take("t", spec)
  assert other["inputs"]["image"].ctypes.data != place
  assert (view == 5).all()
  del view
  third = buffers.take("t", spec)
  assert third["inputs"]["image"].ctypes.data == place
  fresh = empty_batch(spec, 9)
  for name, value in fresh.items():
    for key, array in (
      value.items() if isinstance(value, dict) else [("", value)]
    ):
      got = third[name][key] if key else third[name]
      np.testing.assert_array_equal(got, array)


def test_a_workdir_of_an_earlier_version_is_resumed(tmp_path):
  def config(sha256):
    spec = SourceConfig(kind="webdataset", path="x.tar", count=3, sha256=sha256)
    return Config(data=DataConfig(sources={"a": spec}))

  assert not claim_workdir(tmp_path, config("1" * 64))
  with pytest.raises(ConfigError, match="sha256"):
    claim_workdir(tmp_path, config("2" * 64))
  same = lambda name, sha256: (name, sha256) == ("a", "1" * 64)
  assert claim_workdir(tmp_path, config("2" * 64), same)
