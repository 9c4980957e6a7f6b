"""Point clouds: groups by their definition, readers, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest

from mico_jax.modalities import MODALITIES, DecodeError, Geometry
from mico_jax.modalities.points import farthest_points, neighbours

CLOUD = MODALITIES["pointcloud"]
ONE = Geometry(1, 16)


def points(count=200, seed=0):
  return np.random.default_rng(seed).standard_normal((count, 3))


def groups(raw, geometry=ONE, mode="plain", rng=None):
  return CLOUD.modes[mode].host(CLOUD.decode(raw, geometry), geometry, rng)


def valid(frames):
  return CLOUD.embedding.valid_tokens(frames, xp=np)


def npz(**arrays) -> bytes:
  out = io.BytesIO()
  np.savez(out, **arrays)
  return out.getvalue()


def test_groups_are_the_nearest_of_far_points():
  xyz = points(150)
  centres = farthest_points(xyz, 20)
  apart = np.linalg.norm(xyz[:, None] - xyz[None], axis=-1)
  assert centres[0] == np.linalg.norm(xyz - xyz.mean(0), axis=1).argmax()
  for i in range(1, 20):
    assert centres[i] == apart[:, centres[:i]].min(axis=1).argmax()
  want = np.argsort(apart[centres], axis=1)[:, :32]
  np.testing.assert_array_equal(neighbours(xyz, centres, 32), want)
  # Equal distances: the point of lower index.
  line = np.array([[0.0, 0, 0], [1, 0, 0], [-1, 0, 0], [3, 0, 0]])
  assert neighbours(line, np.array([0]), 2).tolist() == [[0, 1]]


def test_a_cloud_has_no_order_place_or_size():
  xyz = points()
  want = groups(xyz)
  assert want.shape == (1, 64, 32, 8)
  np.testing.assert_allclose(np.linalg.norm(want[0, 0, 0, :3]), 1, atol=1e-6)
  order = np.random.default_rng(1).permutation(len(xyz))
  np.testing.assert_array_equal(groups(xyz[order]), want)
  again = np.concatenate([xyz, xyz[:50]])  # duplicates
  np.testing.assert_array_equal(groups(again), want)
  moved = groups(4 * xyz + np.array([1e3, -2e3, 7]))
  np.testing.assert_allclose(moved, want, atol=1e-5)
  two = groups(xyz, Geometry(2, 16))
  assert two.shape == (2, 64, 32, 8)
  np.testing.assert_array_equal(two[:, :32], want[0].reshape(32, 2, 32, 8)
                                .swapaxes(0, 1))  # fmt: skip


def test_few_points_are_padded():
  got = groups(points(5))
  assert valid(got)[0].tolist() == [True] * 5 + [False] * 59
  assert got[0, :5, :5, 7].all()
  assert not got[0, :, 5:].any()
  assert not got[0, 5:].any()


def test_colours_have_one_range():
  xyz = points(30)
  shades = np.random.default_rng(2).integers(0, 256, (30, 3))
  whole = np.concatenate([np.arange(90).reshape(30, 3), shades], axis=1)
  shares = np.concatenate([whole[:, :3], shades / 255], axis=1)
  want = groups(whole)
  assert want[0, :30, :30, 6].all()
  assert not groups(xyz)[..., 3:7].any()
  first = np.abs(want[0, 0, 0, 3:6] - (2 * shades / 255 - 1)).max(axis=1)
  assert first.min() < 1e-6
  np.testing.assert_allclose(groups(shares), want, atol=1e-6)
  colors = shades.astype(np.uint8)
  stored = npz(points=whole[:, :3], colors=colors)
  np.testing.assert_allclose(groups(stored), want, atol=1e-6)


def test_modes_that_move_points():
  xyz = points(400)
  rng = np.random.default_rng(5)
  cloud = CLOUD.decode(xyz, ONE)
  plain = CLOUD.mode("turn_z", train=False).host(cloud, ONE, None)
  np.testing.assert_array_equal(plain, groups(xyz))
  ratio = []
  for mode in ("jitter", "turn_z"):
    moved = CLOUD.modes[mode].host(cloud, ONE, rng)[0]
    span = np.linalg.norm(moved[0, 0, :3])
    assert 0.85 < span < 1.15
    assert np.abs(moved - plain[0])[..., :3].max() > 1e-3
    flat = np.concatenate([plain[0, :, 0, :3], moved[:, 0, :3]])
    assert np.abs(flat[:, 2]).max() < 1.2
    # The far point stays near its place, unless the cloud is turned.
    ratio.append(np.abs(moved[0, 0, :3] - plain[0, 0, 0, :3]).max())
  assert ratio[0] < 0.2


@pytest.mark.parametrize(
  ("raw", "words"),
  [
    (np.zeros((0, 3)), "the point cloud is empty"),
    (np.zeros((9, 3)), "lie at one place"),
    (np.ones((1, 3)), "lie at one place"),
    (np.where(np.eye(9, 3) > 0, np.nan, 1), "3 of 9 points .* not finite"),
    (np.full((9, 3), np.inf), "9 of 9 points"),
    (points(9).T, r"shape \[3, 9\]; expected \[N, 3\]"),
    (points(9) > 0, "expected numbers"),
    (np.tile(points(9), 2), "such as normals"),
    (np.full((9, 6), 200.0), "colours of float64, 200 to 200"),
    (npz(x=points(9)), "without an array 'points'"),
    (npz(points=points(9), colors=points(8)), "colours of shape"),
    (npz(points=np.array([{}], object)), "not a readable .npz"),
    (b"", "0 bytes"),
    (b"solid cube", "not a point cloud of a known kind"),
    ("cloud", "expected the file of a point cloud"),
  ],
)
def test_bad_clouds_are_refused(raw, words):
  with pytest.raises(DecodeError, match=words) as error:
    CLOUD.decode(raw, ONE)
  assert "\n" not in str(error.value)


def test_ply_and_las_files():
  plyfile = pytest.importorskip("plyfile")
  laspy = pytest.importorskip("laspy")
  xyz = np.round(points(60), 3)
  colour = np.random.default_rng(3).integers(0, 256, (60, 3), np.uint8)
  want = groups(np.concatenate([xyz, colour / 255], axis=1))
  kinds = [(n, "f8") for n in "xyz"]
  kinds += [(n, "u1") for n in ("red", "green", "blue")]
  rows = np.zeros(60, kinds)
  for name, column in zip(rows.dtype.names, (*xyz.T, *colour.T), strict=True):
    rows[name] = column
  for text in (True, False):
    out = io.BytesIO()
    vertex = plyfile.PlyElement.describe(rows, "vertex")
    plyfile.PlyData([vertex], text=text).write(out)
    np.testing.assert_allclose(groups(out.getvalue()), want, atol=1e-6)
  header = laspy.LasHeader(point_format=2, version="1.2")
  header.scales = [0.001] * 3
  for scale, words in ((257, ""), (1, "8 were written"), (0, "")):
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = xyz.T
    cloud.red, cloud.green, cloud.blue = scale * colour.T.astype(np.uint16)
    out = io.BytesIO()
    cloud.write(out)
    if words:
      with pytest.raises(DecodeError, match=words):
        groups(out.getvalue())
      continue
    got = groups(out.getvalue())
    coloured = want if scale else groups(xyz)
    np.testing.assert_allclose(got, coloured, atol=1e-5)
  head = b"ply\nformat ascii 1.0\nelement vertex 999999999\nend_header\n"
  lying = bytearray(out.getvalue())
  lying[107:111] = (2**31).to_bytes(4, "little")  # points of LAS 1.2
  for broken, words in (
    (b"ply\nformat", "not a readable PLY"),
    (head, "promises 999999999 rows"),
    (b"LASF" + bytes(99), "not a readable LAS"),
    (bytes(lying), "it promises"),
  ):
    with pytest.raises(DecodeError, match=words):
      CLOUD.decode(broken, ONE)


def test_every_cloud_of_the_real_set(data_dir):
  path = data_dir / "small_modalities" / "shapes_chair_monitor.npz"
  arrays = np.load(path, allow_pickle=False)
  counts = {"train": 902, "test": 194}
  for split, count in counts.items():
    clouds = arrays[f"{split}_points"]
    assert len(clouds) == count
    for cloud in clouds:
      decoded = CLOUD.decode(cloud, ONE)
      assert len(decoded) == len(np.unique(cloud, axis=0))
      assert np.abs(np.square(decoded[:, :3]).sum(axis=1).max() - 1) < 1e-5
  few = arrays["test_points"][::10]
  assert all(valid(groups(cloud)).any() for cloud in few)
