"""Logical axis names of parameters and activations, and the default rules.

Flax turns a misspelt axis name into "replicated" without a word, so the names
are constants and a test checks that each axis a parameter carries has a rule.
"""

from __future__ import annotations

# Parameters.
LAYERS = "layers"  # stacked by scan; axis 0 of every block parameter
EMBED = "embed"  # width of a tower (input side of a projection)
QKV = "qkv"  # packed heads x head_dim (x 3): output side of attention
MLP = "mlp"  # hidden width of an MLP
VOCAB = "vocab"  # token table rows
POSITION = "position"  # position and frame tables
JOINT = "joint"  # joint embedding space
PATCH = "patch"  # flattened patch pixels
NORM = "norm"  # scales and biases along a width
UNSHARDED = "unsharded"  # singletons

# Activations.
BATCH = "batch"
TOKENS = "tokens"

# Mesh axes.
DATA = "data"

# Logical axis -> mesh axis (None: replicated). The data-parallel preset.
DDP_RULES: tuple[tuple[str, str | None], ...] = (
  (BATCH, DATA),
  (TOKENS, None),
  (LAYERS, None),
  (EMBED, None),
  (QKV, None),
  (MLP, None),
  (VOCAB, None),
  (POSITION, None),
  (JOINT, None),
  (PATCH, None),
  (NORM, None),
  (UNSHARDED, None),
)

RULES: dict[str, tuple[tuple[str, str | None], ...]] = {"ddp": DDP_RULES}
