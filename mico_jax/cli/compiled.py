"""Where commands keep compiled programs for their next start.

`train.compilation_cache` and JAX_COMPILATION_CACHE_DIR come first (an empty
variable: none). The folder never lies in a workdir, which may come from someone
else. Programs for a CPU hold instructions that another machine which sees the
folder may lack.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform

from mico_jax.config import Config

_LEAST = 0.5  # seconds: the small programs around a step count as well


def keep_step(config: Config, workdir: str) -> None:
  """Keeps the programs of a training for its restart.

  Those for accelerators lie in `compiled` beside a remote workdir, since
  process 0 writes them for all hosts, or in the cache folder of this user.
  Those for CPUs are not kept.
  """
  import jax

  folder = config.train.compilation_cache
  if not folder:
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
      return
    if jax.default_backend() == "cpu":
      return
    from mico_jax.data.storage import user_cache

    scheme, _, path = workdir.rstrip("/").rpartition("://")
    parent = path.rpartition("/")[0]
    if scheme and parent:  # a bucket itself has nothing beside it
      folder = f"{scheme}://{parent}/compiled"
    else:
      folder = str(user_cache("compiled"))
  _keep(folder)


def keep_inference() -> None:
  """Keeps the programs of a checkpoint's use, for CPUs by their kind.

  They lie in the cache folder of this user. On a CPU most of a short command
  is compiling.
  """
  import jax

  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  if getattr(jax.config, "jax_compilation_cache_dir", None):
    return
  from mico_jax.data.storage import user_cache

  folder = user_cache("compiled")
  if jax.default_backend() == "cpu":
    folder /= f"cpu-{_kind_of_cpu()}"
  _keep(str(folder))


def _keep(folder: str) -> None:
  import jax

  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST)


def _kind_of_cpu() -> str:
  """Equal for processors with the same model name and instructions."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    kind = {k.strip(): v.strip() for k, v in fields.items()}
    wanted = ("model name", "flags", "Features", "CPU part")
    text = "\n".join(kind.get(name, "") for name in wanted)
  except (OSError, ValueError):  # another system: by its name
    text = f"{platform.processor()} {platform.node()}"
  return hashlib.sha256(f"{platform.machine()} {text}".encode()).hexdigest()[
    :12
  ]
