"""The encoder against timm's EVA and ViT, with the same random weights.

Tolerance: float32 on both sides, tokens and gradients within 2e-5.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.config import ModelConfig
from mico_jax.interop.names import mico
from mico_jax.models import VISION
from mico_jax.models.vit import ViT
from mico_jax.testing.tiny_model import tiny_vision

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # small tensors; other threads only wait
pytest.importorskip("timm")

BASE = tiny_vision(image_size=24, width=32, num_heads=4, mlp_dim=48)
EVA = {
  "eva01": ({}, {}),
  "eva02": (
    {"mlp": "swiglu", "sub_norm": True, "rope_grid": 16},
    {
      "qkv_fused": False,
      "swiglu_mlp": True,
      "scale_mlp": True,
      "scale_attn_inner": True,
      "use_rot_pos_emb": True,
      "ref_feat_shape": (16, 16),
    },
  ),
  "eva02_e": ({"norm": "post"}, {"use_post_norm": True}),
  "scaled": ({"layer_scale": 0.1}, {"init_values": 0.1}),
}
# timm's name -> released name, tried in order.
EVA_NAMES = (
  (r"\.attn\.([qv])_proj\.bias", r".attn.\1_bias"),
  (r"\.attn\.norm\.", ".attn.inner_attn_ln."),
  (r"\.mlp\.norm\.", ".mlp.ffn_ln."),
  (r"\.mlp\.fc1_g\.", ".mlp.w1."),
  (r"\.mlp\.fc1_x\.", ".mlp.w2."),
)
CLIP_NAMES = (
  (r"cls_token$", "class_embedding"),
  (r"pos_embed$", "positional_embedding"),
  (r"patch_embed\.proj", "conv1"),
  (r"norm_pre", "ln_pre"),
  (r"visual\.norm\.", "visual.ln_post."),
  (r"blocks\.(\d+)\.", r"transformer.resblocks.\1."),
  (r"\.norm(\d)\.", r".ln_\1."),
  (r"\.qkv\.(weight|bias)", r".in_proj_\1"),
  (r"\.attn\.proj\.", ".attn.out_proj."),
  (r"\.mlp\.fc1\.", ".mlp.c_fc."),
  (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


def randomised(model):
  """The model in evaluation mode, with no parameter at its initial value."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, p in model.named_parameters():
      noise = torch.randn(p.shape, generator=generator)
      scale = p.shape[-1] ** -0.5 if p.ndim == 2 else 0.1
      norm = "norm" in name and name.endswith("weight")
      p.copy_(scale * noise + norm)
  return model.eval()


def timm_eva(name):
  from timm.models.eva import Eva

  vision = dataclasses.replace(BASE, **EVA[name][0])
  model = Eva(
    img_size=vision.image_size,
    patch_size=vision.patch_size,
    embed_dim=vision.width,
    depth=vision.depth,
    num_heads=vision.num_heads,
    mlp_ratio=vision.mlp_dim / vision.width,
    num_classes=0,
    global_pool="token",
    **EVA[name][1],
  )
  return vision, randomised(model)


def timm_vit(vision, **options):
  from timm.models.vision_transformer import VisionTransformer

  model = VisionTransformer(
    img_size=vision.image_size,
    patch_size=vision.patch_size,
    embed_dim=vision.width,
    depth=vision.depth,
    num_heads=vision.num_heads,
    mlp_ratio=vision.mlp_dim / vision.width,
    num_classes=0,
    global_pool="token",
    norm_layer=functools.partial(torch.nn.LayerNorm, eps=vision.norm_eps),
    **options,
  )
  return randomised(model)


def renamed(tensors, rules, vision):
  """timm's tensors under released names."""
  found = {}
  for name, value in tensors.items():
    name = "vision_encoder.visual." + name
    for pattern, new in rules:
      name = re.sub(pattern, new, name)
    if vision.mlp == "swiglu":
      name = name.replace(".mlp.fc2.", ".mlp.w3.")
    value = value.detach().numpy()
    if name.endswith(("class_embedding", "positional_embedding")):
      value = value.reshape(
        value.shape[2:] if value.shape[1] == 1 else value.shape[1:]
      )
    found[name] = value
  return found


def tokens_and_gradients(model, pixels, weight):
  """timm's tokens, and the gradients of their weighted sum by name."""
  model.zero_grad()
  tokens = model.forward_features(torch.tensor(pixels))
  (tokens * torch.tensor(weight)).sum().backward()
  grads = {n: p.grad for n, p in model.named_parameters()}
  return tokens.detach().numpy(), grads


def arrays(vision):
  rng = np.random.default_rng(0)
  grid = vision.image_size // vision.patch_size
  pixels = rng.normal(size=(2, 3, vision.image_size, vision.image_size))
  weight = rng.normal(size=(2, 1 + grid**2, vision.width))
  return pixels.astype(np.float32), 0.02 * weight.astype(np.float32)


def ours(vision, params, pixels, weight):
  """Our tokens and gradients."""
  x = jnp.asarray(pixels.transpose(0, 2, 3, 1))

  @jax.jit
  def run(params):
    tokens, _ = ViT(vision).apply({"params": params["vision"]}, x)
    return (tokens * jnp.asarray(weight)).sum(), tokens

  with jax.default_matmul_precision("highest"):
    (_, tokens), grads = jax.value_and_grad(run, has_aux=True)(params)
  return tokens, grads


def compare(vision, model, rules):
  """Runs both with timm's weights, by way of the released names."""
  config = ModelConfig(vision=vision)
  tensors = renamed(dict(model.named_parameters()), rules, vision)
  params = mico.from_official(tensors, config, parts=["vision"])
  params = jax.tree.map(jnp.asarray, params)
  pixels, weight = arrays(vision)
  want, theirs = tokens_and_gradients(model, pixels, weight)
  got, grads = ours(vision, params, pixels, weight)
  np.testing.assert_allclose(got, want, atol=2e-5)
  theirs = renamed(theirs, rules, vision)
  grads = mico.to_official(grads, config, parts=["vision"], copies=False)
  assert set(theirs) == set(grads)
  for name, value in theirs.items():
    scale = max(np.abs(value).max(), 1.0)
    np.testing.assert_allclose(
      grads[name], value, atol=2e-5 * scale, err_msg=name
    )


@pytest.mark.parametrize("name", EVA)
def test_eva(name):
  vision, model = timm_eva(name)
  compare(vision, model, EVA_NAMES)


def test_clip():
  clip = VISION["clip_b16"]
  sizes = ("image_size", "patch_size", "width", "depth", "num_heads", "mlp_dim")
  vision = dataclasses.replace(clip, **{n: getattr(BASE, n) for n in sizes})
  model = timm_vit(vision, pre_norm=True, act_layer="quick_gelu")
  compare(vision, model, CLIP_NAMES)


@pytest.mark.parametrize("mlp", ["gelu", "gelu_tanh"])
def test_plain(mlp):
  vision = dataclasses.replace(BASE, qkv_bias="all", mlp=mlp)
  model = timm_vit(vision, act_layer=mlp)
  state = {k: v.detach().numpy() for k, v in model.state_dict().items()}

  def dense(name, layers=vision.depth):
    stacked = np.stack(
      [state[f"blocks.{i}.{name}.weight"].T for i in range(layers)]
    )
    biases = np.stack([state[f"blocks.{i}.{name}.bias"] for i in range(layers)])
    return {"kernel": stacked, "bias": biases}

  def norm(name):
    found = dense(name)
    return {"scale": found["kernel"], "bias": found["bias"]}

  conv = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
  params = {
    "cls_token": state["cls_token"][0, 0],
    "pos_embed": state["pos_embed"][0],
    "patch_embed": {
      "proj": {
        "kernel": conv.reshape(-1, vision.width),
        "bias": state["patch_embed.proj.bias"],
      }
    },
    "blocks": {
      "attn": {"qkv": dense("attn.qkv"), "proj": dense("attn.proj")},
      "mlp": {"fc1": dense("mlp.fc1"), "fc2": dense("mlp.fc2")},
      "norm1": norm("norm1"),
      "norm2": norm("norm2"),
    },
    "norm": {"scale": state["norm.weight"], "bias": state["norm.bias"]},
  }
  assert sum(x.size for x in jax.tree.leaves(params)) == sum(
    x.size for x in state.values()
  )
  pixels, weight = arrays(vision)
  want, theirs = tokens_and_gradients(model, pixels, weight)
  params = jax.tree.map(jnp.asarray, params)
  got, grads = ours(vision, {"vision": params}, pixels, weight)
  np.testing.assert_allclose(got, want, atol=2e-5)
  for i in range(vision.depth):
    np.testing.assert_allclose(
      grads["vision"]["blocks"]["attn"]["qkv"]["kernel"][i],
      theirs[f"blocks.{i}.attn.qkv.weight"].numpy().T,
      atol=2e-5,
    )
  np.testing.assert_allclose(
    grads["vision"]["pos_embed"], theirs["pos_embed"].numpy()[0], atol=2e-5
  )
