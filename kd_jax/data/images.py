"""Single images: headers, the conversions that they need, and decoding.

This is the only place where image files are decoded, and only by the decoders of `FORMATS`. Sizes
are limited before pixels are allocated, and all errors of decoders become an UnreadableError.
"""

import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageColor, ImageOps

from kd_jax.data.files import reason
from kd_jax.data.source import UnreadableError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""The decoders in use, whatever a file's name: Pillow would start Ghostscript for EPS."""

MAX_PIXELS = 2**26
"""The largest image that is decoded, 8192x8192: Pillow allocates 4 bytes per pixel."""

MAX_SIDE = 65_535
"""The largest width and height. A few bytes of a compressed BMP file stand for 255 rows."""

MAX_SCANNED = 2**32
"""The largest product of pixels and scans of a JPEG file: each scan visits all pixels."""

_LIMIT = "(kd_jax.data.images.MAX_PIXELS)"

TRANSPARENT = "with transparency"
BACKGROUND = "white"

RESIZE = "resize=True (--config.data.resize=True; kd-jax evaluate --resize)"
COMPOSE = "background='white' (--config.data.background=white; kd-jax evaluate --background white)"
"""The options in messages: of `open_source`, of the experiments and of the command."""

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


def open_image(data: bytes, name: str) -> Image.Image:
    """Opens an image lazily: only its header is read.

    Args:
      data: the bytes of a file.
      name: the name of the image in error messages.

    Raises:
      UnreadableError: `NAME cannot be opened: REASON`: the data are not an image of one of
        `FORMATS`, or it is larger than `MAX_PIXELS` or `MAX_SIDE`.
    """
    try:
        _check_pixels(*_webp_size(data))  # Pillow allocates the pixels of WebP when it is opened.
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_pixels(*image.size)
        getattr(image, "is_animated", False)  # of GIF, it reads the second frame, and is cached
        if image.format in ("JPEG", "MPO"):
            scans = data.count(b"\xff\xda")  # the marker; in compressed data, 0 follows 255
            if scans * image.width * image.height > MAX_SCANNED:
                raise ValueError(f"it has {scans:,} scans of {image.width}x{image.height} pixels")
        return image
    except Exception as error:  # Pillow's decoders raise many types.
        if not data:
            text = "it is empty"
        elif isinstance(error, Image.UnidentifiedImageError):
            text = f"it is not an image ({', '.join(FORMATS[:-1])} or {FORMATS[-1]})"
        elif isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
            text = f"it claims more than {MAX_PIXELS:,} pixels {_LIMIT}"  # the limits of Pillow
        else:
            text = reason(error)
        raise UnreadableError(f"{name} cannot be opened: {text}") from None


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ValueError(
            f"it claims {width}x{height} pixels, and at most {MAX_PIXELS:,} are decoded {_LIMIT}"
        )


def _webp_size(data: bytes) -> tuple[int, int]:
    """The width and height in the header of a WebP file (RFC 9649, sections 2.5 to 2.7), or 0."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return 0, 0
    if data[12:16] == b"VP8X":
        sides = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
    elif data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        sides = ((bits >> shift & 0x3FFF) + 1 for shift in (0, 14))
    else:
        sides = (int.from_bytes(data[i : i + 2], "little") & 0x3FFF for i in (26, 28))
    width, height = sides
    return width, height


def parse_colour(text: str) -> tuple[int, int, int]:
    """The red, green and blue of a colour: a name of CSS (`white`), or `#rrggbb`.

    Raises:
      ValueError: it is not an opaque colour.
    """
    try:
        red, green, blue = ImageColor.getrgb(text)
    except (ValueError, AttributeError):
        raise ValueError(
            f"background is {text!r}: it is a colour such as 'white', 'grey' or '#7f7f7f'"
        ) from None
    return red, green, blue


def misfits(
    image: Image.Image, size: int | None, channels: int, background: str | None = None
) -> list[Misfit]:
    """The differences between an image's header and the requested size and channels.

    Args:
      image: an open image.
      size: height and width; None for any.
      channels: 1, 3 or 4.
      background: the colour behind transparent images; None is white.
    """
    result = []
    if size is not None and image.size != (size, size):
        result.append(Misfit("of other sizes", f"{image.width}x{image.height}", "resized"))
    if getattr(image, "is_animated", False) and image.format != "MPO":  # of a camera
        pages = image.format == "TIFF"
        change = "" if pages else "reduced to the first frame"
        result.append(Misfit("with several pages" if pages else "animated", "", change))
    mode, target = image.mode, NAMES.get(MODE[channels], MODE[channels])
    if channels != 4 and _has_alpha(image):
        result.append(Misfit(TRANSPARENT, "", f"composed on {background or BACKGROUND}"))
        mode = OPAQUE.get(mode, mode)
    if mode not in EXACT[channels]:
        kind = _unknown_range(image) or NAMES.get(mode, mode)
        bits = " (scaled to 8 bits)" if mode.startswith("I;16") else ""
        convertible = mode in CONVERTIBLE and not _unknown_range(image)
        change = f"converted to {target}{bits}" if convertible else ""
        result.append(Misfit(kind, "", change))
    return result


def is_solved(misfit: Misfit, converting: bool, background: str | None) -> bool:
    """Whether the options convert such an image; a background accepts transparency by itself."""
    composed = misfit.kind == TRANSPARENT and background is not None
    return bool(misfit.change) and (converting or composed)


def loses_bits(image: Image.Image) -> bool:
    """Whether Pillow reduces 16 bits per channel to 8 (the high byte): colour PNG and TIFF."""
    return ";16" in _raw_mode(image) and not image.mode.startswith("I")


def _unknown_range(image: Image.Image) -> str:
    """The kind of a grey TIFF image whose 16-bit mode has another range; empty for others."""
    if image.mode.startswith("I;16") and image.format == "TIFF":
        if _raw_mode(image) == "I;12":
            return "12-bit grey"
        if image.tag_v2.get(262) == 0:  # PhotometricInterpretation, WhiteIsZero
            return "inverted 16-bit grey"
    return ""


def _raw_mode(image: Image.Image) -> str:
    """The name of the pixels' layout in the file; empty for the formats that have none."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else None
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def check_fits(
    image: Image.Image,
    name: str,
    size: int,
    channels: int,
    resize: bool,
    background: str | None = None,
) -> None:
    """Checks the header of an image against the requested size and channels.

    Raises:
      ValueError: they do not match (with `resize`: they cannot be converted). The message names the
        option of `open_source` that would accept the image.
    """
    differences = misfits(image, size, channels, background)
    if all(is_solved(misfit, resize, background) for misfit in differences):
        return
    transparent = " with transparency" if "transparency" in image.info else ""
    actual = f"{image.width}x{image.height} {NAMES.get(image.mode, image.mode)}{transparent}"
    target = NAMES.get(MODE[channels], MODE[channels])
    if all(misfit.change for misfit in differences):
        hint = f"{RESIZE} converts it"
        if all(misfit.kind == TRANSPARENT for misfit in differences):
            hint += f"; {COMPOSE} composes it"
    else:
        kinds = ", ".join(misfit.kind for misfit in differences if not misfit.change)
        hint = f"resizing does not help for those {kinds}: convert it to 8-bit {target}"
    raise ValueError(f"{name} is {actual}; expected {size}x{size} {target} ({hint})")


def upright_size(image: Image.Image, data: bytes, name: str) -> tuple[int, int]:
    """Width and height after the EXIF orientation is applied.

    Pixels are decoded only if a PNG file has metadata after them.

    Args:
      image: an open image.
      data: the bytes of its file.
      name: the name of the image in error messages.

    Raises:
      UnreadableError: `NAME cannot be opened: REASON`: the metadata, or the pixels before them, are
        damaged.
    """
    try:
        if image.format == "PNG" and "exif" not in image.info:
            rest = data[data.rfind(b"IDAT") :]
            if not any(kind in rest for kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")):
                # Otherwise, Pillow would decode the image to look for them.
                return image.size
            image.load()
        # The orientation of TIFF is part of Pillow's size.
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        transposed = orientation >= 5 and image.format != "TIFF"
    except Exception as error:  # Pillow's decoders raise many types.
        raise UnreadableError(f"{name} cannot be opened: {reason(error)}") from None
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
    image: Image.Image,
    name: str,
    size: int,
    channels: int,
    resize: bool,
    place: tuple[int, int] | None = None,
    background: str | None = None,
) -> npt.NDArray[np.uint8]:
    """The pixels of an open image, upright: `[size, size, channels]` uint8.

    Args:
      image: the image, which is closed.
      name: the name of the image in error messages.
      size: height and width.
      channels: 1, 3 or 4.
      resize: whether to convert the colours (as `convert`), and to crop the centre square and
        resize it (antialiased bicubic), where they do not match.
      place: one of `patches`: convert the colours and crop this patch.
      background: the colour behind transparent images; None is white.

    Raises:
      ValueError: size or colours do not match.
      UnreadableError: `NAME cannot be decoded: REASON`: the data are damaged.
    """
    with image:
        if place is None:
            check_fits(image, name, size, channels, resize, background)
        try:
            ImageOps.exif_transpose(image, in_place=True)
            side = size
            if place is None:
                side = min(image.size)
                place = (image.width - side) // 2, (image.height - side) // 2
            left, top = place
            if left + side > image.width or top + side > image.height or side < 1:
                raise ValueError(f"it is {image.width}x{image.height} upright")
            # First the crop, so that the rest is not converted. Not the `box` of `resize`: its
            # filter would read pixels outside of the square.
            square = image
            if image.size != (side, side):
                square = image.crop((left, top, left + side, top + side))
            square = convert(square, channels, background)
            if side != size:
                square = square.resize((size, size), Image.Resampling.BICUBIC)
            return np.asarray(square).reshape(size, size, channels)
        except Exception as error:  # Pillow's decoders raise many types.
            raise UnreadableError(f"{name} cannot be decoded: {reason(error)}") from None


def convert(image: Image.Image, channels: int, background: str | None = None) -> Image.Image:
    """The image with 1 (grey, BT.601), 3 (RGB) or 4 (RGBA) channels of 8 bits.

    16-bit grey is scaled by 1/257 and rounded (Pillow would clip it to 255). Unless `channels` is
    4, transparency is composed on the background; None is white.

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
        colour = parse_colour(background or BACKGROUND)
        above = image if image.mode == "RGBA" else image.convert("RGBA")
        # Without names for what is not needed any longer: of the largest images, 256 MiB each.
        image = Image.alpha_composite(Image.new("RGBA", image.size, colour), above).convert("RGB")
    return image if image.mode == MODE[channels] else image.convert(MODE[channels])


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in OPAQUE or "transparency" in image.info
