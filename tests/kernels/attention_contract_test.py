"""Every backend of attention: values and gradients against float64.

A pairwise cover of lengths, heads, sizes, rules and dtypes; the whole grid is
marked slow. TPU kernels run in the interpreter of Pallas, which fills what was
never written with NaN.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from mico_jax.kernels import target
from mico_jax.kernels.attention import (
  ATTENTION_SUMS,
  attention,
  packed_attention,
  pallas_stream,
  tpu_plan,
  xla,
)
from mico_jax.kernels.attention import reference as plain
from mico_jax.kernels.attention.rules import Rules
from mico_jax.kernels.attention.tpu_layout import Heads, Lanes
from mico_jax.train.flops import inner_jaxprs

LENGTHS = (1, 7, 128, 257, 300, 2056)
HEADS = (1, 12, 16)
DIMS = (32, 64, 80, 88, 128)
RULES = ("none", "lengths", "causal", "prefix", "segments")
DTYPES = ("bfloat16", "float32")
BACKENDS = ("xla", "chunked", "pallas_tpu")
# (queries, keys, heads, dim, rules, dtype); every two values of two columns
# meet, except that long and wide together stay in the slow grid.
COVER = (
  (1, 257, 1, 32, "none", "bfloat16"),
  (1, 7, 12, 64, "lengths", "float32"),
  (7, 7, 16, 88, "causal", "bfloat16"),
  (7, 128, 1, 80, "segments", "float32"),
  (128, 128, 12, 32, "prefix", "bfloat16"),
  (128, 300, 16, 128, "none", "float32"),
  (257, 257, 16, 88, "none", "bfloat16"),
  (257, 257, 1, 64, "segments", "bfloat16"),
  (257, 7, 12, 80, "lengths", "float32"),
  (300, 300, 1, 128, "prefix", "float32"),
  (300, 257, 12, 88, "causal", "float32"),
  (300, 1, 16, 64, "lengths", "bfloat16"),
  (7, 2056, 1, 88, "lengths", "bfloat16"),
  (2056, 128, 1, 64, "causal", "bfloat16"),
  (40, 300, 12, 64, "segments", "bfloat16"),
)
SLOW = tuple(
  (length, length, heads, dim, rules, dtype)
  for length, heads, dim, rules, dtype in itertools.product(
    LENGTHS, HEADS, DIMS, RULES, DTYPES
  )
)
KEY = jax.random.key(7)
LIMITS = {"float32": 2e-5, "bfloat16": 2.5e-2}


def _rules(name, batch, queries, keys):
  """The rules; the last row of the batch sees nothing, or less."""
  rng = np.random.default_rng(5)
  if name == "lengths":
    lengths = rng.integers(1, keys + 1, batch)
    lengths[-1] = 0
    return {"kv_lengths": jnp.asarray(lengths, jnp.int32)}
  if name == "causal":
    return {"causal": True}
  if name == "prefix":
    lengths = jnp.asarray(rng.integers(0, queries + 1, batch), jnp.int32)
    return {"causal": True, "prefix_lengths": lengths}
  if name == "segments":
    return {
      "query_segments": jnp.asarray(
        np.sort(rng.integers(0, 4, (batch, queries))), jnp.int32
      ),
      # No key of segment 3: its queries see nothing.
      "kv_segments": jnp.asarray(
        np.sort(rng.integers(0, 3, (batch, keys))), jnp.int32
      ),
    }
  return {}


def _value_and_gradients(function, arrays, weights):
  def loss(*arrays):
    out = function(*arrays)
    return jnp.sum(out.astype(jnp.float32) * weights.astype(jnp.float32)), out

  numbers = tuple(range(len(arrays)))
  gradient = jax.jit(jax.grad(loss, argnums=numbers, has_aux=True))
  grads, out = gradient(*arrays)
  return out, *grads


def _case(case, *, batch=2, seed=0):
  queries, keys, heads, dim, _, dtype = case
  rng = np.random.default_rng(seed)
  shapes = [(batch, n, heads, dim) for n in (queries, keys, keys, queries)]
  return [
    jnp.asarray(rng.normal(size=s).astype(np.float32), jnp.dtype(dtype))
    for s in shapes
  ]


def _truth(arrays, weights, rules):
  """In float64."""
  with jax.enable_x64(True):
    exact = [jnp.asarray(np.asarray(x, np.float64)) for x in arrays]
    weights = jnp.asarray(np.asarray(weights, np.float64))

    def loss(q, k, v):
      out = plain.attention(
        q, k, v, rules=rules, scale=q.shape[-1] ** -0.5, masked_rows="zero"
      )
      return jnp.sum(out * weights), out

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    grads, out = gradient(*exact)
    return [np.asarray(x) for x in (out, *grads)]


def _compare(got, want, dtype):
  for x, expected in zip(got, want, strict=True):
    assert x.dtype == jnp.dtype(dtype)
    size = max(np.abs(expected).max(), 1.0)
    np.testing.assert_allclose(
      np.asarray(x, np.float64) / size, expected / size, atol=LIMITS[dtype]
    )


@pytest.fixture
def run(monkeypatch):
  """Runs a backend; TPU kernels in the interpreter."""

  def call(backend, function, generation="v5e", interpret=None):
    if backend == "chunked":
      monkeypatch.setattr(xla, "SCORE_BYTES", 0)
      monkeypatch.setattr(xla, "CHUNK_BYTES", 2**18)
    if backend != "pallas_tpu":
      return function("xla")
    interpret = interpret or pltpu.InterpretParams()
    machine = target.Target("tpu", generation, interpret=interpret)
    with target.use(machine):
      return function(backend)

  return call


def _check(run, backend, case):
  options = _rules(case[4], 2, case[0], case[1])
  *arrays, weights = _case(case)
  got = run(
    backend,
    lambda name: _value_and_gradients(
      lambda *x: attention(*x, backend=name, **options), arrays, weights
    ),
  )
  fields = {**options}
  _compare(got, _truth(arrays, weights, Rules(**fields)), case[5])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", COVER, ids=str)
def test_contract(run, backend, case):
  _check(run, backend, case)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SLOW, ids=str)
def test_whole_grid(run, backend, case):
  _check(run, backend, case)


def _packed(qkv, heads, **options):
  out = packed_attention(qkv, num_heads=heads, **options)
  return out.reshape(*qkv.shape[:2], heads, -1)


@pytest.mark.parametrize(
  ("length", "heads", "dim", "generation"),
  [(257, 16, 88, "v5e"), (257, 4, 32, "v6e"), (9, 2, 64, "v5e")],
)
def test_packed_equals_apart(run, length, heads, dim, generation):
  case = (length, length, heads, dim, "none", "float32")
  *arrays, weights = _case(case, batch=1)
  qkv = jnp.concatenate([x.reshape(1, length, -1) for x in arrays], axis=-1)
  out, gradient = run(
    "pallas_tpu",
    lambda _: _value_and_gradients(lambda x: _packed(x, heads), [qkv], weights),
    generation,
  )
  want = _truth(arrays, weights, Rules())
  gradients = np.concatenate([x.reshape(1, length, -1) for x in want[1:]], -1)
  _compare((out, gradient), (want[0], gradients), "float32")


def test_packed_falls_back(run, caplog):
  """Heads that fill no lane tiles, and machines without the kernel."""
  case = (9, 9, 3, 20, "none", "float32")
  *arrays, weights = _case(case)
  qkv = jnp.concatenate([x.reshape(2, 9, -1) for x in arrays], axis=-1)
  want = _truth(arrays, weights, Rules())[0]
  for backend in ("pallas_tpu", "xla"):
    out = run(backend, lambda _: _packed(qkv, 3))
    np.testing.assert_allclose(out, want, atol=2e-5)


@pytest.mark.parametrize(
  ("case", "packed"),
  [
    ((9, 257, 2, 64, "lengths", "float32"), False),  # upright, with a tail
    ((70, 140, 4, 32, "none", "float32"), False),
    ((600, 129, 2, 64, "causal", "float32"), False),  # tiles of queries
    ((257, 257, 2, 64, "lengths", "float32"), True),
    ((70, 70, 12, 64, "lengths", "bfloat16"), True),
  ],
  ids=str,
)
def test_kernels_drop_the_same_weights(run, case, packed):
  """As the plain backend; the same in the backward pass."""
  options = _rules(case[4], 2, case[0], case[1])
  options |= {"dropout_rate": 0.3, "row_keys": jax.random.split(KEY, 2)}
  *arrays, weights = _case(case)
  exact = [x.astype(jnp.float32) for x in arrays]

  def one(name, arrays):
    if packed and name == "pallas_tpu":
      qkv = jnp.concatenate([x.reshape(2, case[0], -1) for x in arrays], -1)
      out, gradient = _value_and_gradients(
        lambda x: _packed(x, case[2], **options), [qkv], weights
      )
      parts = jnp.split(gradient, 3, axis=-1)
      return out, *(x.reshape(arrays[0].shape) for x in parts)
    return _value_and_gradients(
      lambda *x: attention(*x, backend=name, **options), arrays, weights
    )

  got = run("pallas_tpu", lambda name: one(name, arrays))
  _compare(got, [np.asarray(x) for x in one("reference", exact)], case[5])


def test_dropped_weights_are_independent():
  """Rates within four standard errors, over rows, heads and neighbours."""
  rate, shape = 0.1, (8, 6, 70, 300)
  keys = jax.random.split(KEY, shape[0])
  kept = np.asarray(plain.probability_dropout(jnp.ones(shape), rate, keys)) > 0
  error = np.sqrt(rate * (1 - rate))
  for axes in ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)):
    found = kept.mean(axes)
    count = kept.size / found.size
    assert np.abs(found - (1 - rate)).max() < 4.5 * error / np.sqrt(count)
  both = (1 - rate) ** 2
  error = np.sqrt(both * (1 - both))
  for axis in range(4):
    for step in (1, 2, 4):
      pairs = kept & np.roll(kept, step, axis)
      assert abs(pairs.mean() - both) < 4.5 * error / np.sqrt(kept.size)


def test_rows_that_see_nothing_are_zero(run):
  case = (9, 129, 2, 64, "lengths", "float32")
  *arrays, weights = _case(case)
  lengths = jnp.array([129, 0], jnp.int32)
  got = run(
    "pallas_tpu",
    lambda name: _value_and_gradients(
      lambda *x: attention(*x, kv_lengths=lengths, backend=name),
      arrays,
      weights,
    ),
  )
  for x in got:
    assert np.any(np.asarray(x[0]))
    assert not np.any(np.asarray(x[1]))


def test_folded_scale(run):
  """log2(e) in the queries already: the same values and gradients."""
  from mico_jax.kernels.attention import folded_scale

  case = (33, 33, 2, 64, "none", "float32")
  *arrays, weights = _case(case)

  def both(name):
    factor, scale = folded_scale(64)
    assert factor != 1.0
    return _value_and_gradients(
      lambda q, k, v: attention(q * factor, k, v, scale=scale, backend=name),
      arrays,
      weights,
    )

  _compare(run("pallas_tpu", both), _truth(arrays, weights, Rules()), "float32")
  assert folded_scale(64) == (1.0, None)


def test_no_races(run):
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call

  case = (600, 140, 2, 64, "none", "float32")
  *arrays, weights = _case(case, batch=1)
  machine = target.Target(
    "tpu",
    "v5e",
    interpret=pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2),
  )
  with target.use(machine):
    got = _value_and_gradients(
      lambda *x: attention(*x, backend="pallas_tpu"), arrays, weights
    )
  _compare(got, _truth(arrays, weights, Rules()), "float32")
  assert not interpret_pallas_call.races.races_found


def test_same_bits_twice_under_every_transformation(run):
  case = (9, 13, 2, 64, "none", "float32")
  *arrays, weights = _case(case)
  del weights

  def all_ways(name):
    def one(q, k, v):
      return attention(q, k, v, backend=name)

    plain_out = one(*arrays)
    rows = jax.vmap(lambda *x: one(*(y[None] for y in x))[0])(*arrays)
    _, scanned = jax.lax.scan(
      lambda c, x: (c, one(*(y[None] for y in x))[0]), 0, tuple(arrays)
    )
    jitted = jax.jit(one)(*arrays)
    gradient = jax.grad(lambda q: jnp.sum(one(q, *arrays[1:])))(arrays[0])
    remat = jax.grad(lambda q: jnp.sum(jax.checkpoint(one)(q, *arrays[1:])))(
      arrays[0]
    )
    return (plain_out, rows, scanned, jitted), (gradient, remat)

  for backend in ("xla", "pallas_tpu"):
    # The other interpreter has effects, which `jax.checkpoint` refuses.
    first, second = (run(backend, all_ways, interpret=True) for _ in range(2))
    for group in first:
      for x in group[1:]:
        np.testing.assert_allclose(x, group[0], atol=1e-6)
    for x, y in zip(first[0], second[0], strict=True):
      np.testing.assert_array_equal(x, y)


@pytest.mark.multidevice
def test_split_over_a_mesh(run):
  case = (9, 13, 4, 64, "lengths", "float32")
  *arrays, weights = _case(case, batch=4)
  options = _rules("lengths", 4, 9, 13)
  mesh = jax.make_mesh(
    (2, 2),
    ("data", "heads"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )
  place = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec("data", None, "heads")
  )
  machine = target.Target("tpu", "v5e", interpret=pltpu.InterpretParams())
  with (
    target.use(machine),
    target.split(mesh, batch_axes=("data",), head_axes=("heads",)),
  ):
    got = jax.jit(
      lambda *x: _value_and_gradients(
        lambda *y: attention(*y, backend="pallas_tpu", **options), x, weights
      )
    )(*(jax.device_put(x, place) for x in arrays))
  _compare(got, _truth(arrays, weights, Rules(**options)), "float32")


@pytest.mark.parametrize(
  ("options", "reason"),
  [
    ({"bias": jnp.zeros((1, 1, 4, 4))}, "additive bias"),
    ({"mask": jnp.ones((1, 1, 4, 4), bool)}, "between queries or heads"),
    ({"masked_rows": "released"}, "released"),
  ],
)
def test_refusals_say_why(run, options, reason):
  x = jnp.zeros((1, 4, 1, 128))
  with pytest.raises(NotImplementedError, match=reason):
    run("pallas_tpu", lambda name: attention(x, x, x, backend=name, **options))


def test_memory_is_checked():
  sizes = {"num_queries": 9, "num_keys": 2**17, "num_heads": 1, "head_dim": 128}
  with pytest.raises(NotImplementedError, match=r"need .* MiB; v4 has 14.0"):
    tpu_plan.make_plan(
      target.Target("tpu", "v4"),
      dtype=jnp.bfloat16,
      scale=1.0,
      rules=Rules(),
      **sizes,
    )


@pytest.mark.parametrize("rules", ["none", "lengths", "causal"])
def test_heads_apart_in_the_backward_pass_only(run, monkeypatch, rules):
  """Where side by side they fit the forward pass, but not the backward one."""

  def need(spec, itemsize, *, backward):
    del itemsize
    return 2**60 if backward and isinstance(spec.layout, Lanes) else 0

  monkeypatch.setattr(tpu_plan, "vmem_bytes", need)
  plan = tpu_plan.make_plan(
    target.Target("tpu", "v5e"),
    num_queries=300,
    num_keys=300,
    num_heads=16,
    head_dim=40,
    dtype=jnp.float32,
    scale=1.0,
    rules=Rules(),
  )
  assert plan.mixed
  assert plan.groups(plan.forward) == 1
  assert plan.groups(plan.backward) == 4
  _check(run, "pallas_tpu", (300, 300, 16, 40, rules, "float32"))


@pytest.mark.parametrize("rules", RULES)
def test_streamed_keys(run, monkeypatch, rules):
  """Keys that do not fit: ragged tiles of queries and keys, every rule."""
  monkeypatch.setattr(tpu_plan, "_SCORE_TILES", 10**9)
  monkeypatch.setattr(pallas_stream, "TILE", 128)
  keys = 300 if rules in ("causal", "prefix") else 150
  _check(run, "pallas_tpu", (300, keys, 1, 40, rules, "float32"))


def test_bad_lengths_are_named():
  x = jnp.zeros((2, 4, 1, 8))
  for lengths in ([-1, 4], [0, 5]):
    with pytest.raises(ValueError, match="expected 0 to 4"):
      attention(x, x, x, kv_lengths=jnp.array(lengths))
  with pytest.raises(ValueError, match="give both"):
    attention(x, x, x, kv_segments=jnp.zeros((2, 4), jnp.int32))


@pytest.mark.multidevice
@pytest.mark.parametrize(
  ("backend", "queries", "keys", "rules"),
  [
    ("xla", 9, 9, "prefix"),
    ("xla", 12, 8, "segments"),
    ("pallas_tpu", 10, 13, "lengths"),
    ("pallas_tpu", 1, 6, "none"),
  ],
)
def test_tokens_split_over_devices(run, backend, queries, keys, rules):
  """Lengths that do not divide, and fewer queries than devices."""
  case = (queries, keys, 2, 16, rules, "float32")
  *arrays, weights = _case(case, batch=4)
  options = _rules(rules, 4, queries, keys)
  mesh = jax.make_mesh(
    (2, 2),
    ("data", "sequence"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )

  def call(name):
    with target.split(mesh, batch_axes=("data",), sequence_axes=("sequence",)):
      function = jax.jit(
        lambda *x: _value_and_gradients(
          lambda *y: attention(*y, backend=name, **options), x, weights
        )
      )
      text = function.lower(*arrays).as_text()
      assert "all_gather" in text
      return function(*arrays)

  _compare(
    run(backend, call), _truth(arrays, weights, Rules(**options)), case[5]
  )


@pytest.mark.multidevice
def test_filled_keys_of_released_masks_take_no_part(caplog):
  """-10000 is no wall: rows that see nothing would see the filling."""
  case = (8, 13, 2, 16, "lengths", "float32")
  *arrays, _ = _case(case, batch=2)
  lengths = jnp.array([13, 0], jnp.int32)
  mesh = jax.make_mesh(
    (2,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  call = lambda *x: attention(*x, kv_lengths=lengths, masked_rows="released")
  want = call(*arrays)
  with target.split(mesh, sequence_axes=("sequence",)):
    out = jax.jit(lambda *x: call(*x))(*arrays)
  np.testing.assert_allclose(out, want, atol=1e-5)


def test_a_batch_that_is_not_known_yet_is_refused():
  (batch,) = jax.export.symbolic_shape("b")
  q = jax.ShapeDtypeStruct((batch, 4, 1, 128), jnp.float32)
  with (
    target.use(target.Target("tpu", "v5e")),
    pytest.raises(NotImplementedError, match="symbolic dimensions"),
  ):
    jax.eval_shape(lambda q: attention(q, q, q, backend="pallas_tpu"), q)


def _kernels(jaxpr):
  """The Pallas calls of a jaxpr, those of inner ones included."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "pallas_call":
      yield eqn
      continue
    for value in eqn.params.values():
      for inner in inner_jaxprs(value):
        yield from _kernels(inner)


def _gradient_kernels(sizes, *, keep=None):
  """Kernels of values and gradients, by name; with a policy: under remat."""
  batch, queries, keys, heads, dim = sizes
  array = lambda n: jax.ShapeDtypeStruct((batch, n, heads, dim), jnp.bfloat16)

  def one(q, k, v):
    return attention(q, k, v, backend="pallas_tpu").astype(jnp.float32)

  if keep is not None:
    one = jax.checkpoint(
      one, policy=jax.checkpoint_policies.save_only_these_names(*keep)
    )
  with target.use(target.Target("tpu", "v5e", interpret=True)):
    jaxpr = jax.make_jaxpr(
      jax.grad(lambda *x: jnp.sum(one(*x) ** 2), argnums=(0, 1, 2))
    )(array(queries), array(keys), array(keys))
  found = {}
  for eqn in _kernels(jaxpr.jaxpr):
    name = str(eqn.params["name"]).split(f"_{queries}_")[0]
    found.setdefault(name, []).append(eqn.params["cost_estimate"])
  return found


def test_kernels_say_what_they_cost(monkeypatch):
  batch, queries, keys, heads, dim = sizes = (2, 257, 129, 2, 64)
  pairs, row = batch * heads * queries * keys, 2 * batch * heads * dim
  resident = _gradient_kernels(sizes)
  monkeypatch.setattr(tpu_plan, "_SCORE_TILES", 10**9)
  monkeypatch.setattr(pallas_stream, "TILE", 128)
  found = resident | _gradient_kernels(sizes)
  tiles, key_tiles = 3, 2
  want = {
    "forward": (2, 2 * queries + 2 * keys),
    "backward": (5, 3 * queries + 4 * keys),
    "stream_forward": (2, 2 * queries + tiles * 2 * keys),
    "stream_queries": (3, 3 * queries + tiles * 2 * keys),
    "stream_keys": (4, key_tiles * 2 * queries + 4 * keys),
  }
  assert found.keys() == {f"mico_attention_{name}" for name in want}
  for name, (products, rows) in want.items():
    (cost,) = found[f"mico_attention_{name}"]
    assert cost.flops == 2 * products * pairs * dim
    assert cost.bytes_accessed == rows * row


def test_what_the_backward_pass_reads_can_be_kept(monkeypatch):
  """The forward kernel does not run again where a policy keeps its sums."""
  monkeypatch.setattr(tpu_plan, "_SCORE_TILES", 10**9)
  sizes = (1, 256, 256, 1, 64)
  again = _gradient_kernels(sizes, keep=())
  kept = _gradient_kernels(sizes, keep=(ATTENTION_SUMS,))
  name = "mico_attention_stream_forward"
  assert len(again[name]) == 2
  assert len(kept[name]) == 1


def test_memory_of_rules_is_counted():
  spec = tpu_plan.resident.Spec(
    layout=Heads(1, 64),
    num_queries=512,
    num_keys=1024,
    rows=512,
    scale=1.0,
    factor=1.0,
  )
  need = lambda backward, **rules: (
    tpu_plan.vmem_bytes(
      dataclasses.replace(spec, **rules), 2, backward=backward
    )
    - tpu_plan.vmem_bytes(spec, 2, backward=backward)
  )
  lane, row = 128 * 4, 16 * 4
  # A column is as wide as a tile of lanes, a row as high as a tile; twice.
  assert need(True, key_ids=True) == 2 * 1024 * lane
  assert need(False, key_ids=True) == 2 * 1024 * row
  assert need(False, query_ids=True) == 2 * 512 * lane
  assert need(True, query_ids=True) == 2 * 512 * row
  assert need(True, key_ids=True, upright=True) == 2 * 1024 * row
  assert need(False, prefix=True) == 2 * 16 * lane


def test_chunks_sum_gradients_of_keys_in_float32(run):
  """In bfloat16 a sum over dozens of chunks would lose several bits."""
  case = (2056, 64, 1, 32, "none", "bfloat16")
  *arrays, weights = _case(case)
  call = lambda backend: run(
    backend,
    lambda name: _value_and_gradients(
      lambda *x: attention(*x, backend=name), arrays, weights
    ),
  )
  truth = _truth(arrays, weights, Rules())
  errors = lambda got: [
    np.abs(np.asarray(x, np.float64) - want).mean()
    for x, want in zip(got, truth, strict=True)
  ]
  whole, chunked = errors(call("xla")), errors(call("chunked"))
  for one, many in zip(whole, chunked, strict=True):
    assert many < 1.2 * one
