"""The files of onnxruntime-web that a page needs, fetched once and verified.

They are the work of others (MIT licence), and in no file of kd_jax: the cache has them.
"""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from kd_jax.core.checks import UsageError
from kd_jax.core.files import cache_dir, naming, write_atomically

VERSION = "1.30.0"

REGISTRY = "https://registry.npmjs.org/"

ADDRESS = f"{REGISTRY}onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"


class Part(NamedTuple):
    """A file.

    Attributes:
      source: its name in the folder `dist` of the npm package.
      size: in bytes.
      sha256: in hex digits.
    """

    source: str
    size: int
    sha256: str


PARTS = {
    "wasm.js": Part(
        "ort.wasm.bundle.min.mjs",
        73_054,
        "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    ),
    "wasm.wasm": Part(
        "ort-wasm-simd-threaded.wasm",
        14_239_897,
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    ),
    "webgpu.js": Part(
        "ort.webgpu.bundle.min.mjs",
        117_732,
        "0730816731ce2cdfb06f273da065d4a1c7091eb9d1756a83b2916c8a89d015e2",
    ),
    "webgpu.wasm": Part(
        "ort-wasm-simd-threaded.asyncify.wasm",
        26_781_914,
        "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
    ),
}
"""By the name in a page: some servers do not know the type of `.mjs`."""


def read(source: Path | None = None) -> dict[str, bytes]:
    """The contents of `PARTS`, verified.

    Args:
      source: the npm package as `.tgz`, or a folder with its files; by default those of the cache,
        which are fetched from the npm registry if absent: by npm where it is configured with
        another registry.

    Raises:
      UsageError: they cannot be fetched; the message has the address and the other way.
      ValueError: a file is missing or is another one; the message names it.
      OSError: there is no such source.
    """
    if source is not None:
        return _read_folder(source) if source.is_dir() else _read_package(source)
    cache = cache_dir() / f"onnxruntime-web-{VERSION}"
    try:
        return {name: _verified(part, (cache / name).read_bytes()) for name, part in PARTS.items()}
    except (OSError, ValueError):  # absent or damaged
        pass
    with _fetched() as package:
        contents = _read_package(package)
    with naming(f"write to the cache {cache}"):
        for name, data in contents.items():
            write_atomically(cache / name, data)
    return contents


def _read_folder(folder: Path) -> dict[str, bytes]:
    """From the folder of the package, or its folder `dist`."""
    places = [folder, folder / "dist", folder / "package" / "dist"]
    contents = {}
    for name, part in PARTS.items():
        path = next((p for place in places if (p := place / part.source).is_file()), None)
        if path is None:
            raise ValueError(f"{folder} has no file {part.source} of onnxruntime-web {VERSION}")
        contents[name] = _verified(part, path.read_bytes(), f"{path}: ")
    return contents


def _read_package(path: Path) -> dict[str, bytes]:
    contents = {}
    try:
        with tarfile.open(path) as package:
            for name, part in PARTS.items():
                file = package.extractfile(f"package/dist/{part.source}")
                if file is None:
                    raise KeyError(part.source)
                with file:
                    # A byte more than fits, so that a longer one differs.
                    contents[name] = _verified(part, file.read(part.size + 1), f"{path}: ")
    except (tarfile.TarError, EOFError, KeyError) as error:
        reason = " ".join(str(error).strip("'\"").split())
        raise ValueError(
            f"{path} is not the npm package onnxruntime-web {VERSION}: {reason}"
        ) from None
    return contents


def _verified(part: Part, data: bytes, place: str = "") -> bytes:
    if (digest := hashlib.sha256(data).hexdigest()) != part.sha256:
        raise ValueError(
            f"{place}{part.source} is not that of onnxruntime-web {VERSION}: {len(data):,} bytes "
            f"with sha256 {digest[:12]}..., not {part.size:,} with {part.sha256[:12]}..."
        )
    return data


@contextmanager
def _fetched() -> Iterator[Path]:
    """The npm package, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        address = ADDRESS
        try:
            registry = _registry()
            if registry != REGISTRY:
                address = f"{registry} by npm"
                package = _pack(folder)
            else:
                package = Path(folder) / "package.tgz"
                with urllib.request.urlopen(ADDRESS, timeout=60) as answer, package.open("wb") as f:
                    _copy(answer, f)
        except (OSError, subprocess.SubprocessError) as error:
            reason = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1]
            raise UsageError(
                f"cannot fetch onnxruntime-web {VERSION} from {address} ({reason}): download the "
                f"package elsewhere, by `npm pack onnxruntime-web@{VERSION}` or from {ADDRESS}, "
                "and pass it (runtime=, of commands --runtime)"
            ) from None
        yield package


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    shutil.copyfileobj(source, target, 1 << 20)


def _registry() -> str:
    """The registry that npm is configured with, where there is npm."""
    npm = shutil.which("npm")
    if npm is None:
        return REGISTRY
    command = [npm, "config", "get", "registry"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return result.stdout.strip() or REGISTRY


def _pack(folder: str) -> Path:
    """The package, fetched by npm."""
    package = f"onnxruntime-web@{VERSION}"
    command = ["npm", "pack", package, "--ignore-scripts", "--pack-destination", folder]
    subprocess.run(command, capture_output=True, text=True, timeout=600, check=True, cwd=folder)
    return next(Path(folder).glob("*.tgz"))
