"""Sensors of v2: units, physics, and no fact in the wrong one."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mico_jax import world
from mico_jax.modalities import MODALITIES, Geometry
from mico_jax.world import motion, points, render, thermal
from mico_jax.world import scene as facts

V1, V2 = world.World(), world.World(version="v2")
SENSORS = ("thermal", "imu", "pointcloud")
LOOK = (0.5,) * len(V1.scene(0).look)


def one(shape="sphere", **changed):
  words = {
    "colour": "red",
    "size": "large",
    "material": "metal",
    "place": "middle",
    "motion": "still",
    **changed,
  }
  solid = facts.Solid(shape, **words)
  return facts.Scene((solid,), "twice", "room", "anna", LOOK)


def decoded(scene, key):
  """What the record of the modality makes of a rendering."""
  unit, rate = world.UNITS.get(key, ""), world.RATES.get(key, 0.0)
  raw = V2.render(scene, num_frames=1, fields=(key,))[key]
  out = MODALITIES[key].decode(raw, Geometry(1, 32, unit=unit, rate=rate))
  return out.take([0]) if key == "thermal" else out


# ------------------------------------------------------------------- versions


def test_v2_has_the_scenes_pictures_sounds_and_sentences_of_v1():
  for i in (0, 3, 2**40):
    scene = V1.scene(i)
    assert V2.scene(i) == scene
    assert V2.hard_gallery(i) == V1.hard_gallery(i)
    for frames in (1, 2, 3):  # solids are at equal places then
      old, new = (w.render(scene, num_frames=frames) for w in (V1, V2))
      for key in world.FIELDS:
        np.testing.assert_array_equal(new[key], old[key])
    old, new = (w.language(scene, i) for w in (V1, V2))
    for name in ("captions", "negatives"):
      told = dict(getattr(new, name))
      assert {k: told.pop(k) for k in world.STATED} == getattr(old, name)
      assert set(told) == set(SENSORS)


@pytest.mark.parametrize("key", SENSORS)
def test_v1_has_no_further_sensor(key):
  with pytest.raises(ValueError, match=rf"'{key}' is unknown; known in v1"):
    V1.render(V1.scene(0), fields=(key,))


def test_bytes_are_equal_in_any_order_and_process():
  program = (
    "import hashlib; from mico_jax import world\n"
    "w = world.World(version='v2', split='test')\n"
    "for i in {}:\n"
    "  a = w.render(w.scene(i), num_frames=5)\n"
    "  h = hashlib.sha256(b''.join(a[k].tobytes() for k in sorted(a)))\n"
    "  print(i, h.hexdigest())"
  )
  run = lambda order: subprocess.run(
    [sys.executable, "-c", program.format(order)],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.splitlines()
  first, second = run("(0, 5, 9)"), run("(9, 2, 0, 5)")
  assert len(first) == 3
  assert set(first) < set(second)


# ---------------------------------------------------------------------- facts

BLIND = {
  "thermal": ("colour", "motion", "strikes", "setting", "name"),
  "imu": ("shape", "colour", "size", "material", "place", "name"),
  "pointcloud": ("material", "motion", "strikes", "setting", "name"),
}


@pytest.mark.parametrize("key", SENSORS)
def test_a_sensor_shows_what_its_sentences_state_and_nothing_else(key):
  stated = set(world.STATED_V2[key])
  letter = MODALITIES[key].letter
  assert stated == {f for f in world.OBSERVABLE if world.observes(letter, f)}
  names = [*facts.SOLID_FACTS, *facts.SCENE_FACTS]
  hidden = {n for n in names if n not in stated}
  # The metres of a scene are no fact of its recordings, see `motion`.
  assert hidden - {"setting"} == set(BLIND[key]) - {"setting"}
  for i in range(4):
    scene = V2.scene(i)
    base = decoded(scene, key)
    for change in facts.changes(scene, names):
      other = decoded(
        scene.with_fact(change, scene.alternatives(change)[0]), key
      )
      same = base.shape == other.shape and np.allclose(base, other, atol=2e-6)
      if change[0] in BLIND[key]:
        assert same, change
      elif change[0] in stated:
        assert not same, change


# -------------------------------------------------------------------- thermal


@pytest.mark.parametrize("shape", facts.SHAPES)
@pytest.mark.parametrize("material", facts.MATERIALS)
def test_temperatures_follow_material_and_light(shape, material):
  scene = one(shape, material=material)
  arrays = V2.render(scene, size=64, num_frames=1, fields=("thermal",))
  kelvin = arrays["thermal"]
  _, depth, normal = render.cast(scene, 64, (0.0,))
  assert kelvin.shape == (1, 64, 64)
  assert kelvin.dtype == np.float32
  there = (
    depth < render.camera(64).depth * render.metres_per_unit(scene) * 0.999
  )
  assert 200 < there.sum() < 2000
  # The world's normal, from that in camera space.
  n = normal.astype(np.float64)[there]
  up = render._COS * n[:, 1] + render._SIN * n[:, 2]
  away = render._SIN * n[:, 1] - render._COS * n[:, 2]
  lit = np.stack([n[:, 0], up, away], axis=1) @ render.light_of(scene)
  rest, rise = thermal.MATERIAL_HEAT[material]
  expected = rest + rise * np.maximum(lit, 0)
  np.testing.assert_allclose(kelvin[there], expected, atol=2e-3)
  low, high = thermal.WALL[0], thermal.FLOOR[1]
  around = kelvin[~there]
  assert (around >= low - thermal.SHADE).all()
  assert (around <= high).all()


def test_materials_do_not_overlap_in_temperature():
  spans = sorted(
    (rest - thermal.SPREAD / 2, rest + thermal.SPREAD / 2 + rise)
    for rest, rise in thermal.MATERIAL_HEAT.values()
  )
  assert spans[0][0] > thermal.FLOOR[1]
  for (_, high), (low, _) in itertools.pairwise(spans):
    assert high < low


def test_a_thermal_camera_sees_where_the_others_see():
  for i in range(6):
    arrays = V2.render(V2.scene(i), size=48, num_frames=4)
    solid = arrays["thermal"] > thermal.FLOOR[1] + 1
    # Solids are what floor and wall are not: in front of them.
    background = np.max(arrays["depth"], axis=0)
    assert (arrays["depth"] <= background).all()
    for t in range(4):
      tilt = arrays["normal"][t][solid[t]]
      flat = render.camera(48).normal[solid[t]]
      grey = np.ptp(arrays["video"][t].astype(int), axis=-1)
      assert np.mean(np.abs(tilt - flat).max(axis=-1) > 1e-3) > 0.5
      assert (grey[~solid[t]] < 40).all()


# ------------------------------------------------------------------ recordings


@pytest.mark.parametrize("number", range(6))
def test_a_recording_is_what_the_motion_implies(number):
  """Against finite differences of the places, and rotations of SciPy."""
  scene = V2.scene(number)
  for i in range(len(scene.solids)):
    step = 1e-3
    s = np.arange(-0.1, 1.15, step)
    place = motion.position(scene, i, s)
    exact = motion.acceleration(scene, i, s)
    found = (place[2:] - 2 * place[1:-1] + place[:-2]) / step**2
    scale = 1e-12 + np.abs(exact).max()
    # At both ends the third derivative jumps.
    assert np.abs(found - exact[1:-1]).max() < 0.02 * scale
    axis, angle, speed = motion.rocking(scene, i, s)
    strikes = 1 + facts.STRIKES.index(scene.strikes)
    moments = i / len(scene.solids) + 0.1 * np.arange(strikes)
    smooth = np.abs(s[1:-1, None] - moments).min(axis=1) > 2 * step
    slope = (angle[2:] - angle[:-2]) / (2 * step)
    np.testing.assert_allclose(slope[smooth], speed[1:-1][smooth], atol=2e-3)
    assert not speed[s < moments[0]].any()
    turn = Rotation.from_rotvec(angle[:, None] * axis)
    force = turn.inv().apply(exact + np.array([0, 0, motion.GRAVITY]))
    sensed = motion.measured(scene, i, s)
    np.testing.assert_allclose(sensed[:, :3], force, atol=1e-9)
    np.testing.assert_allclose(sensed[:, 3:], speed[:, None] * axis, atol=1e-12)


def test_recordings_follow_one_another_with_little_noise():
  for i in range(6):
    scene = V2.scene(i)
    wave = V2.render(scene, fields=("imu",))["imu"]
    assert wave.shape == (64 * len(scene.solids), 6)
    assert wave.dtype == np.float32
    at = np.arange(-0.14, 1.13, 0.02)
    exact = [motion.measured(scene, k, at) for k in range(len(scene.solids))]
    noise = wave - np.concatenate(exact)
    assert np.abs(noise[:, :3]).max() < 0.0101
    assert np.abs(noise[:, 3:]).max() < 0.0041
    assert noise.std(axis=0).min() > 1e-3
    # At rest before the first strike: gravity along z alone.
    rest = exact[0][:6]
    np.testing.assert_allclose(rest, [[0, 0, 9.80665, 0, 0, 0]] * 6, atol=1e-12)


def test_strikes_are_felt_when_they_are_heard():
  scenes = map(V2.scene, range(99))
  scene = next(s for s in scenes if len(s.solids) == 3)
  scene = scene.with_fact(("strikes", None), "thrice")
  sound = V2.render(scene, fields=("audio",))["audio"]
  for k in range(len(scene.solids)):
    s = np.arange(-160, 16000) / 16000
    speed = motion.rocking(scene, k, s)[2]
    struck = np.flatnonzero(np.diff(np.abs(speed)) > 0.1) - 159
    assert len(struck) == 3
    for at in struck:
      before, after = sound[max(at - 200, 0) : at], sound[at : at + 200]
      assert np.abs(after).max() > 3 * np.abs(before).max(initial=1e-3)


def test_the_video_shows_the_places_of_the_recording():
  """Middle of a sphere in a picture, against the projected place."""
  size, frames = 101, 5
  view = render.camera(size)
  for way in facts.MOTIONS:
    scene = one("sphere", motion=way, size="small")
    arrays = V2.render(scene, size=size, num_frames=frames)
    metres = motion.position(scene, 0, np.linspace(0, 1, frames))
    x, z, y = (metres / render.metres_per_unit(scene)).T
    y, z = y - render._CAMERA[1], z - render._CAMERA[2]
    forward = render._COS * z - render._SIN * y
    column = size / 2 + view.focal * x / forward
    row = size / 2 - view.focal * (render._COS * y + render._SIN * z) / forward
    red = arrays["video"][..., 0] > 1.6 * arrays["video"][..., 1]
    for t in range(frames):
      rows, columns = np.nonzero(red[t])
      assert abs(rows.mean() + 0.5 - row[t]) < 0.6, (way, t)
      assert abs(columns.mean() + 0.5 - column[t]) < 0.6, (way, t)


# ---------------------------------------------------------------------- clouds


def gaps(shape, body, local):
  """Distance of points to the surface of a solid, as its definition has it."""
  x, y, z = local.T
  if shape == "sphere":
    return np.sqrt(x * x + y * y + z * z) - body.radius
  if shape == "cube":
    cos, sin = body.turn
    u, v = cos * x - sin * z, sin * x + cos * z
    return np.maximum(np.maximum(abs(u), abs(v)), abs(y)) - body.radius
  limit = body.radius
  if shape == "cone":
    limit = body.radius * (body.height - y) / (2 * body.height)
  return np.maximum(np.hypot(x, z) - limit, np.abs(y) - body.height)


@pytest.mark.parametrize("shape", facts.SHAPES)
def test_points_lie_evenly_on_the_solid(shape):
  scene = one(shape, place="left")
  (body,) = render.bodies(scene, (0.0,))
  cloud = V2.render(scene, fields=("pointcloud",))["pointcloud"]
  assert cloud.dtype == np.float32
  units = cloud[:, [0, 2, 1]] / render.metres_per_unit(scene)
  floor, solid = units[:15], units[15:]
  np.testing.assert_allclose(floor[:, 1], 0, atol=1e-6)
  local = solid - body.centre[:, 0, 0, 0]
  np.testing.assert_allclose(gaps(shape, body, local), 0, atol=1e-6)
  # Evenly: the mean of the whole surface, and no two points at one place.
  apart = np.linalg.norm(local[:, None] - local[None], axis=-1)
  np.fill_diagonal(apart, np.inf)
  assert apart.min(axis=1).mean() > 0.5 / np.sqrt(points.DENSITY)
  assert apart.min(axis=1).max() < 2.0 / np.sqrt(points.DENSITY)
  red = np.array(render.bodies(scene, (0.0,))[0].rgb) / 255
  np.testing.assert_allclose(cloud[15:, 3:], [red] * len(solid), rtol=1e-6)
  assert len(solid) > len(
    V2.render(one(shape, size="small"), fields=("pointcloud",))["pointcloud"]
  )


def test_clouds_and_depth_maps_are_of_the_same_surfaces():
  size = 64
  view = render.camera(size)
  for i in range(8):
    scene = V2.scene(i)
    arrays = V2.render(scene, size=size, num_frames=1)
    scale = render.metres_per_unit(scene)
    depth = arrays["depth"][0] / scale
    units = arrays["pointcloud"][:, [0, 2, 1]].astype(np.float64) / scale
    x, y, z = (units - render._CAMERA).T
    forward = render._COS * z - render._SIN * y
    column = (size / 2 + view.focal * x / forward).astype(int)
    row = size / 2 - view.focal * (render._COS * y + render._SIN * z) / forward
    row = row.astype(int)
    inside = (row > 0) & (row < size - 1) & (column > 0) & (column < size - 1)
    # No point lies before what is seen there or beside.
    row, column = row[inside], column[inside]
    steps = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    near = np.min([depth[row + a, column + b] for a, b in steps], axis=0)
    assert (near <= forward[inside] + 0.02).all()
    # And what is seen of solids has points beside.
    solid = depth < view.depth - 1e-2
    seen = (view.rays * depth)[:, solid].T + render._CAMERA
    nearest = np.linalg.norm(seen[:, None] - units[None], axis=-1).min(axis=1)
    assert nearest.max() < 2.5 / np.sqrt(points.DENSITY)


# -------------------------------------------------------------------- ceilings


def test_ceilings_of_pairs_equal_the_definition():
  scenes = [world.World(split="test").scene(i) for i in range(60)]

  def share(first, second, told):
    np.testing.assert_allclose(
      world.pair_ceiling(scenes, first, second),
      np.mean([1 / sum(told(q) == told(s) for s in scenes) for q in scenes]),
    )

  share("m", "v", lambda s: [x.motion for x in s.solids])
  share("h", "a", lambda s: [(x.shape, x.size, x.material) for x in s.solids])
  share("m", "a", lambda s: (len(s.solids), s.strikes))
  assert world.common_facts("m", "d") == ("count",)
  stated = world.STATED_V2["pointcloud"]
  assert set(world.common_facts("p", "i")) == set(stated)
  with pytest.raises(ValueError, match="at least one"):
    world.pair_ceiling([], "h", "a")
