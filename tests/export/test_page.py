"""The page of a generator: its files, and what it does in Chromium."""

import base64
import functools
import hashlib
import io
import json
import shutil
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CACHE
from export.test_export import expected
from PIL import Image

from benchmarks.formats import images, latents, model_of
from kd_jax.cli import main
from kd_jax.core.checks import UsageError
from kd_jax.export import INDEX, page, web_runtime
from kd_jax.models import mlp, realesrgan, stylegan2, translation

LABELS = jax.ShapeDtypeStruct((1,), jnp.int32)
RUNTIME = {name: name.encode() for name in web_runtime.PARTS}


@pytest.fixture(scope="module")
def model():
    return model_of(mlp.generator(8, 16, classes=3), latents(1, 6), LABELS, classes=3)


@pytest.fixture
def without_runtime(monkeypatch):
    """Pages whose runtime's files are its names."""
    monkeypatch.setattr(web_runtime, "read", lambda source: RUNTIME)


def described(folder):
    return json.loads((folder / page.DESCRIPTION).read_text())


# ------------------------------------------------------------------ the folder


def test_the_folder_has_all_that_the_page_loads(model, without_runtime, tmp_path):
    folder = tmp_path / "site"
    site = page.write(model, folder, teacher=model, title="<Digits & more>")
    assert site.path == folder / "index.html"
    text = site.path.read_text()
    assert text.count("&lt;Digits &amp; more&gt;") == 2
    assert "<Digits" not in text
    description = described(folder)
    networks = description["networks"]
    assert list(networks) == ["teacher", "student"]
    sized = [*networks.values(), description["reference"], *(
        description["runtime"][kind] for kind in ("wasm", "webgpu")
    )]  # fmt: skip
    for entry in sized:
        contents = (folder / entry["file"]).read_bytes()
        assert entry["bytes"] == len(contents)
        assert entry["sha256"] == hashlib.sha256(contents).hexdigest()
    assert {file.name for file in (folder / page.RUNTIME).iterdir()} == set(RUNTIME)
    # By hand: 9 numbers to 16, to 16, to the 64 of an image.
    assert networks["student"]["parameters"] == 10 * 16 + 17 * 16 + 17 * 64
    assert {file.name for file in (folder / page.TEACHER).iterdir()} == {INDEX, "generator.onnx"}


def test_the_reference_is_of_jax(model, without_runtime, tmp_path):
    page.write(model, tmp_path)
    description = described(tmp_path)
    contents = (tmp_path / page.REFERENCE).read_bytes()

    def array(entry, dtype):
        values = np.frombuffer(contents, dtype, entry["count"], entry["start"])
        return values.reshape(entry["shape"])

    z, labels = (
        array(entry, dtype)
        for entry, dtype in zip(description["reference"]["inputs"], ("<f4", "<i4"), strict=True)
    )
    images = array(description["networks"]["student"]["output"], "<f4")
    assert z.shape == (page.EXAMPLES, 6)
    np.testing.assert_allclose(images, expected(model, (z, labels)), rtol=1e-5, atol=1e-6)


def test_a_large_output_is_stored_at_even_distances():
    reference = page._Reference()
    reference.add(np.arange(3, dtype=np.int32), 1)
    entry = reference.add(np.arange(20, dtype=np.float32).reshape(4, 5), 7)
    assert entry == {"shape": [4, 5], "start": 12, "count": 7, "step": 3}
    stored = np.frombuffer(reference.contents[12:], "<f4")
    np.testing.assert_array_equal(stored, np.arange(0, 20, 3))


def test_directions_are_those_of_the_first_layer(model):
    rows = np.asarray(model.variables["params"]["Dense_0"]["kernel"])[:6].T
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    _, _, vectors = np.linalg.svd(rows)
    directions = page.principal_directions(model, 4)
    np.testing.assert_allclose(abs(directions @ vectors[:4].T), np.eye(4), atol=1e-4)
    assert (directions.sum(axis=1) > 0).all()


@pytest.mark.parametrize("classes", [0, 3])
def test_directions_of_style_networks_are_of_the_mapping(classes):
    network = stylegan2.generator(
        8, latent=6, style=6, channel_base=32, channel_max=6, classes=classes, mapping={"depth": 2}
    )
    inputs = (latents(1, 6), LABELS)[: 2 if classes else 1]
    like = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: random.standard_normal(x.shape).astype(np.float32), like)
    rows = variables["params"]["mapping"]["fc0"]["weight"][:6].T
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    first = np.linalg.svd(rows)[2][0]
    model = page.Model(network, variables, inputs, classes, True, {})
    assert abs(page.principal_directions(model)[0] @ first) == pytest.approx(1, abs=1e-4)


def test_directions_that_change_nothing_are_left_out():
    model = model_of(mlp.generator(8, 4), latents(1, 6))
    assert page.principal_directions(model).shape == (4, 6)


def test_nothing_comes_from_elsewhere():
    for asset in page.ASSETS.iterdir():
        text = asset.read_text()
        addresses = {word for word in text.split('"') if "://" in word and " " not in word}
        assert addresses <= {"http://www.w3.org/2000/svg"}, asset.name


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"formats": ["safetensors"]}, "onnx"),
        ({"teacher": (7, 3)}, r"latents.*7.*6"),
        ({"teacher": (6, 0)}, "labels"),
        ({"batch": 0}, "batch=0"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(arguments, message, model, monkeypatch, tmp_path):
    monkeypatch.setattr(web_runtime, "read", lambda source: pytest.fail("too late"))
    if "teacher" in arguments:
        length, classes = arguments["teacher"]
        inputs = (latents(1, length), LABELS)[: 2 if classes else 1]
        other = model_of(mlp.generator(8, 4, classes=classes), *inputs, classes=classes)
        arguments = {"teacher": other}
    with pytest.raises(ValueError, match=message) as error:
        page.write(model, tmp_path / "site", **arguments)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "site").exists()


def test_generators_without_an_interface_are_refused(without_runtime, tmp_path):
    network = stylegan2.generator(
        8, latent=4, style=4, channel_base=32, channel_max=4, mapping={"depth": 1}
    )
    with pytest.raises(ValueError, match="mapping"):
        page.write(model_of(network, latents(1, 4)), tmp_path / "site", part="mapping")
    two = model_of(mlp.generator(8, 4, channels=2), latents(1, 4))
    with pytest.raises(ValueError, match=r"channels.*2"):
        page.write(two, tmp_path / "site")
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    "arguments", [["--teacher", "x"], ["--title", "x"], ["--page", "--runtime", "absent.tgz"]]
)
def test_the_command_refuses_in_one_line(arguments, model, tmp_path, capsys):
    from kd_jax.export import export

    export(model, tmp_path / "in", ["safetensors"])
    source = tmp_path / "in" / "generator.safetensors"
    with pytest.raises(SystemExit) as stop:
        main(["export", str(source), "--out", str(tmp_path / "out"), *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert arguments[-2].strip("-") in error or arguments[-1] in error
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def runtime():
    """The folder of the real runtime, fetched into the cache of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_JAX_CACHE", str(CACHE))
        try:
            contents = web_runtime.read()
        except UsageError as error:
            pytest.skip(str(error))
        patch.setattr(web_runtime, "read", lambda source: contents)
        yield


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, where installed, which reaches this machine only."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver on this machine")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless=new", "no-sandbox", "window-size=1280,1000", "ignore-gpu-blocklist",
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        # WebGPU in software.
        "enable-unsafe-webgpu", "use-webgpu-adapter=swiftshader", "enable-features=Vulkan",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    chrome.set_script_timeout(60)
    yield chrome
    chrome.quit()


class Site:
    """A folder that is served, and the paths that were requested."""

    def __init__(self, folder):
        self.paths = paths = []

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self):
                paths.append(self.path)
                super().do_GET()

            def log_message(self, *args):
                pass

        self.folder = folder
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=folder)
        )
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def serve():
    sites = []

    def start(folder):
        sites.append(Site(folder))
        return sites[-1]

    yield start
    for site in sites:
        site.close()


def visit(browser, site, state="ready"):
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(site.address)
    wait(lambda: browser.execute_script("return document.body.dataset.state"))
    text = browser.find_element("tag name", "body").text
    assert browser.execute_script("return document.body.dataset.state") == state, text
    return text


def wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def one(browser, selector):
    return browser.find_element("css selector", selector)


def pixels(browser, selector):
    """The image of a canvas, `[H, W, 3]`."""
    script = "return document.querySelector(arguments[0]).toDataURL()"
    data = browser.execute_script(script, selector).partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), np.int32)


def to_bytes(image):
    return np.broadcast_to(np.rint((image + 1) * 127.5), (*image.shape[:2], 3))


def run_network(browser, name, **inputs):
    """The output that the page computes."""
    values = {
        key: {"dtype": str(x.dtype), "values": x.reshape(-1).tolist(), "shape": list(x.shape)}
        for key, x in inputs.items()
    }
    script = """
        const [name, inputs, done] = arguments;
        for (const slot of Object.values(inputs)) {
          slot.values = (slot.dtype === "int32" ? Int32Array : Float32Array).from(slot.values);
        }
        kdPage.run(name, inputs).then(
          ({values, shape}) => done([Array.from(values), shape]), (error) => done(error.message));
    """
    values, shape = browser.execute_async_script(script, name, values)
    return np.array(values, np.float32).reshape(shape)


def check_quiet(browser, site):
    """No request elsewhere or for an absent file, no error, and nothing wider than the screen."""
    names = browser.execute_script("return performance.getEntries().map((entry) => entry.name)")
    assert not [name for name in names if "://" in name and not name.startswith(site.address)]
    requested = [
        json.loads(entry["message"])["message"]["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    ]
    assert requested
    assert all(url.startswith((site.address, "blob:")) for url in requested)
    for path in site.paths:
        assert path == "/" or (site.folder / path.partition("?")[0][1:]).is_file(), path
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def resize(browser, width):
    metrics = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def normals(seed, count):
    """The page's numbers, as its source describes them."""

    def mix(x):
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
        return x ^ (x >> 16)

    key = mix(seed)
    u = [(mix((key + 0x9E3779B9 * (i + 1)) % 2**32) + 0.5) / 2**32 for i in range(count)]
    radius, angle = np.sqrt(-2 * np.log(u[::2])), 2 * np.pi * np.array(u[1::2])
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(1, -1)


@pytest.fixture(scope="module")
def latents_folder(model, runtime, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents") / "site"
    other = model_of(mlp.generator(8, 24, classes=3), latents(1, 6), LABELS, classes=3)
    page.write(model, folder, teacher=other)
    return folder, {"student": model, "teacher": other}


@pytest.mark.slow
def test_a_page_of_latents(browser, latents_folder, serve):
    from selenium.webdriver.common.keys import Keys

    folder, models = latents_folder
    site = serve(folder)
    resize(browser, 1280)
    text = visit(browser, site)
    assert "WebAssembly" in text
    sizes = [file.stat().st_size for file in folder.rglob("generator.onnx")]
    assert all(f"{round(size / 1e3)} kB" in text for size in sizes)
    assert not any("webgpu" in path for path in site.paths)

    # The networks compute what JAX computes.
    z = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    labels = np.array([0, 2, 1], np.int32)
    for name, network in models.items():
        actual = run_network(browser, name, latents=z, labels=labels)
        assert np.abs(actual - expected(network, (z, labels))).max() < 1e-5

    # The pictures are those of the seed's numbers and the seed's class.
    grid = ".grid[aria-busy=false]"
    wait(lambda: browser.find_elements("css selector", grid))
    seed = int(one(browser, ".samples input").get_property("value"))

    def check(selector, seed, label, offset=0):
        canvases = {"teacher": 1, "student": 2}
        latent = (normals(seed, 6) + offset).astype(np.float32)
        for name, network in models.items():
            image = expected(network, (latent, np.array([label], np.int32)))[0]
            place = f"{selector.format(canvases[name])}"
            wait(lambda place=place, image=image: matches(place, image), 10)

    def matches(place, image):
        return np.abs(pixels(browser, place) - to_bytes(image)).max() <= 1

    first = ".view:nth-child({}) canvas"
    check(".tile:nth-child(5) canvas:nth-child({})", seed + 4, (seed + 4) % 3)
    check(first, seed, seed % 3)

    # By keyboard: the grid, a direction, and the class.
    one(browser, ".tile[tabindex='0']").send_keys(Keys.ARROW_RIGHT)
    selected = one(browser, ".tile[aria-checked=true]")
    assert selected.get_attribute("aria-label").startswith(f"seed {seed + 1},")
    assert browser.switch_to.active_element == selected
    check(first, seed + 1, (seed + 1) % 3)
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    selected.send_keys(Keys.ARROW_DOWN)
    assert one(browser, ".tile[aria-checked=true]").get_attribute("aria-label") == (
        f"seed {seed + 4}, class {(seed + 4) % 3}"
    )
    one(browser, ".tile[tabindex='0']").send_keys(Keys.HOME)
    slider = one(browser, ".slider input[max='6']")
    slider.send_keys(*[Keys.ARROW_RIGHT] * 10)
    direction = described(folder)["directions"][0]
    check(first, seed, seed % 3, offset=1.0 * np.array(direction))
    one(browser, ".controls .bar button").click()
    one(browser, "select option[value='2']").click()
    check(first, seed, 2)

    # From one sample to another.
    position = one(browser, ".slider input[max='1']")
    position.send_keys(Keys.END)
    wait(lambda: position.get_property("value") == "1")
    target = int(one(browser, ".inline input").get_property("value"))
    check(first, target, 2)
    play = browser.find_elements("css selector", ".controls .bar button")[1]
    play.click()
    wait(lambda: 0 < float(position.get_property("value")) < 1)
    assert play.get_attribute("aria-pressed") == "true"
    play.click()
    assert play.get_attribute("aria-pressed") == "false"

    browser.find_element("css selector", ".toolbar .primary").click()
    changed = int(one(browser, ".samples input").get_property("value"))
    check(first, changed, 2)

    for width in (360, 800, 1280):
        resize(browser, width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    check_quiet(browser, site)


@pytest.mark.slow
def test_truncation_and_one_hot_labels(browser, runtime, serve, tmp_path):
    from selenium.webdriver.common.keys import Keys

    network = stylegan2.generator(
        8, latent=6, style=4, channel_base=32, channel_max=4, classes=3, mapping={"depth": 1}
    )
    model = model_of(network, latents(1, 6), LABELS, classes=3)
    folder = tmp_path / "site"
    page.write(model, folder, truncation="input", labels="one-hot", batch=2)
    site = serve(folder)
    visit(browser, site)
    seed = int(one(browser, ".samples input").get_property("value"))
    z, label = normals(seed, 6).astype(np.float32), np.array([seed % 3], np.int32)
    slider = one(browser, ".controls .slider input")
    for psi in (0.7, 0.8):
        image = expected(model, (z, label), truncation=psi)[0]
        assert slider.get_property("value") == str(psi)

        def matches(image=image):
            return (
                np.abs(pixels(browser, ".view canvas") - to_bytes(np.clip(image, -1, 1))).max() <= 1
            )

        wait(matches, 10)
        slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    check_quiet(browser, site)


@pytest.mark.slow
def test_webgpu_is_used_after_its_comparison(browser, latents_folder, serve):
    folder, models = latents_folder
    site = serve(folder)
    resize(browser, 1280)
    visit(browser, site)
    button = one(browser, "#webgpu")
    if not button.is_displayed():
        pytest.skip("this Chromium has no WebGPU")
    button.click()
    wait(lambda: not button.is_displayed())
    assert browser.execute_script("return document.body.dataset.runtime") == "webgpu"
    assert "WebGPU" in one(browser, "#status").text
    z, labels = np.ones((1, 6), np.float32), np.array([1], np.int32)
    actual = run_network(browser, "student", latents=z, labels=labels)
    assert np.abs(actual - expected(models["student"], (z, labels))).max() < 1e-4
    check_quiet(browser, site)


@pytest.mark.slow
def test_webgpu_that_differs_is_not_used(browser, latents_folder, serve, tmp_path):
    """The reference changes after the comparison with WebAssembly."""
    folder = shutil.copytree(latents_folder[0], tmp_path / "site")
    site = serve(folder)
    visit(browser, site)
    button = one(browser, "#webgpu")
    if not button.is_displayed():
        pytest.skip("this Chromium has no WebGPU")
    browser.execute_script("kdPage.page.networks.student.share = 0")
    button.click()
    wait(lambda: not button.is_displayed())
    assert browser.execute_script("return document.body.dataset.runtime") == "wasm"
    assert "WebGPU is not used" in one(browser, "#status").text


def remove(folder):
    (folder / "generator.onnx").unlink()
    return "generator.onnx is missing"


def cut(folder):
    path = folder / "generator.onnx"
    path.write_bytes(path.read_bytes()[:-5])
    return "generator.onnx is damaged"


def flip(folder):
    path = folder / "generator.onnx"
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)
    return "generator.onnx is damaged"


def remove_runtime(folder):
    (folder / page.RUNTIME / "wasm.wasm").unlink()
    return "runtime/wasm.wasm is missing"


def remove_description(folder):
    (folder / page.DESCRIPTION).write_text("{")
    return "page.json is damaged"


def change_reference(folder):
    """The reference is of other images, with a matching checksum."""
    path, place = folder / page.REFERENCE, folder / page.DESCRIPTION
    description = json.loads(place.read_text())
    entry = description["networks"]["student"]["output"]
    contents = bytearray(path.read_bytes())
    contents[entry["start"] : entry["start"] + 4] = np.float32(0.5).tobytes()
    path.write_bytes(contents)
    description["reference"]["sha256"] = hashlib.sha256(contents).hexdigest()
    place.write_text(json.dumps(description))
    return "in JAX"


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", [remove, cut, flip, remove_runtime, remove_description, change_reference]
)
def test_damage_is_named(damage, browser, latents_folder, serve, tmp_path):
    folder = shutil.copytree(latents_folder[0], tmp_path / "site")
    words = damage(folder)
    text = visit(browser, serve(folder), state="failed")
    assert words in text
    assert one(browser, "[role=alert]").is_displayed()


@pytest.mark.slow
def test_a_browser_without_webassembly_is_named(browser, latents_folder, serve):
    script = browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": "delete globalThis.WebAssembly"}
    )
    text = visit(browser, serve(latents_folder[0]), state="failed")
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
    assert "WebAssembly" in text


@pytest.mark.slow
def test_a_page_that_is_opened_as_a_file_says_so(browser, latents_folder):
    browser.get(f"file://{latents_folder[0] / 'index.html'}")
    message = one(browser, "#unstarted")
    wait(lambda: float(message.value_of_css_property("opacity")) == 1)
    assert "http.server" in message.text
    browser.get_log("browser")


def choose(browser, path):
    """Chooses a picture, and waits for its output."""
    one(browser, "#picture").send_keys(str(path))
    save = "//button[text()='Download PNG']"
    wait(lambda: browser.find_element("xpath", save).is_enabled())


@pytest.mark.slow
def test_a_page_of_super_resolution(browser, runtime, serve, tmp_path):
    from selenium.webdriver.common.keys import Keys

    # Its outputs depend on pixels at a distance of at most 4: fewer than the margin of a tile.
    model = model_of(realesrgan.srvgg(2, width=8, layers=2), images(16))
    folder = tmp_path / "site"
    page.write(model, folder, size="any")
    site = serve(folder)
    resize(browser, 1280)
    visit(browser, site)
    random = np.random.default_rng(0)

    def picture(height, width):
        coarse = random.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
        image = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
        path = tmp_path / f"{height}x{width}.png"
        Image.fromarray(image).save(path)
        return path, (image / np.float32(127.5) - 1)[None].astype(np.float32)

    output = ".strip .view:last-child canvas"
    for height, width in ((40, 72), (200, 330)):  # in one piece, and in tiles
        path, image = picture(height, width)
        choose(browser, path)
        reference = to_bytes(np.clip(expected(model, (image,))[0], -1, 1))
        actual = pixels(browser, output)
        assert actual.shape == reference.shape
        assert np.abs(actual - reference).max() <= 1
        assert ("tiles" in one(browser, ".note").text) == (height == 200)
    before = pixels(browser, ".strip .view:nth-child(2) canvas")
    assert before.shape == reference.shape

    boundary = one(browser, ".compare input")
    boundary.send_keys(*[Keys.ARROW_LEFT] * 4)
    assert boundary.get_property("value") == "48"
    assert one(browser, ".handle").get_attribute("style") == "left: 48%;"
    clip = one(browser, ".compare .after").value_of_css_property("clip-path")
    assert clip == "inset(0px 0px 0px 48%)"
    one(browser, ".segments input").send_keys(Keys.SPACE)
    assert one(browser, ".tag.left").text == "Input"

    (tmp_path / "notes.png").write_text("notes")
    one(browser, "#picture").send_keys(str(tmp_path / "notes.png"))
    alert = one(browser, ".problem")
    wait(lambda: "notes.png" in alert.text)
    Image.new("L", (4000, 2000)).save(tmp_path / "large.png")
    one(browser, "#picture").send_keys(str(tmp_path / "large.png"))
    wait(lambda: "4000 × 2000" in alert.text)

    for width in (360, 1280):
        resize(browser, width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    check_quiet(browser, site)


@pytest.mark.slow
def test_a_page_of_translation(browser, runtime, serve, tmp_path):
    model = model_of(translation.unet_generator(4, downs=3), images(32))
    folder = tmp_path / "site"
    page.write(model, folder, teacher=model, batch=2, exporting={"dtype": "float16"})
    site = serve(folder)
    text = visit(browser, site)
    assert "Teacher" in text
    path = tmp_path / "wide.png"
    image = np.random.default_rng(0).integers(0, 256, (32, 50, 3), np.uint8)
    Image.fromarray(image).save(path)
    choose(browser, path)
    assert "50 × 32" in one(browser, ".note").text
    values = (image[:, 9:41] / np.float32(127.5) - 1)[None].astype(np.float32)
    reference = to_bytes(expected(model, (values,))[0])
    teacher = pixels(browser, ".strip .view:nth-child(2) canvas")
    assert np.abs(teacher - reference).max() <= 1
    student = pixels(browser, ".strip .view:nth-child(3) canvas")
    assert np.abs(student - reference).max() <= 3
    assert "cut" in one(browser, ".note").text
    check_quiet(browser, site)
