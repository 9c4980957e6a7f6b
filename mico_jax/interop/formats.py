"""The table of forms that weights are read from: the one place that lists them.

To add a form, write a module with `read` (a file or folder to a `Source`) and
`table` (a config to the entries that say where each parameter comes from), and
add its line here.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mico_jax.config import ModelConfig
from mico_jax.interop import bert, clip, evaclip, mico, mico_folder, timm
from mico_jax.interop.entries import Entry
from mico_jax.interop.source import Source


@dataclass(frozen=True)
class Format:
  """A form of weights.

  Attributes:
    read: names the tensors of a file or folder and finds their config.
    table: where each parameter comes from.
    about: one line of help.
  """

  read: Callable[[pathlib.Path], Source]
  table: Callable[[ModelConfig], Sequence[Entry]]
  about: str


FORMATS: dict[str, Format] = {
  "mico": Format(
    mico_folder.read,
    mico.entries,
    "a released folder: ckpt/model_step_*.pt and log/hps.json",
  ),
  "evaclip": Format(
    evaclip.read, evaclip.table, "EVA-CLIP, EVA-01 and EVA-02: the encoder"
  ),
  "clip": Format(
    clip.read, clip.table, "OpenAI's CLIP and open_clip: the encoder"
  ),
  "timm": Format(
    timm.read,
    lambda config: list(timm.table(config)),
    "vision transformers, Swin and ConvNeXt V2 of timm",
  ),
  "bert": Format(bert.read, bert.table, "BERT of Hugging Face: the text tower"),
}
