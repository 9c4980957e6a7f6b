"""Logical axis names of parameters and activations, and the rules of presets.

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

LOGICAL = (
  *(BATCH, TOKENS, LAYERS, EMBED, QKV, MLP, VOCAB, POSITION, JOINT, PATCH),
  *(NORM, UNSHARDED),
)

# Mesh axes, in the order of every mesh: the last changes fastest, so its
# devices are nearest to each other.
DATA = "data"  # rows of the batch; parameters are copied
FSDP = "fsdp"  # rows of the batch; parameters are split, gathered for use
SEQUENCE = "sequence"  # tokens of a row
TENSOR = "tensor"  # heads, hidden widths, vocabulary

MESH_AXES = (DATA, FSDP, SEQUENCE, TENSOR)

Target = str | tuple[str, ...] | None


def rules(targets: dict[str, Target]) -> tuple[tuple[str, Target], ...]:
  """Logical axis -> mesh axes for every logical axis; unnamed: replicated."""
  return tuple((name, targets.get(name)) for name in LOGICAL)


_ROWS = (DATA, FSDP)
_TENSOR = {QKV: TENSOR, MLP: TENSOR, VOCAB: TENSOR}

DDP_RULES = rules({BATCH: DATA})

# Preset -> its rules. A mesh axis of several devices that the preset does not
# name is an error (`run.checks.check_mesh`): its devices would repeat work.
RULES: dict[str, tuple[tuple[str, Target], ...]] = {
  "ddp": DDP_RULES,
  "fsdp": rules({BATCH: _ROWS, EMBED: FSDP}),
  "fsdp_tp": rules({BATCH: _ROWS, EMBED: FSDP, **_TENSOR}),
  "fsdp_sp": rules({BATCH: _ROWS, EMBED: FSDP, TOKENS: SEQUENCE}),
}
