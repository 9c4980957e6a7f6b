"""The server as a client meets it: through its socket."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import mico_jax
from mico_jax.app import previews, serving
from mico_jax.app.engine import Engine
from mico_jax.app.gallery import IndexGallery, WorldGallery
from mico_jax.app.limits import Limits
from mico_jax.app.server import Service
from mico_jax.cli.main import main
from mico_jax.inference.prepare import Item
from mico_jax.testing import tiny_checkpoint, tiny_data
from mico_jax.world import World

pytest.importorskip("uvicorn", reason="the extra app")
pytest.importorskip("starlette", reason="the extra app")

LIMITS = Limits(upload_bytes=300_000, seconds=2.0, pixels=100_000, waiting=60)


@contextlib.contextmanager
def running(engine, limits=LIMITS):
  """The port of a server of an engine."""
  service = Service(limits)
  service.engine = engine
  server = serving.make_server(service, serving.allowed_hosts("127.0.0.1"))
  opened = serving.listen("127.0.0.1", 0)
  thread = threading.Thread(target=server.run, args=([opened],), daemon=True)
  thread.start()
  try:
    yield Client(opened.getsockname()[1], service)
  finally:
    server.should_exit = True
    thread.join(20)
    service.line.close()
    service.previews.close()


class Client:
  def __init__(self, port, service):
    self.port, self.service = port, service

  def send(self, method, path, body=None, **headers):
    """Status, headers and content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    with contextlib.closing(connection):
      # A server that refuses an upload may close before it was sent.
      with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request(method, path, body, named)
      answer = connection.getresponse()
      return answer.status, answer.headers, answer.read()

  def ask(self, name, fields=None, body=None, query=""):
    """Status and values of a question."""
    if body is None:
      sent = json.dumps(fields or {}).encode()
      kind = "application/json"
    else:
      sent, kind = body, "application/octet-stream"
    status, _, content = self.send(
      "POST", f"/{name}{query}", sent, Content_Type=kind
    )
    return status, json.loads(content)

  def refused(self, status, words, name, fields=None, body=None, query=""):
    found, answer = self.ask(name, fields, body, query)
    assert (found, [*answer]) == (status, ["error"]), answer
    assert words in answer["error"]
    assert "\n" not in answer["error"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("serve")
  tiny_checkpoint.save_tiny(root / "run")
  return root


@pytest.fixture(scope="module")
def model(root):
  return mico_jax.load(str(root / "run"), check="fast")


@pytest.fixture(scope="module")
def world(model):
  return WorldGallery(model, 3)


@pytest.fixture(scope="module")
def client(model, world):
  with running(Engine(model, world, LIMITS, show_paths=True)) as client:
    yield client


def scene(field, index=1):
  world = World(split="test")
  return world.render(world.scene(index), size=32, num_frames=1)[field]


def png(array):
  out = io.BytesIO()
  Image.fromarray(array).save(out, "PNG")
  return out.getvalue()


def test_the_page_asks_nobody_else(client):
  status, headers, page = client.send("GET", "/")
  assert status == 200
  assert b"<main>" in page
  policy = headers["Content-Security-Policy"]
  assert policy.startswith("default-src 'none'")
  assert "unsafe" not in policy
  for name in ("page.css", "page.js"):
    status, headers, content = client.send("GET", f"/{name}")
    assert status == 200
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert b"http:" not in content
    assert b"https:" not in content
    assert b"innerHTML" not in content


def test_health_says_what_is_there(client):
  status, _, content = client.send("GET", "/health")
  found = json.loads(content)
  assert (status, found["status"]) == (200, "ready")
  counts = found["gallery"]["modalities"]
  assert counts["text"] == counts["audio"] == 3
  uploads = {u["modality"]: u for u in found["uploads"]}
  assert uploads["depth"]["required"]
  assert {"mm", "m"} <= set(uploads["depth"]["statements"])
  assert "text" not in uploads


def test_embeddings_are_those_of_the_model(client, model):
  picture = scene("image")[0]
  status, found = client.ask(
    "embed", body=png(picture), query="?modality=image"
  )
  assert status == 200
  expected = model.embed(image=[picture])["image"][0]
  np.testing.assert_allclose(found["embeddings"]["image"], expected, atol=1e-5)
  status, found = client.ask("embed", {"text": "a red cube"})
  expected = model.embed(text=["a red cube"])["text"][0]
  np.testing.assert_allclose(found["embeddings"]["text"], expected, atol=1e-5)


def test_an_item_finds_itself_and_a_sum_is_searched(client, world, model):
  metres = io.BytesIO()
  np.save(metres, scene("depth")[0])
  status, found = client.ask(
    "search",
    body=metres.getvalue(),
    query="?modality=depth&stated=m&k=3&only=depth&match=1",
  )
  assert status == 200
  best = found["hits"][0]
  # The gallery has the same scene at the size of the model.
  assert [h["modality"] for h in found["hits"]] == ["depth"] * 3
  assert best["score"] == max(h["score"] for h in found["hits"])
  assert all(h["match"] is None for h in found["hits"])  # neither is a text
  picture = scene("image", 2)[0]
  status, found = client.ask(
    "search",
    body=png(picture),
    query="?modality=image&text=a%20red%20cube&k=50&match=1",
  )
  z = model.embed(image=[picture], text=["a red cube"])
  total = z["image"][0] + z["text"][0]
  exact = np.concatenate(world.index._parts) @ (total / np.linalg.norm(total))
  assert [h["row"] for h in found["hits"]] == np.argsort(-exact).tolist()
  expected = model.match(image=[picture], text=["a red cube"])[0]
  np.testing.assert_allclose(found["pair"]["match"], expected, atol=1e-5)


def test_matches_are_those_of_the_model(client, world, model):
  text = "a blue ball"
  given = {"text": text, "k": 3, "only": "each", "match": "1"}
  _, found = client.ask("search", given)
  keys = [hit["modality"] for hit in found["hits"]]
  assert keys == sorted(keys, key=keys.index)  # one after the other
  assert len(found["hits"]) == len(world.index)
  for key in ("image", "audio"):
    mine = [hit for hit in found["hits"] if hit["modality"] == key]
    given = {key: [world.item(hit["row"]) for hit in mine]}
    np.testing.assert_allclose(
      [hit["match"] for hit in mine],
      model.match(text=[text] * 3, **given),
      atol=1e-5,
    )
  texts = [hit for hit in found["hits"] if hit["modality"] == "text"]
  assert [hit["match"] for hit in texts] == [None] * 3


def test_what_is_written_is_what_the_model_writes(client, model):
  picture = scene("image")[0]
  query = "?modality=image"
  _, found = client.ask("caption", body=png(picture), query=query)
  assert found["caption"] == model.caption(image=[picture])[0]
  asked = "what colour is it?"
  _, found = client.ask(
    "answer", body=png(picture), query=f"{query}&text={asked.replace(' ', '+')}"
  )
  expected = model.answer(question=[asked], image=[picture])[0]
  assert found["answer"] == expected


def test_attention_lies_where_the_model_attends(client, model):
  picture = scene("image")[0]
  status, found = client.ask(
    "attention", body=png(picture), query="?modality=image"
  )
  assert status == 200
  (frame,) = found["frames"]
  (weights,) = model.attention(image=[picture])["image"][0]
  np.testing.assert_allclose(frame["most"], weights.max(), atol=1e-5)
  assert frame["overlay"].startswith("data:image/jpeg;base64,")


def test_a_map_of_a_sound_is_turned_like_its_picture(model):
  sound = scene("audio")
  maps = np.zeros((2, 2, 2), np.float32)
  maps[:, 1, 0] = 1.0  # later, in the low bins
  frames = previews.overlays(
    *(model.preparer, "audio", Item(sound, rate=16000.0), maps), side=128
  )
  import base64

  data = base64.b64decode(frames[0]["overlay"].partition(",")[2])
  colours = np.asarray(Image.open(io.BytesIO(data))).astype(np.int32)
  quarters = colours.sum(-1).reshape(2, 64, 2, 64).mean((1, 3))
  assert quarters.argmax() == 3  # low pitch is below, time goes to the right


def test_items_are_shown_and_played(client):
  _, found = client.ask("search", {"text": "a cube", "k": 18})
  rows = {hit["modality"]: hit for hit in found["hits"]}
  for key, kind, begins in [
    ("audio", "audio/flac", b"fLaC"),
    ("video", "video/mp4", b"\0\0\0"),
  ]:
    hit = rows[key]
    assert hit["plays"]
    status, headers, data = client.send("GET", f"/item/{hit['row']}/player")
    assert (status, headers["Content-Type"]) == (200, kind)
    assert data.startswith(begins)
  for key in ("image", "depth", "normal", "audio"):
    status, headers, data = client.send(
      "GET", f"/item/{rows[key]['row']}/thumbnail"
    )
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert max(Image.open(io.BytesIO(data)).size) <= LIMITS.frame
  assert rows["text"]["text"]
  for path in (
    *("/item/999/thumbnail", f"/item/{rows['text']['row']}/player"),
    *("/item/-1/thumbnail", "/item/..%2f..%2fetc%2fpasswd/thumbnail"),
    *("/etc/passwd", "/../../etc/passwd", "/page.py", "/item/1e3/player"),
  ):
    status, _, content = client.send("GET", path)
    assert (status, [*json.loads(content)]) == (404, ["error"])


# ------------------------------------------------------------- what is refused
def test_limits(client):
  picture, ask = png(scene("image")[0]), "?modality=image"
  client.refused(413, "MiB", "embed", body=b"x" * 300_001, query=ask)
  client.refused(413, "characters", "embed", {"text": "x" * 1001})
  client.refused(422, "pixels", "embed", body=bomb(20_000), query=ask)
  for query in ("?modality=audio", "?modality=video"):
    long = tiny_data.wav(48_000) if "audio" in query else film(3.0)
    client.refused(413, "at most 2 s", "embed", body=long, query=query)
  client.refused(400, "1 to 50", "search", {"text": "a", "k": 51})
  client.refused(400, "integer", "search", {"text": "a", "k": 1.5})
  client.refused(400, "name the modality", "embed", body=picture)
  client.refused(400, "no uploads", "embed", body=picture, query="?modality=x")
  client.refused(400, "no 'x' here", "search", {"text": "a", "only": "x"})
  client.refused(400, "states", "embed", body=picture,
                 query="?modality=depth&stated=feet")  # fmt: skip
  client.refused(
    400, "say the unit", "embed", body=picture, query="?modality=depth"
  )
  client.refused(400, "unknown field", "search", {"text": "a", "path": "/etc"})
  client.refused(400, "give a text", "search", {})
  client.refused(400, "upload a file", "caption", {"text": "a"})
  for content in (b"{", b"[]", b"\xff", b"[" * 50_000):
    status, _, _ = client.send(
      "POST", "/search", content, Content_Type="application/json"
    )
    assert status == 400
  assert client.service.line.held == client.service.line.taken == 0


def bomb(side):
  """A PNG of a few hundred kB that would fill side x side pixels."""
  raw = zlib.compress(b"\0" * 100_000, 9)
  head = side.to_bytes(4, "big") * 2 + b"\x08\0\0\0\0"
  chunk = lambda name, data: (
    len(data).to_bytes(4, "big")
    + name
    + data
    + zlib.crc32(name + data).to_bytes(4, "big")
  )
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", head)
    + chunk(b"IDAT", raw)
    + chunk(b"IEND", b"")
  )


def film(seconds):
  from mico_jax.data.build.stages.h264 import H264Options, encoded

  frame = np.zeros((32, 32, 3), np.uint8)
  frames = ((i / 4, frame) for i in range(int(4 * seconds)))
  return encoded(frames, seconds, H264Options(size=0))


def test_malformed_uploads_leave_the_server_well(client):
  rng = np.random.default_rng(0)
  good = {
    "image": png(scene("image")[0]),
    "audio": tiny_data.wav(),
    "video": film(1.0),
  }
  names = ("../../etc/passwd", "/etc/passwd", "a\0b", "depth:m:/etc/passwd",
           "file:///etc/passwd", "http://localhost/x.png")  # fmt: skip
  sent = [(key, data[: len(data) // 3]) for key, data in good.items()]
  sent += [(a, good[b]) for a, b in [("image", "audio"), ("audio", "image"),
                                     ("normal", "video")]]  # fmt: skip
  sent += [("image", name.encode()) for name in names]
  sent += [(key, rng.bytes(500)) for key in good]
  sent += [(key, b"") for key in good]
  sent += [
    ("image", bomb(300_000)),
    ("depth&stated=m", b"\x93NUMPY" + b"x" * 99),
  ]
  for key, data in sent:
    status, found = client.ask("embed", body=data, query=f"?modality={key}")
    assert status in (400, 422), (key, data[:20], found)
    assert "passwd:" not in found["error"]
  status, _ = client.ask("embed", body=good["image"], query="?modality=image")
  assert status == 200


def test_texts_never_become_paths(client, root):
  for text in (str(root / "run" / "config.json"), "../../etc/passwd", "~/x"):
    status, found = client.ask("embed", {"text": text})
    assert status == 200
    assert len(found["embeddings"]["text"]) == 32


def test_other_sites_and_names_are_refused(client):
  body = json.dumps({"text": "a"}).encode()
  kind = {"Content_Type": "application/json"}
  send = lambda **more: client.send("POST", "/search", body, **kind, **more)[0]
  assert send() == 200
  assert send(Origin=f"http://127.0.0.1:{client.port}") == 200
  assert send(Origin="http://evil.example") == 403
  assert send(Origin="null") == 403
  assert send(Host=f"localhost:{client.port}") == 200
  assert send(Host=f"[::1]:{client.port}") == 200
  for host in (f"evil.example:{client.port}", "[", "127.0.0.1.evil.example"):
    assert send(Host=host) == 400


def test_fifty_at_once(client):
  with ThreadPoolExecutor(50) as pool:
    answers = pool.map(
      lambda i: client.ask("search", {"text": f"a cube {i % 5}", "k": 2}),
      range(50),
    )
    assert [status for status, _ in answers] == [200] * 50


class Slow:
  """An engine whose answers wait."""

  def __init__(self):
    self.go = threading.Event()

  def question(self, **given):
    return given

  def embed(self, asked):
    self.go.wait(20)
    return asked["text"]


def test_a_full_queue_refuses_at_once():
  slow = Slow()
  with (
    running(slow, Limits(waiting=3)) as client,
    ThreadPoolExecutor(3) as pool,
  ):
    held = [pool.submit(client.ask, "embed", {"text": t}) for t in "abc"]
    deadline = time.monotonic() + 20
    while client.service.line.taken < 3 and time.monotonic() < deadline:
      time.sleep(0.01)
    status, headers, _ = client.send("POST", "/embed", b"x" * 100)
    assert (status, headers["Retry-After"]) == (429, "1")
    slow.go.set()
    assert [h.result() for h in held] == [(200, t) for t in "abc"]
    assert client.ask("embed", {"text": "d"}) == (200, "d")


def test_before_the_checkpoint_is_there():
  with running(None) as client:
    assert client.send("GET", "/")[0] == 200
    assert json.loads(client.send("GET", "/health")[2])["status"] == "loading"
    client.refused(503, "not ready", "search", {"text": "a"})


# ------------------------------------------------------------- an index
def test_the_items_of_an_index(root, model, capsys):
  pytest.importorskip("pyarrow")
  photos = root / "photos"
  photos.mkdir()
  for i in range(2):
    (photos / f"{i}.png").write_bytes(png(scene("image", i)[0]))
  np.save(photos / "d.npy", scene("depth")[0])
  argv = [
    "index",
    "--checkpoint",
    str(root / "run"),
    "--out",
    str(root / "idx"),
  ]
  assert main([*argv, str(photos), f"depth:m:{photos / 'd.npy'}"]) == 0
  capsys.readouterr()
  gallery = IndexGallery(str(root / "idx"), model)
  with running(Engine(model, gallery, LIMITS)) as client:
    status, found = client.ask(
      "search",
      body=(photos / "1.png").read_bytes(),
      query="?modality=image&k=3",
    )
    assert found["hits"][0]["name"] == "1.png"
    assert found["hits"][0]["score"] == pytest.approx(1.0, abs=1e-5)
    assert "path" not in found["hits"][0]  # it was not asked for
    rows = {hit["name"]: hit["row"] for hit in found["hits"]}
    for name in ("1.png", "d.npy"):
      status, headers, _ = client.send("GET", f"/item/{rows[name]}/thumbnail")
      assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    (photos / "0.png").write_text("secret: no picture any more")
    status, _, content = client.send("GET", f"/item/{rows['0.png']}/thumbnail")
    assert status == 422
    assert b"secret" not in content


# ------------------------------------------------------------- the command
def test_mistakes_of_the_command(root, capsys):
  def mistake(*argv):
    assert main(["serve", *argv]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line

  assert "give --checkpoint" in mistake()
  assert "holds no index" in mistake("--index", str(root / "nothing"))
  with serving.listen("127.0.0.1", 0) as taken:
    port = str(taken.getsockname()[1])
    run = str(root / "run")
    assert "--port" in mistake("--checkpoint", run, "--port", port)
  assert "nothing" in mistake(
    "--checkpoint", str(root / "nothing"), "--port", "0"
  )
