"""The contrastive loss with its gradients: times, or figures for a slice.

`mico-jax bench loss` times each backend on the local devices and compares it
with the plain loss (all similarities of the global batch, differentiated by
JAX); it also prints the largest relative error of the gradients against
float64. `--peer torch` adds PyTorch on one device. `--aot v5e:16x16` compiles
for a slice instead and prints memory, XLA's estimated cycles and the bytes that
a device receives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from mico_jax import aot
from mico_jax.benchmarks import timing
from mico_jax.kernels.batch_sharding import BatchSharding
from mico_jax.kernels.contrastive import contrastive_pair

FORMS = ("chunked", "ring", "xla")
ROWS = {"cpu": 1024}  # default global batch; 65,536 on other platforms
WIDTH = 512
TEMPERATURE = 0.07
PEERS = ("plain", "torch")


def _gradient(
  form: str, partition: BatchSharding | None, chunk: int
) -> Callable[..., Any]:
  def loss(query: Any, key: Any, temperature: Any) -> Any:
    pair = contrastive_pair(
      query,
      key,
      temperature=temperature,
      partition=partition,
      chunk=chunk,
      backend=form,
    )
    return jnp.mean(pair.to_key + pair.to_query) / 2

  return jax.value_and_grad(loss, (0, 1, 2))


def _plain(query: Any, key: Any, temperature: Any) -> Any:
  def loss(query: Any, key: Any, temperature: Any) -> Any:
    scores = jnp.matmul(query, key.T) / temperature
    positive = jnp.mean(jnp.diagonal(scores))
    both = jnp.mean(jax.nn.logsumexp(scores, 0) + jax.nn.logsumexp(scores, 1))
    return both / 2 - positive

  return jax.value_and_grad(loss, (0, 1, 2))(query, key, temperature)


def _partition(devices: Sequence[Any]) -> BatchSharding | None:
  if len(devices) == 1:
    return None
  grid = np.asarray(devices, dtype=object)
  return BatchSharding(Mesh(grid, ("data",)), ("data",))


def unit_rows(
  rows: int, width: int = WIDTH
) -> tuple[Float[np.ndarray, "B E"], Float[np.ndarray, "B E"]]:
  """Random unit rows of both sides, correlated as early in training."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(rows, width))
  y = x + 3 * rng.normal(size=(rows, width))
  return tuple(
    (a / np.linalg.norm(a, axis=1, keepdims=True)).astype(np.float32)
    for a in (x, y)
  )  # type: ignore[return-value]


def _exact(sides: Sequence[np.ndarray]) -> list[np.ndarray]:
  """Gradients of both sides in float64, with NumPy."""
  x, y = (a.astype(np.float64) for a in sides)
  scores = x @ y.T / TEMPERATURE
  by_row = np.exp(scores - scores.max(1, keepdims=True))
  by_row /= by_row.sum(1, keepdims=True)
  by_column = np.exp(scores - scores.max(0, keepdims=True))
  by_column /= by_column.sum(0, keepdims=True)
  slope = (by_row + by_column) / 2 - np.eye(len(x))
  slope /= len(x) * TEMPERATURE
  return [slope @ y, slope.T @ x]


def _torch(sides: Sequence[np.ndarray]) -> Callable[[], Any]:
  from mico_jax.benchmarks import torch_peers

  return torch_peers.contrastive(sides, temperature=TEMPERATURE)


def run(
  forms: Sequence[str],
  *,
  peers: Sequence[str] = ("plain",),
  batch: int = 0,
  turns: int = 7,
) -> Iterator[dict[str, Any]]:
  """Times each backend on the local devices.

  Args:
    forms: names of `FORMS`.
    peers: names of `PEERS`.
    batch: rows of the global batch; 0: 1,024 on a CPU, else 65,536.
    turns: see `timing.alternate`.

  Yields:
    One record per backend and peer.
  """
  batch = batch or ROWS.get(jax.default_backend(), 65536)
  sides = unit_rows(batch)
  partition = _partition(jax.devices())
  scale = jnp.float32(TEMPERATURE)
  arrays: list[Any] = [jnp.asarray(x) for x in sides]
  if partition is not None:
    place = NamedSharding(partition.mesh, partition.spec())
    arrays = [jax.device_put(x, place) for x in arrays]
  functions = {name: _gradient(name, partition, 0) for name in forms}
  if "plain" in peers:
    functions["plain"] = _plain
  calls, errors = {}, {}
  want = _exact(sides) if batch <= 8192 else None
  for name, function in functions.items():
    compiled = jax.jit(function)
    calls[name] = timing.waiting(compiled, *arrays, scale)
    if want is not None:
      got = compiled(*arrays, scale)[1][:2]
      errors[name] = max(
        float(np.abs(np.asarray(g, np.float64) - w).max() / np.abs(w).max())
        for g, w in zip(got, want, strict=True)
      )
  if "torch" in peers:
    calls["torch"] = _torch(sides)
  first = next(iter(calls))
  for record in timing.records(
    timing.alternate(calls, turns=turns), first=first
  ):
    if (name := record["implementation"]) in errors:
      record["gradient_error"] = float(f"{errors[name]:.2g}")
    yield {"shape": f"{batch}x{WIDTH}", "pass": "forward+backward", **record}


def run_aot(
  topology: str, forms: Sequence[str], *, batch: int = 65536
) -> Iterator[dict[str, Any]]:
  """Compiles each backend for a slice, with embeddings in bfloat16.

  Args:
    topology: such as "v5e:16x16".
    forms: names of `FORMS`.
    batch: rows of the global batch.

  Yields:
    One record per backend, with figures of one device; "refused" if it does not
    fit.
  """
  devices = aot.devices(topology)
  partition = _partition(devices)
  spec = PartitionSpec() if partition is None else partition.spec()
  mesh = Mesh(np.asarray(devices, dtype=object), ("data",))
  rows = NamedSharding(mesh, spec)
  side = jax.ShapeDtypeStruct((batch, WIDTH), jnp.bfloat16, sharding=rows)
  scale = jax.ShapeDtypeStruct(
    (), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec())
  )
  clock = aot.chip(topology).clock
  for form in forms:
    record = {"shape": f"{batch}x{WIDTH}", "implementation": form}
    try:
      report = aot.compile_report(
        _gradient(form, partition, 0),
        side,
        side,
        scale,
        mesh=dict(mesh.shape),
      )
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      yield {**record, "refused": str(error).splitlines()[0]}
      continue
    cycles = report.program.xla_cycles
    yield {
      **record,
      "temporaries_mib": round(report.temporary_bytes / 2**20, 2),
      "cycles": cycles,
      "milliseconds": round(1e3 * cycles / clock, 3) if clock else None,
      "received_mib": round(
        sum(c.bytes for c in report.program.collectives) / 2**20, 1
      ),
    }
