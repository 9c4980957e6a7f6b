"""The page in a headless Chromium, driven by the keyboard where it can be."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

import mico_jax
from mico_jax.app import serving
from mico_jax.app.engine import Engine
from mico_jax.app.gallery import WorldGallery
from mico_jax.app.limits import Limits
from mico_jax.app.server import Service
from mico_jax.testing import tiny_checkpoint
from mico_jax.world import World

CHROMIUM = next(
  filter(None, map(shutil.which, ("chromium", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
  CHROMIUM is None
  or not all(
    map(importlib.util.find_spec, ("playwright", "starlette", "uvicorn"))
  ),
  reason="needs Chromium, the package playwright and the extra app",
)
LIMITS = Limits(upload_bytes=200_000)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
  root = tmp_path_factory.mktemp("browser") / "run"
  tiny_checkpoint.save_tiny(root)
  model = mico_jax.load(str(root), check="fast")
  service = Service(LIMITS)
  service.engine = Engine(model, WorldGallery(model, 3), LIMITS)
  server = serving.make_server(service, serving.allowed_hosts("127.0.0.1"))
  opened = serving.listen("127.0.0.1", 0)
  thread = threading.Thread(target=server.run, args=([opened],), daemon=True)
  thread.start()
  yield f"http://127.0.0.1:{opened.getsockname()[1]}/"
  server.should_exit = True
  thread.join(20)
  service.line.close()
  service.previews.close()


@pytest.fixture(scope="module")
def chromium():
  from playwright.sync_api import sync_playwright

  with sync_playwright() as started:
    flags = ["--no-sandbox", "--use-fake-ui-for-media-stream",
             "--use-fake-device-for-media-stream"]  # fmt: skip
    browser = started.chromium.launch(executable_path=CHROMIUM, args=flags)
    yield browser
    browser.close()


@contextlib.contextmanager
def opened(chromium, address, **options):
  """A page; it may neither raise nor ask another server."""
  from playwright.sync_api import expect

  context = chromium.new_context(**options)
  page = context.new_page()
  page.set_default_timeout(60_000)
  problems = []
  page.on("pageerror", lambda error: problems.append(str(error)))
  own = (address, "blob:", "data:")
  page.on(
    "request",
    lambda r: None if r.url.startswith(own) else problems.append(r.url),
  )
  page.goto(address)
  expect(page.locator("#search")).to_be_enabled(timeout=60_000)
  yield page
  assert not problems
  context.close()


def finished(page):
  page.wait_for_timeout(100)
  page.locator("#busy").wait_for(state="hidden")


def scene(field):
  world = World(split="test")
  return world.render(world.scene(0), size=32, num_frames=1)[field][0]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("files")
  Image.fromarray(scene("image")).save(folder / "a.png")
  np.save(folder / "d.npy", scene("depth"))
  (folder / "broken.png").write_bytes(b"no picture")
  (folder / "large.png").write_bytes(bytes(LIMITS.upload_bytes + 1))
  return folder


def test_search_by_keyboard_and_players(chromium, address):
  with opened(chromium, address) as page:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.type("a red cube")
    page.keyboard.press("Enter")
    finished(page)
    kinds = page.locator("#hits h2").all_inner_texts()
    assert {"image", "audio", "text"} <= set(kinds)
    assert page.locator("#hits li").count() == 3 * len(kinds)
    assert page.locator("#hits small:has-text('match 0.')").count() > 0
    page.locator("#hits button").first.focus()
    page.keyboard.press("Enter")
    player = page.locator("#hits video, #hits audio").first
    player.wait_for()
    page.wait_for_timeout(500)
    assert player.evaluate("e => e.error") is None
    assert player.evaluate("e => e.duration") > 0


def test_a_picture_is_searched_described_and_seen(chromium, address, files):
  with opened(chromium, address) as page:
    assert page.locator("[data-ask=caption]").is_disabled()
    page.set_input_files("#file", files / "a.png")
    assert page.input_value("#modality") == "image"
    page.click("#search")
    finished(page)
    assert page.locator("#hits .media img").count() > 0
    page.click("[data-ask=caption]")
    finished(page)
    written = page.inner_text("#written")
    assert written.startswith("caption")
    assert "not trained to write captions" in written
    page.click("[data-ask=attention]")
    finished(page)
    assert page.locator("#frames img").count() == 2
    page.click("#remove")
    assert page.locator("#upload").is_hidden()


def test_what_goes_wrong_is_said(chromium, address, files):
  with opened(chromium, address) as page:
    message = page.locator("#message")
    page.click("#search")
    assert "type a text" in message.inner_text()
    page.set_input_files("#file", files / "large.png")
    assert "the limit" in message.inner_text()
    page.set_input_files("#file", files / "broken.png")
    page.click("#search")
    finished(page)
    assert "not a readable image" in message.inner_text()
    page.set_input_files("#file", files / "d.npy")
    assert "say what the file is" in message.inner_text()
    page.select_option("#modality", "depth")
    page.click("#search")
    finished(page)
    assert "say the unit" in message.inner_text()
    page.select_option("#unit", "m")
    page.click("#search")
    finished(page)
    assert message.is_hidden()
    page.locator("#preview img").wait_for()  # by the server


def test_names_of_files_are_no_markup(chromium, address, files):
  with opened(chromium, address) as page:
    name = "<img src=x onerror=alert(1)>.png"
    data = (files / "a.png").read_bytes()
    page.set_input_files(
      "#file", {"name": name, "mimeType": "image/png", "buffer": data}
    )
    assert page.inner_text("#name") == name
    assert page.locator("#name img").count() == 0


def test_a_sound_is_recorded(chromium, address):
  permissions = {"permissions": ["microphone"]}
  with opened(chromium, address, **permissions) as page:
    button = page.locator("[data-record=audio]")
    button.click()
    page.wait_for_timeout(1500)
    button.click()
    page.locator("#upload").wait_for(state="visible")
    assert page.input_value("#modality") == "audio"
    page.click("#search")
    finished(page)
    assert page.locator("#message").is_hidden(), page.inner_text("#message")
    assert page.locator("#hits li").count() > 0


def brightness(page):
  picture = Image.open(io.BytesIO(page.screenshot())).convert("L")
  return float(np.asarray(picture).mean())


def test_narrow_and_dark(chromium, address, files):
  narrow = {"viewport": {"width": 340, "height": 700}}
  seen = {}
  for scheme in ("light", "dark"):
    with opened(chromium, address, color_scheme=scheme, **narrow) as page:
      page.set_input_files("#file", files / "a.png")
      page.fill("#text", "a blue ball")
      page.click("#search")
      finished(page)
      width = page.evaluate("document.documentElement.scrollWidth")
      assert width <= 340
      seen[scheme] = brightness(page)
  assert seen["dark"] < 100 < 180 < seen["light"]
