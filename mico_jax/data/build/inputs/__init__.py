"""Inputs of a build: the one place that lists them."""

from __future__ import annotations

from mico_jax.data.build.inputs.base import Input
from mico_jax.data.build.inputs.manifest import ManifestInput
from mico_jax.data.build.inputs.metadata import LAYOUTS
from mico_jax.data.build.inputs.tars import TarsInput
from mico_jax.data.build.inputs.videos import VideosInput

__all__ = ["INPUTS", "LAYOUTS", "Input", "ManifestInput", "TarsInput",
           "VideosInput"]  # fmt: skip

INPUTS: dict[str, type[Input]] = {
  kind.kind: kind for kind in (ManifestInput, VideosInput, TarsInput)
}
