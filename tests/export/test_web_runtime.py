"""The files of onnxruntime-web: where they come from, and what is refused."""

import hashlib
import io
import tarfile
import urllib.error
import urllib.request

import pytest

from kd_jax.core.checks import UsageError
from kd_jax.export import web_runtime

CONTENTS = {"wasm.js": b"export {}", "wasm.wasm": b"\0asm" * 9}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An npm package of two small files, which are those that are expected."""
    parts = {
        name: web_runtime.Part(f"ort.{name}", len(data), hashlib.sha256(data).hexdigest())
        for name, data in CONTENTS.items()
    }
    monkeypatch.setattr(web_runtime, "PARTS", parts)
    monkeypatch.setenv("KD_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))  # without npm
    return pack(tmp_path / "package.tgz", CONTENTS)


def pack(path, contents):
    with tarfile.open(path, "w:gz") as package:
        for name, data in contents.items():
            entry = tarfile.TarInfo(f"package/dist/ort.{name}")
            entry.size = len(data)
            package.addfile(entry, io.BytesIO(data))
    return path


def serve(monkeypatch, package):
    """Answers requests with the package; the addresses of these."""
    addresses = []

    def urlopen(address, timeout):
        addresses.append(address)
        return package.open("rb")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return addresses


@pytest.mark.parametrize("inner", ["", "dist", "package/dist"])
def test_a_package_and_a_folder_are_read(inner, package, tmp_path):
    assert web_runtime.read(package) == CONTENTS
    folder = tmp_path / "folder" / inner
    folder.mkdir(parents=True)
    for name, data in CONTENTS.items():
        (folder / f"ort.{name}").write_bytes(data)
    assert web_runtime.read(tmp_path / "folder") == CONTENTS


def test_the_package_is_fetched_once_and_damage_is_noticed(package, tmp_path, monkeypatch):
    addresses = serve(monkeypatch, package)
    for _ in range(2):
        assert web_runtime.read() == CONTENTS
        assert addresses == [web_runtime.ADDRESS]
    (path,) = (tmp_path / "cache").rglob("wasm.wasm")
    path.write_bytes(b"\0asm" * 8)
    assert web_runtime.read() == CONTENTS
    assert len(addresses) == 2
    assert path.read_bytes() == CONTENTS["wasm.wasm"]


def test_another_registry_is_left_to_npm(package, tmp_path, monkeypatch):
    addresses = serve(monkeypatch, package)
    npm = tmp_path / "npm"
    npm.write_text(
        "#!/bin/sh\n"
        '[ "$1" = config ] && echo https://mirror.example/ && exit\n'
        f'[ "$2" = onnxruntime-web@{web_runtime.VERSION} ] || exit 1\n'
        f'/bin/cp {package} "$5/"\n'
    )
    npm.chmod(0o755)
    assert web_runtime.read() == CONTENTS
    assert not addresses
    npm.write_text("#!/bin/sh\n[ $1 = config ] && echo https://mirror.example/ && exit\nexit 1\n")
    for path in (tmp_path / "cache").rglob("wasm.*"):
        path.unlink()
    with pytest.raises(UsageError, match=r"mirror\.example.*--runtime"):
        web_runtime.read()


def test_without_a_network_the_other_way_is_named(package, tmp_path, monkeypatch):
    def refuse(address, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UsageError, match=rf"no route.*{web_runtime.VERSION}.*--runtime") as error:
        web_runtime.read()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("contents", [b"\0asm" * 8, b"\0asm" * 10, b"asm\0" * 9])
def test_other_files_are_refused(contents, package, tmp_path, monkeypatch):
    other = pack(tmp_path / "other.tgz", {**CONTENTS, "wasm.wasm": contents})
    with pytest.raises(ValueError, match=r"other\.tgz.*ort\.wasm\.wasm"):
        web_runtime.read(other)
    serve(monkeypatch, other)
    with pytest.raises(ValueError, match=r"ort\.wasm\.wasm"):
        web_runtime.read()
    assert not (tmp_path / "cache").exists()


def test_what_is_not_the_package_is_named(package, tmp_path):
    (tmp_path / "notes.tgz").write_text("notes")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.tgz").write_bytes(package.read_bytes()[:60])
    pack(tmp_path / "half.tgz", {"wasm.js": CONTENTS["wasm.js"]})
    for name in ("notes.tgz", "empty", "cut.tgz", "half.tgz"):
        with pytest.raises(ValueError, match=f"{name}.*{web_runtime.VERSION}") as error:
            web_runtime.read(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError):
        web_runtime.read(tmp_path / "absent.tgz")
