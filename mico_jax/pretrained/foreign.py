"""Weights of others that `mico-jax import` reads: where, and on what terms.

Nothing here is fetched unless a user gives the address. Licences are those that
the authors state for the weights; whoever uses them should read them there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Foreign:
  """Weights of others.

  Attributes:
    address: hf://owner/name, or the name of a file in one.
    form: of `mico-jax import --from`.
    parameters: in millions, of what is published.
    data: what they were trained on.
    licence: that the authors state.
    more: further arguments of the command.
  """

  address: str
  form: str
  parameters: int
  data: str
  licence: str
  more: str = ""

  @property
  def command(self) -> str:
    """The command that makes a checkpoint of them."""
    name = self.address.rpartition("/")[2].partition("@")[0]
    parts = ("mico-jax import", f"--from {self.form}", self.address)
    return " ".join(x for x in (*parts, f"--out ckpts/{name}", self.more) if x)


_MICO = "omni-modal pairs, see arXiv:2406.09412"

FOREIGN: Sequence[Foreign] = (
  Foreign(
    "hf://Yiyuan/MiCo-ViT-g-14-omnimodal-300k-b64K",
    "mico",
    1164,
    _MICO,
    "Apache-2.0",
    "--vocab vocab.txt",
  ),
  Foreign(
    "hf://google-bert/bert-base-uncased",
    "bert",
    110,
    "BookCorpus and English Wikipedia",
    "Apache-2.0",
  ),
  Foreign("hf://openai/clip-vit-base-patch32", "hf", 151, "400 M pairs", "MIT"),
  Foreign(
    "hf://google/siglip-base-patch16-224", "hf", 203, "WebLI", "Apache-2.0"
  ),
  Foreign("hf://facebook/dinov2-base", "hf", 87, "LVD-142M", "Apache-2.0"),
  Foreign(
    "hf://google/vit-base-patch16-224-in21k",
    "hf",
    86,
    "ImageNet-21k",
    "Apache-2.0",
  ),
  Foreign(
    "hf://timm/vit_base_patch16_224.augreg_in21k",
    "timm",
    103,
    "ImageNet-21k",
    "Apache-2.0",
  ),
  Foreign(
    "hf://facebook/convnextv2-base-22k-224",
    "hf",
    89,
    "ImageNet-22k",
    "CC-BY-NC-4.0",
  ),
  Foreign(
    "hf://microsoft/swin-base-patch4-window7-224-in22k",
    "hf",
    88,
    "ImageNet-22k",
    "MIT",
  ),
)
