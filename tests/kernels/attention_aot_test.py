"""Mosaic really compiles the kernels, for every generation; needs libtpu."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mico_jax import aot

pytestmark = pytest.mark.aot

# Static cycles per row and head are deterministic for one version of libtpu.
LIMITS = {"vit_g": {False: 400, True: 1500}, "cross_257": {True: 643}}
_PROGRAM = """
import json, sys
import jax
jax.config.update("jax_platforms", "cpu")
from mico_jax.benchmarks import attention
for topology in sys.argv[2].split(","):
  for record in attention.run(topology, sys.argv[1].split(","), peers=()):
    print(json.dumps(record), flush=True)
"""


def _records(shapes, topologies):
  if reason := aot.missing():
    pytest.skip(reason)
  done = subprocess.run(
    [sys.executable, "-c", _PROGRAM, ",".join(shapes), ",".join(topologies)],
    capture_output=True,
    text=True,
    check=False,
  )
  lines = [x for x in done.stdout.splitlines() if x.startswith("{")]
  assert done.returncode == 0, done.stderr[-2000:]
  return [json.loads(line) for line in lines]


def test_cycles_of_v5e():
  for record in _records(["vit_g"], ["v5e:2x2"]):
    assert 0 < record["kernel"] <= LIMITS["vit_g"][record["backward"]]


@pytest.mark.slow
def test_every_generation():
  shapes = ("vit_g", "vit_b", "text_40", "apart_257", "long_1028", "cross_257")
  topologies = [chip.topology for chip in aot.CHIPS.values()]
  records = _records(shapes, topologies)
  assert len(records) == 2 * len(shapes) * len(topologies)
  for record in records:
    assert record.get("kernel", 0) > 0 or "VMEM" in record["refused"]


_COMPILE = """
import json, sys
import jax
import jax.numpy as jnp
jax.config.update("jax_platforms", "cpu")
from mico_jax import aot
from mico_jax.kernels import target
from mico_jax.kernels.attention import attention, tpu_plan

topology, queries, keys, dtype, streamed, rules = json.loads(sys.argv[1])
if streamed:
  tpu_plan._SCORE_TILES = 10**9  # keys that do not fit
array = lambda n: jax.ShapeDtypeStruct((2, n, 4, 64), jnp.dtype(dtype))
ids = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
known = {
  "none": {},
  "lengths": {"kv_lengths": ids(2)},
  "causal": {},
  "dropout": {"row_keys": ids(2)},
  "prefix": {"prefix_lengths": ids(2)},
  "segments": {
    "query_segments": ids(2, queries), "kv_segments": ids(2, keys)
  },
}[rules]
causal = rules in ("causal", "prefix")

def gradients(q, k, v, given):
  if rules == "dropout":
    keys = jax.vmap(jax.random.key)(given["row_keys"])
    given = {"row_keys": keys, "dropout_rate": 0.1}
  def loss(q, k, v):
    out = attention(q, k, v, causal=causal, backend="pallas_tpu", **given)
    return jnp.sum(out.astype(jnp.float32) ** 2)
  with target.use(target.Target("tpu", topology.split(":")[0])):
    return jax.value_and_grad(loss, (0, 1, 2))(q, k, v)

report = aot.compile_report(
  gradients, array(queries), array(keys), array(keys), known,
  sharding=aot.one_device(topology),
)
print(json.dumps(sorted(report.bundles)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  ("topology", "queries", "keys", "dtype", "streamed", "rules"),
  [
    ("v5e:2x2", 257, 257, "bfloat16", False, "lengths"),
    ("v5e:2x2", 257, 257, "bfloat16", False, "causal"),
    ("v5e:2x2", 257, 257, "float32", False, "prefix"),
    ("v5e:2x2", 257, 257, "bfloat16", False, "segments"),
    ("v5e:2x2", 40, 300, "bfloat16", False, "segments"),
    ("v5e:2x2", 70, 584, "bfloat16", False, "dropout"),
    ("v6e:2x2", 257, 257, "float32", False, "dropout"),
    ("v4:2x2x1", 40, 300, "bfloat16", False, "dropout"),
    ("tpu7x:2x2x1", 40, 300, "bfloat16", False, "dropout"),
    ("v5e:2x2", 1028, 1028, "bfloat16", True, "none"),
    ("v5e:2x2", 1028, 1028, "float32", True, "lengths"),
    ("v5e:2x2", 1028, 1028, "bfloat16", True, "segments"),
    ("v5p:2x2x1", 1028, 1028, "bfloat16", True, "prefix"),
  ],
)
def test_every_rule_compiles(topology, queries, keys, dtype, streamed, rules):
  if reason := aot.missing():
    pytest.skip(reason)
  case = json.dumps([topology, queries, keys, dtype, streamed, rules])
  done = subprocess.run(
    [sys.executable, "-c", _COMPILE, case],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  found = " ".join(json.loads(done.stdout.splitlines()[-1]))
  kinds = ("forward", "backward")
  if streamed:
    kinds = ("stream_forward", "stream_queries", "stream_keys")
  for kind in kinds:
    assert f"mico_attention_{kind}_{queries}_{keys}_4_64" in found
