"""Single images: headers, the conversions that they need, and decoding."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""The decoders in use, whatever a file's name: Pillow would start Ghostscript for EPS."""

MODE = {1: "L", 3: "RGB", 4: "RGBA"}
EXACT = {1: ("L", "1"), 3: ("RGB", "P"), 4: ("RGBA",)}
"""The modes of Pillow with exactly that number of 8-bit channels."""

OPAQUE = {"RGBA": "RGB", "LA": "L", "PA": "P"}
CONVERTIBLE = ("L", "1", "P", "RGB", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L", *OPAQUE)
"""The modes that can be converted. Others have an unknown range of values ("I", "F") or need a
colour profile ("LAB")."""

NAMES = {
    "L": "grey",
    "1": "black and white",
    "P": "palette",
    "LA": "grey with alpha",
    "PA": "palette with alpha",
    "I;16": "16-bit grey",
    "I;16B": "16-bit grey",
    "I;16L": "16-bit grey",
    "I": "32-bit grey",
    "F": "floating-point grey",
}


class Misfit(NamedTuple):
    """A difference between an image and the requested size and channels.

    Attributes:
      kind: follows a number of images: `of other sizes`, `grey`, `with transparency`.
      detail: of this image, where the kind leaves it open: `80x60`.
      change: the conversion, as a participle: `resized`; empty if there is none.
    """

    kind: str
    detail: str
    change: str


def open_image(data: Path | bytes, name: str) -> Image.Image:
    """Opens an image lazily: only its header is read.

    Args:
      data: the path or the bytes of a file.
      name: the name of the image in error messages.

    Raises:
      ValueError: the data are not an image of one of `FORMATS`.
    """
    try:
        opened = io.BytesIO(data) if isinstance(data, bytes) else data
        return Image.open(opened, formats=FORMATS)
    except Exception as error:  # Pillow's decoders raise many types.
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "it is not an image" if unknown else first_line(error)
        raise ValueError(f"{name} cannot be opened: {reason}") from None


def misfits(image: Image.Image, size: int | None, channels: int) -> list[Misfit]:
    """The differences between an image's header and the requested size and channels.

    Args:
      image: an open image.
      size: height and width; None for any.
      channels: 1, 3 or 4.
    """
    result = []
    if size is not None and image.size != (size, size):
        result.append(Misfit("of other sizes", f"{image.width}x{image.height}", "resized"))
    mode, target = image.mode, NAMES.get(MODE[channels], MODE[channels])
    if channels != 4 and _has_alpha(image):
        result.append(Misfit("with transparency", "", "composed on white"))
        mode = OPAQUE.get(mode, mode)
    if mode not in EXACT[channels]:
        kind = NAMES.get(mode, mode)
        bits = " (scaled to 8 bits)" if mode.startswith("I;16") else ""
        change = f"converted to {target}{bits}" if mode in CONVERTIBLE else ""
        result.append(Misfit(kind, "", change))
    return result


def loses_bits(image: Image.Image) -> bool:
    """Whether Pillow reduces 16 bits per channel to 8 (the high byte): colour PNG files."""
    raw_mode = image.tile[0][3] if image.tile else None
    return (
        isinstance(raw_mode, str)
        and raw_mode.endswith(";16B")
        and not image.mode.startswith("I;16")
    )


def check_fits(image: Image.Image, name: str, size: int, channels: int, resize: bool) -> None:
    """Checks the header of an image against the requested size and channels.

    Raises:
      ValueError: they do not match (with `resize`: they cannot be converted). The message names the
        option of `open_source` that would accept the image.
    """
    differences = misfits(image, size, channels)
    if not differences or (resize and all(misfit.change for misfit in differences)):
        return
    transparent = " with transparency" if "transparency" in image.info else ""
    actual = f"{image.width}x{image.height} {NAMES.get(image.mode, image.mode)}{transparent}"
    target = NAMES.get(MODE[channels], MODE[channels])
    if all(misfit.change for misfit in differences):
        hint = "resize=True converts it"
    else:
        hint = f"resizing does not help: convert it to 8-bit {target}"
    raise ValueError(f"{name} is {actual}; expected {size}x{size} {target} ({hint})")


def upright_size(image: Image.Image, data: bytes, name: str) -> tuple[int, int]:
    """Width and height after the EXIF orientation is applied.

    Pixels are decoded only if a PNG file has its EXIF data after them.

    Args:
      image: an open image.
      data: the bytes of its file.
      name: the name of the image in error messages.

    Raises:
      ValueError: the EXIF data, or the pixels before them, are damaged.
    """
    try:
        if image.format == "PNG" and "exif" not in image.info:
            if b"eXIf" not in data:  # Otherwise, Pillow would decode the image to look for it.
                return image.size
            image.load()
        transposed = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Exception as error:  # Pillow's decoders raise many types.
        raise ValueError(f"{name} cannot be opened: {first_line(error)}") from None
    return (image.height, image.width) if transposed else image.size


def patches(width: int, height: int, size: int) -> list[tuple[int, int]]:
    """The places of the patches of an image: `(left, top)` each, row by row.

    Patches are adjacent, except that the last one of a row or a column is aligned with the image's
    border and may overlap the previous one.

    Args:
      width: of the upright image, at least `size`.
      height: of the upright image, at least `size`.
      size: height and width of a patch.
    """
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
      resize: whether to convert the colours (as `convert`), and to crop the centre square and
        resize it (antialiased bicubic), where they do not match.
      place: one of `patches`: convert the colours and crop this patch.

    Raises:
      ValueError: the data are not an image or are damaged, or size or colours do not match.
    """
    with open_image(data, name) as image:
        if place is None:
            check_fits(image, name, size, channels, resize)
        try:
            ImageOps.exif_transpose(image, in_place=True)
            upright = convert(image, channels)
        except Exception as error:  # Pillow's decoders raise many types.
            raise ValueError(f"{name} cannot be decoded: {first_line(error)}") from None
        if place is not None:
            left, top = place
            if left + size > upright.width or top + size > upright.height:
                raise ValueError(
                    f"{name} has changed: it is {upright.width}x{upright.height}, without a patch "
                    f"at ({left}, {top})"
                )
            upright = upright.crop((left, top, left + size, top + size))
        elif upright.size != (size, size):
            side = min(upright.size)
            left, top = (upright.width - side) // 2, (upright.height - side) // 2
            # Not the `box` of `resize`: its filter would read pixels outside of the square.
            upright = upright.crop((left, top, left + side, top + side))
            upright = upright.resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(upright).reshape(size, size, channels)


def convert(image: Image.Image, channels: int) -> Image.Image:
    """The image with 1 (grey, BT.601), 3 (RGB) or 4 (RGBA) channels of 8 bits.

    16-bit grey is scaled by 1/257 and rounded (Pillow would clip it to 255). Unless `channels` is
    4, transparency is composed on white.

    Raises:
      ValueError: Pillow cannot convert the mode.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        grey = Image.fromarray(np.rint(values / 257).astype(np.uint8))
        if "transparency" in image.info:  # the one value that is transparent
            opaque = values != image.info["transparency"]
            grey.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
        image = grey
    if channels != 4 and _has_alpha(image):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == MODE[channels] else image.convert(MODE[channels])


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in OPAQUE or "transparency" in image.info


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
