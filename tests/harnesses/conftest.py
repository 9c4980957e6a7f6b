"""Lets the harnesses load beside a PyTorch for CPUs."""

from __future__ import annotations

from mico_jax.testing import torchvision_operators

torchvision_operators.define()
