"""Where bytes come from: local files and remote stores (see `storage`)."""

from mico_jax.data.storage.ahead import Span
from mico_jax.data.storage.io_threads import RemoteError
from mico_jax.data.storage.paths import (
  MAX_FILE_BYTES,
  check_regular,
  check_size,
  is_remote,
  short,
)
from mico_jax.data.storage.storage import Storage
from mico_jax.data.storage.stores import Stamp
from mico_jax.files import user_cache

__all__ = [
  "MAX_FILE_BYTES",
  "RemoteError",
  "Span",
  "Stamp",
  "Storage",
  "check_regular",
  "check_size",
  "is_remote",
  "short",
  "user_cache",
]
