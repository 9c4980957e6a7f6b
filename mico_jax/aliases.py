"""Type aliases, the dimension key and the batch contract.

Dimension key, used in every jaxtyping annotation and einsum string:

  B batch, M modalities, T frames or slices, Y X rows and columns, C channels,
  L query tokens, S context tokens, N heads, H head dim, D width of the shared
  encoder, W width of the text tower, F mlp dim, E joint embedding,
  V vocabulary, K explicit negatives, P number of layers.
  `*B` any leading axes, `#B` broadcastable.

Batch contract. A batch is a nested dict of host (NumPy) or device arrays. Its
leading axis is the (global or per-process) batch:

  row            int32 [B]           index in the global batch of the step
  weight         float32 [B]         1 for a sample, 0 for padding (evaluation)
  inputs         {modality key: array}   as the modality's `ArraySpec` says
  present        {modality key: bool [B]}   false where the sample lacks it
  text           {group: int32 [B, L]}   one text slot per group, e.g. "tva";
                                      groups of the same caption kinds hold
                                      the same text, and the same negatives
  negative_text  {group: int32 [B, K, L]}  explicit negatives (absent if K = 0)
  question       int32 [B, L], answer int32 [B, L]  (absent without QA)
  target         {"objective/group": [B, K]}   labels, see
                                      `mico_jax.data.targets`; absent without
  target_weight  {"objective/group": float32 [B, K]}   1 where there is one

Text ids are padded with the tokenizer's pad id and start with its cls id and
end with its sep id. The contents of a task's batch follow from the config alone
(`mico_jax.data.pipeline.batch_spec`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

PyTree = Any
Params = Mapping[str, Any]
Batch = Mapping[str, Any]


@runtime_checkable
class TextIds(Protocol):
  """Ids of padding, of the first, last and hidden token of a text."""

  @property
  def pad(self) -> int: ...  # noqa: D102
  @property
  def cls(self) -> int: ...  # noqa: D102
  @property
  def sep(self) -> int: ...  # noqa: D102
  @property
  def mask(self) -> int: ...  # noqa: D102


@runtime_checkable
class SpecialIds(TextIds, Protocol):
  """`TextIds`, and (first, last + 1) of the ids of random replacements."""

  @property
  def random_range(self) -> tuple[int, int]: ...  # noqa: D102
