"""One image: does it fit, and its pixels."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

# Pillow's modes that are so many channels of 8 bits, and nothing else.
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
    """Opens an image lazily: its header is read.

    Args:
      data: a file, or a file's bytes.
      name: what errors call it.

    Raises:
      ValueError: it is no image.
    """
    try:
        return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "it is no image" if unknown else first_line(error)
        raise ValueError(f"{name} cannot be opened: {reason}") from None


def check_fits(image: Image.Image, name: str, size: int, channels: int, resize: bool) -> None:
    """Checks an image's header against the size and the channels asked for.

    Raises:
      ValueError: it does not fit; with `resize`, only colours can be at fault. What would fit is
        said in the words of `open_source`.
    """
    transparent = "transparency" in image.info and channels != 4
    exact = image.mode in EXACT[channels] and image.size == (size, size)
    if not transparent and (exact or (resize and image.mode in (*OPAQUE, *EXACT[channels]))):
        return
    kind = NAMES.get(image.mode, image.mode) + (" with transparency" if transparent else "")
    asked = NAMES.get(MODE[channels], MODE[channels])
    if not transparent and image.mode in (*OPAQUE, *EXACT[channels]):
        large = min(image.size) >= size and image.size != (size, size)
        cut = "; of a folder, in_patches=True cuts it into patches" if large else ""
        hint = f"resize=True would make it fit{cut}"
    elif channels != 4 and image.mode in (*OPAQUE, "RGBA"):  # the former are transparent here
        hint = (
            f"no size makes that fit: channels=4 keeps the transparency, or convert it to {asked}"
        )
    else:
        hint = f"no size makes that fit: convert it to 8-bit {asked}"
    found, wanted = f"{image.width}x{image.height} {kind}", f"{size}x{size} {asked}"
    if resize:  # The size is not at fault.
        found, wanted = kind, asked
    raise ValueError(f"{name} is {found}; {wanted} is asked for ({hint})")


def patches(image: Image.Image, name: str, size: int, channels: int) -> list[tuple[int, int]]:
    """Where the patches of an image are: `(left, top)` each, row by row.

    They lie side by side, but the last of a row or a column, which ends with the image and overlaps
    the one before. Only the header is looked at.

    Raises:
      ValueError: the image is smaller than a patch, or has other colours than can be converted.
    """
    check_fits(image, name, size, channels, resize=True)
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    width, height = reversed(image.size) if turned else image.size
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
    """An image's pixels, upright: `[size, size, channels]` uint8.

    Args:
      data: a file, or a file's bytes.
      name: what errors call it.
      size: height and width.
      channels: 1, 3 or 4.
      resize: convert the colours, cut out the centre square and resize it (antialiased bicubic),
        where they do not fit.
      place: of `patches`: convert the colours, and cut out this one.

    Raises:
      ValueError: it is no image, its data are damaged, or it does not fit.
    """
    with open_image(data, name) as image:
        check_fits(image, name, size, channels, resize or place is not None)
        try:
            upright: Any = ImageOps.exif_transpose(image).convert(MODE[channels])
        except Exception as error:  # Each of Pillow's decoders has its own.
            raise ValueError(f"{name} cannot be decoded: {first_line(error)}") from None
    if place is not None:
        left, top = place
        upright = upright.crop((left, top, left + size, top + size))
    elif upright.size != (size, size):
        side = min(upright.size)
        left, top = (upright.width - side) // 2, (upright.height - side) // 2
        # Not resize's own `box`, whose filter would look beyond it.
        upright = upright.crop((left, top, left + side, top + side))
        upright = upright.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(upright).reshape(size, size, channels)


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
