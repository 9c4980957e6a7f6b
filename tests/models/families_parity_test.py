"""Swin and ConvNeXt V2 against timm, UniRepLKNet against its training form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.config import VisionConfig
from mico_jax.interop.names import staged_vision, unireplknet
from mico_jax.models.encoders import ENCODERS
from mico_jax.testing.official_folder import staged_zeros

torch = pytest.importorskip("torch", reason="parity tests need torch")
timm = pytest.importorskip("timm", reason="parity tests need timm")

pytestmark = pytest.mark.parity

SWIN = VisionConfig(
  encoder="swin",
  image_size=32,
  patch_size=2,
  width=24,
  depth=5,
  num_heads=3,
  mlp_dim=48,
  norm_eps=1e-5,
  stage_depths=(3, 2),
  stage_widths=(12, 24),
  stage_heads=(2, 3),
  window_size=4,
)
CONVNEXT = VisionConfig(
  encoder="convnext",
  image_size=32,
  patch_size=4,
  width=24,
  depth=5,
  mlp_dim=96,
  stage_depths=(1, 2, 1, 1),
  stage_widths=(8, 12, 16, 24),
)


def _timm_swin():
  return timm.models.swin_transformer.SwinTransformer(
    img_size=SWIN.image_size,
    patch_size=SWIN.patch_size,
    embed_dim=SWIN.stage_widths[0],
    depths=SWIN.stage_depths,
    num_heads=SWIN.stage_heads,
    window_size=SWIN.window_size,
    mlp_ratio=2.0,
    num_classes=0,
    drop_path_rate=0.0,
  )


def _timm_convnext():
  return timm.models.convnext.ConvNeXt(
    depths=CONVNEXT.stage_depths,
    dims=CONVNEXT.stage_widths,
    use_grn=True,
    ls_init_value=None,
    num_classes=0,
  )


def _features(model, pixels):
  """Tokens after the final LayerNorm, [B L D]."""
  x = model.forward_features(pixels)
  if isinstance(model, timm.models.convnext.ConvNeXt):
    # Averaged first in timm; the same LayerNorm place by place here.
    x = model.head.norm(x).permute(0, 2, 3, 1)
  return x.flatten(1, 2)


@pytest.mark.parametrize(
  ("config", "make"),
  [(SWIN, _timm_swin), (CONVNEXT, _timm_convnext)],
  ids=["swin", "convnext"],
)
def test_forward_and_gradients_equal_timm(config, make):
  torch.manual_seed(0)
  theirs = make().eval()
  with torch.no_grad():
    for parameter in theirs.parameters():
      parameter.add_(0.1 * torch.randn(parameter.shape))
  rng = np.random.default_rng(0)
  pixels = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
  images = torch.tensor(pixels).permute(0, 3, 1, 2)
  want = _features(theirs, images)
  weights = rng.normal(size=want.shape).astype(np.float32)
  (want * torch.tensor(weights)).sum().backward()

  state = {k: v.detach().numpy() for k, v in theirs.named_parameters()}
  params = jax.tree.map(
    jnp.asarray, staged_vision.from_tensors(state, config, layout="timm")
  )
  encoder = ENCODERS[config.encoder](config)

  def loss(params):
    tokens, _ = encoder.apply({"params": params}, jnp.asarray(pixels))
    return jnp.sum(tokens * weights), tokens

  with jax.default_matmul_precision("highest"):
    grads, tokens = jax.jit(jax.grad(loss, has_aux=True))(params)
  np.testing.assert_allclose(tokens, want.detach().numpy(), atol=2e-5)
  found = staged_vision.to_tensors(
    jax.tree.map(np.asarray, grads), config, layout="timm", buffers=False
  )
  for name, parameter in theirs.named_parameters():
    expected = parameter.grad.numpy()
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(
      found.pop(name), expected, atol=3e-5 * scale, err_msg=name
    )
  assert not found


def test_equal_full_size_names():
  """The name tables also cover the published sizes, tensor by tensor."""
  for name, config in (
    ("swin_tiny_patch4_window7_224", ("swin", "t")),
    ("convnextv2_tiny", ("convnext", "tiny")),
  ):
    with torch.device("meta"):
      model = timm.create_model(name, num_classes=0)
    sizes = staged_vision.SIZES[config[0]][config[1]]
    tensors = staged_zeros(sizes, "timm")
    shapes = {name: value.shape for name, value in tensors.items()}
    assert shapes == {k: tuple(v.shape) for k, v in model.named_parameters()}


# ------------------------------------------------- UniRepLKNet, training form
UNIREP = VisionConfig(
  encoder="unireplknet",
  image_size=32,
  patch_size=4,
  width=16,
  depth=6,
  mlp_dim=64,
  stage_depths=(2, 4),
  stage_widths=(8, 16),
  stage_kernels=((3,), (13, 7)),
)
BRANCHES = {
  13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
  7: ((5, 1), (3, 2), (3, 3)),
}


def _norm(x, state, name):
  stats = [state[f"{name}.{n}"] for n in ("running_mean", "running_var")]
  return torch.nn.functional.batch_norm(
    x, *stats, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5
  )


def _random_state(config, generator):
  """Tensors of the training form, under their released names."""
  state = {}

  def add(name, *shape, center=0.0):
    value = 0.3 * torch.randn(shape, generator=generator) + center
    state[name] = value.double()

  def norm(name, width, *, batch=True):
    add(f"{name}.weight", width, center=1.0)
    add(f"{name}.bias", width)
    if batch:
      add(f"{name}.running_mean", width)
      variance = 0.5 + torch.rand(width, generator=generator)
      state[f"{name}.running_var"] = variance.double()
      state[f"{name}.num_batches_tracked"] = torch.tensor(3)

  def conv(name, out, *shape, bias=True):
    add(f"{name}.weight", out, *shape)
    if bias:
      add(f"{name}.bias", out)

  widths = config.stage_widths
  stem = "downsample_layers.0."
  conv(f"{stem}0", widths[0] // 2, 3, 3, 3)
  norm(f"{stem}1", widths[0] // 2, batch=False)
  conv(f"{stem}3", widths[0], widths[0] // 2, 3, 3)
  norm(f"{stem}4", widths[0], batch=False)
  for s, (depth, width) in enumerate(
    zip(config.stage_depths, widths, strict=True)
  ):
    if s:
      conv(f"downsample_layers.{s}.0", width, widths[s - 1], 3, 3)
      norm(f"downsample_layers.{s}.1", width, batch=False)
    for j in range(depth):
      block = f"stages.{s}.{j}."
      size = config.stage_kernels[s][j % len(config.stage_kernels[s])]
      name = "dwconv.lk_origin" if size in BRANCHES else "dwconv"
      conv(block + name, width, 1, size, size, bias=False)
      if size in BRANCHES:
        norm(block + "dwconv.origin_bn", width)
      for k, r in BRANCHES.get(size, ()):
        conv(f"{block}dwconv.dil_conv_k{k}_{r}", width, 1, k, k, bias=False)
        norm(f"{block}dwconv.dil_bn_k{k}_{r}", width)
      norm(block + "norm", width)
      conv(block + "se.down", width // 4, width, 1, 1)
      conv(block + "se.up", width, width // 4, 1, 1)
      conv(block + "pwconv1.1", 4 * width, width)
      add(block + "act.1.gamma", 1, 1, 1, 4 * width)
      add(block + "act.1.beta", 1, 1, 1, 4 * width)
      conv(block + "pwconv2.0", width, 4 * width, bias=False)
      norm(block + "pwconv2.2", width)
      add(block + "gamma", width)
  norm("norm", widths[-1], batch=False)
  conv("head", 7, widths[-1])
  return state


def _training_form(state, config, x):
  """The published network before merging, in evaluation mode."""
  functional = torch.nn.functional

  def conv(x, name, **options):
    bias = state.get(f"{name}.bias")
    return functional.conv2d(x, state[f"{name}.weight"], bias, **options)

  def layer_norm(x, name):
    x = x.permute(0, 2, 3, 1)
    x = functional.layer_norm(
      x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6
    )
    return x.permute(0, 3, 1, 2)

  def block(x, name, size):
    width = x.shape[1]
    if size in BRANCHES:
      main = conv(x, f"{name}dwconv.lk_origin", padding=size // 2, groups=width)
      y = _norm(main, state, f"{name}dwconv.origin_bn")
      for k, r in BRANCHES[size]:
        branch = conv(
          x,
          f"{name}dwconv.dil_conv_k{k}_{r}",
          padding=r * (k - 1) // 2,
          dilation=r,
          groups=width,
        )
        y = y + _norm(branch, state, f"{name}dwconv.dil_bn_k{k}_{r}")
    else:
      y = conv(x, f"{name}dwconv", padding=size // 2, groups=width)
    y = _norm(y, state, f"{name}norm")
    gate = conv(y.mean((2, 3), keepdim=True), f"{name}se.down").relu()
    y = y * conv(gate, f"{name}se.up").sigmoid()
    y = functional.linear(
      y.permute(0, 2, 3, 1),
      state[f"{name}pwconv1.1.weight"],
      state[f"{name}pwconv1.1.bias"],
    )
    y = functional.gelu(y)
    size = y.square().sum((1, 2), keepdim=True).sqrt()
    size = size / (size.mean(-1, keepdim=True) + 1e-6)
    gamma, beta = (state[f"{name}act.1.{n}"] for n in ("gamma", "beta"))
    y = (gamma * size + 1) * y + beta
    y = functional.linear(y, state[f"{name}pwconv2.0.weight"])
    y = _norm(y.permute(0, 3, 1, 2), state, f"{name}pwconv2.2")
    return x + state[f"{name}gamma"].view(1, -1, 1, 1) * y

  stem = "downsample_layers.0."
  x = layer_norm(conv(x, f"{stem}0", stride=2, padding=1), f"{stem}1")
  x = conv(functional.gelu(x), f"{stem}3", stride=2, padding=1)
  x = layer_norm(x, f"{stem}4")
  for s, depth in enumerate(config.stage_depths):
    if s:
      name = f"downsample_layers.{s}."
      x = layer_norm(conv(x, f"{name}0", stride=2, padding=1), f"{name}1")
    sizes = config.stage_kernels[s]
    for j in range(depth):
      x = block(x, f"stages.{s}.{j}.", sizes[j % len(sizes)])
  return layer_norm(x, "norm").permute(0, 2, 3, 1).flatten(1, 2)


def test_merged_unireplknet_equals_its_training_form():
  generator = torch.Generator().manual_seed(0)
  state = _random_state(UNIREP, generator)
  pixels = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
  images = torch.tensor(pixels).permute(0, 3, 1, 2)
  want = _training_form(state, UNIREP, images).numpy()
  tensors = {k: v.numpy() for k, v in state.items()}
  assert any(name.endswith(".running_var") for name in tensors)
  merged = unireplknet.merge(tensors, UNIREP)
  assert not any(name.endswith(".running_var") for name in merged)
  params = staged_vision.from_tensors(merged, UNIREP, layout="official")
  encoder = ENCODERS["unireplknet"](UNIREP)
  with jax.default_matmul_precision("highest"):
    tokens, _ = jax.jit(encoder.apply)(
      {"params": params}, jnp.asarray(pixels, jnp.float32)
    )
  np.testing.assert_allclose(tokens, want, atol=3e-5)
  back = staged_vision.to_tensors(params, UNIREP, layout="official")
  merged = {k: v for k, v in merged.items() if not k.startswith("head")}
  assert back.keys() == merged.keys()
  for name, value in back.items():
    np.testing.assert_array_equal(value, merged[name].astype(np.float32))


def test_a_branch_that_does_not_fit():
  generator = torch.Generator().manual_seed(0)
  state = {k: v.numpy() for k, v in _random_state(UNIREP, generator).items()}
  name = "stages.1.1.dwconv.dil_conv_k3_3.weight"
  state[name] = np.zeros((16, 1, 5, 5))
  with pytest.raises(ValueError, match="reaches 13 places"):
    unireplknet.merge(state, UNIREP)
  del state[name], state["stages.1.1.norm.bias"]
  with pytest.raises(ValueError, match=r"no tensor stages\.1\.1\.norm\.bias"):
    unireplknet.merge(state, UNIREP)
