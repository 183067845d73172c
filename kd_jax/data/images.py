"""Single images: validation of headers, and decoding."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

# The modes of Pillow with exactly that number of 8-bit channels.
EXACT = {1: ("L", "1"), 3: ("RGB", "P"), 4: ("RGBA",)}
OPAQUE = ("L", "1", "P", "RGB", "CMYK", "YCbCr")
MODE = {1: "L", 3: "RGB", 4: "RGBA"}
NAMES = {
    "L": "grey",
    "1": "black and white",
    "P": "palette",
    "LA": "grey with alpha",
    "I;16": "16-bit grey (I;16)",
    "I": "32-bit grey (I)",
    "F": "floating-point grey (F)",
}


def open_image(data: Path | bytes, name: str) -> Image.Image:
    """Opens an image lazily: only its header is read.

    Args:
      data: the path or the bytes of a file.
      name: the name of the image in error messages.

    Raises:
      ValueError: the data are not an image.
    """
    try:
        return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "it is not an image" if unknown else first_line(error)
        raise ValueError(f"{name} cannot be opened: {reason}") from None


def check_fits(image: Image.Image, name: str, size: int, channels: int, resize: bool) -> None:
    """Checks the header of an image against the requested size and channels.

    Raises:
      ValueError: they do not match (with `resize`, only the colours are checked). The message names
        the option of `open_source` that would accept the image.
    """
    transparent = "transparency" in image.info and channels != 4
    exact = image.mode in EXACT[channels] and image.size == (size, size)
    if not transparent and (exact or (resize and image.mode in (*OPAQUE, *EXACT[channels]))):
        return
    kind = NAMES.get(image.mode, image.mode) + (" with transparency" if transparent else "")
    expected_kind = NAMES.get(MODE[channels], MODE[channels])
    if not transparent and image.mode in (*OPAQUE, *EXACT[channels]):
        large = min(image.size) >= size and image.size != (size, size)
        cut = "; for a folder, in_patches=True cuts it into patches" if large else ""
        hint = f"resize=True converts it{cut}"
    elif channels != 4 and image.mode in (*OPAQUE, "RGBA"):  # opaque modes are transparent here
        hint = (
            "resizing does not help: channels=4 keeps the transparency, or convert it to "
            f"{expected_kind}"
        )
    else:
        hint = f"resizing does not help: convert it to 8-bit {expected_kind}"
    actual, expected = f"{image.width}x{image.height} {kind}", f"{size}x{size} {expected_kind}"
    if resize:  # The size does not matter.
        actual, expected = kind, expected_kind
    raise ValueError(f"{name} is {actual}; expected {expected} ({hint})")


def patches(image: Image.Image, name: str, size: int, channels: int) -> list[tuple[int, int]]:
    """The places of the patches of an image: `(left, top)` each, row by row.

    Patches are adjacent, except that the last one of a row or a column is aligned with the image's
    border and may overlap the previous one. Only the header is read.

    Raises:
      ValueError: the image is smaller than a patch, or its colours cannot be converted.
    """
    check_fits(image, name, size, channels, resize=True)
    transposed = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    width, height = reversed(image.size) if transposed else image.size
    if min(width, height) < size:
        raise ValueError(f"{name} is {width}x{height}, smaller than a patch of {size}x{size}")
    lefts, tops = ([*range(0, side - size, size), side - size] for side in (width, height))
    return [(left, top) for top in tops for left in lefts]


def decode(
    data: Path | bytes,
    name: str,
    size: int,
    channels: int,
    resize: bool,
    place: tuple[int, int] | None = None,
) -> npt.NDArray[np.uint8]:
    """The pixels of an image, upright: `[size, size, channels]` uint8.

    Args:
      data: the path or the bytes of a file.
      name: the name of the image in error messages.
      size: height and width.
      channels: 1, 3 or 4.
      resize: whether to convert the colours, and to crop the centre square and resize it
        (antialiased bicubic), where they do not match.
      place: one of `patches`: convert the colours and crop this patch.

    Raises:
      ValueError: the data are not an image or are damaged, or size or colours do not match.
    """
    with open_image(data, name) as image:
        check_fits(image, name, size, channels, resize or place is not None)
        try:
            upright: Any = ImageOps.exif_transpose(image).convert(MODE[channels])
        except Exception as error:  # Pillow's decoders raise many types.
            raise ValueError(f"{name} cannot be decoded: {first_line(error)}") from None
    if place is not None:
        left, top = place
        upright = upright.crop((left, top, left + size, top + size))
    elif upright.size != (size, size):
        side = min(upright.size)
        left, top = (upright.width - side) // 2, (upright.height - side) // 2
        # Not the `box` of `resize`: its filter would read pixels outside of the square.
        upright = upright.crop((left, top, left + side, top + side))
        upright = upright.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(upright).reshape(size, size, channels)


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
