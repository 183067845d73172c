"""Data sets of images: opening, subsets, and shuffled batches of one or several sets.

    source = open_source("digits", "train", size=16, channels=1, cache=Path("data"))
    few = subset(source, fraction=0.05, seed=0)
    for batch in prefetch_to_device(batches(few, batch_size=64, seed=0)): ...

Importing this module is cheap: TFDS, Grain, scikit-learn and Pillow are imported by the functions
that need them.
"""

import dataclasses
from pathlib import Path

from kd_jax.core.files import cache_dir
from kd_jax.data.origin import check_same_classes, overlap
from kd_jax.data.pipeline import (
    Batches,
    BatchIterator,
    EmptyBatches,
    GeneratedBatches,
    ZippedBatches,
    batches,
    generated_batches,
    zipped_batches,
)
from kd_jax.data.prefetch import PrefetchedBatches, prefetch_to_device
from kd_jax.data.source import (
    Source,
    UnreadableError,
    cache_in_memory,
    hold_out,
    load_all,
    strided,
    subset,
)

__all__ = [
    "BatchIterator",
    "Batches",
    "EmptyBatches",
    "GeneratedBatches",
    "PrefetchedBatches",
    "Source",
    "UnreadableError",
    "ZippedBatches",
    "batches",
    "check_same_classes",
    "generated_batches",
    "hold_out",
    "load_all",
    "open_source",
    "overlap",
    "prefetch_to_device",
    "strided",
    "subset",
    "zipped_batches",
]


def open_source(
    spec: str,
    split: str,
    size: int,
    channels: int,
    cache: Path | None = None,
    *,
    resize: bool = False,
    in_patches: bool = False,
    skip_corrupt: bool = False,
    background: str | None = None,
) -> Source:
    """Opens a data set of images for random access.

    Args:
      spec: one of:
        `digits`: scikit-learn's 1,797 handwritten digits of 8x8, 10 classes, enlarged to `size`
          (bicubic); written to `cache` as a TFDS dataset on first use.
        `photos`: patches of nine photographs of scikit-image and scikit-learn, of 64x64, or of
          256x256 for a larger `size`, downsampled to it; `train` has six photographs and `test` the
          other three; a label is the number of a photograph.
        `folder:PATH`: the png, jpg, webp, bmp and tiff files of a folder, one class; or of its
          sub-folders, one class each, in the order of their names. Other and hidden files are left
          out. Numbered folders of StyleGAN's `dataset_tool.py` (`00000/img00000000.png`) and of
          FFHQ are one set. The labels of `dataset.json`, numbers or one-hot vectors, replace the
          classes. All files are read once, for their headers and the fingerprint.
        `folder:PATH.zip`: the same in an archive, which is read in place. If it contains a single
          folder, that is the root.
        `folder:PATH.npz`, `folder:PATH.npy`: an array, uint8 `[N, H, W]` or `[N, H, W, C]` with 1,
          3 or 4 channels: of an .npz file `images`, `arr_0`, or the only one besides `labels`,
          integers `[N]`. An .npy file is mapped into memory and has no labels.
        `tfds:NAME`: a TFDS dataset, already prepared as array_record, with a feature `image` and
          optionally a `label`. The files are hashed for the fingerprint; beyond 1 GiB, samples.
      split: `train`, or any TFDS split (`train[:90%]`). A folder, an archive
        and an array have only `train`.
      size: height and width.
      channels: 1 (grey), 3 (RGB) or 4 (RGBA).
      cache: the directory of TFDS datasets; None is `tfds` in the cache of this package
        (`$KD_JAX_CACHE`, else `~/.cache/kd_jax`).
      resize: whether to convert images that do not fit: the centre square is resized (antialiased
        bicubic), grey, palette, CMYK and colour are converted to each other, 16 bits are scaled to
        8, and transparency is composed on the background unless `channels=4`. Of animations, the
        first frame is read; TIFF files of several pages are an error. Otherwise, images that do not
        fit are an error.
      in_patches: for folders, whether to cut each image into adjacent patches of `size`; the last
        patch of a row or a column is aligned with the image's border. Colours are converted as by
        `resize`. Reading a patch decodes its whole image, unless all patches fit into memory.
      skip_corrupt: whether to replace an image whose data are damaged by the next one, wherever the
        source is read, and to leave out the files of a folder that cannot be opened as images.
      background: of folders and TFDS datasets, the colour behind transparent images: a name of CSS
        or `#rrggbb`; transparency is then accepted without `resize` too. None: white, with
        `resize` or `in_patches`.

    Returns:
      A source; its `notes` have one line for each kind of file of a folder that was left out, and
      for each kind of conversion.

    Raises:
      FileNotFoundError: the folder does not exist or is empty, or the dataset is not prepared.
      ValueError: the arguments or the images are invalid; the message is one line, which for a
        folder counts all images that do not fit, by kind, with an example of each. Images with a
        valid header and damaged data, and files that have changed since they were opened, raise an
        UnreadableError when they are read.
    """
    if in_patches and not spec.startswith("folder:"):
        raise ValueError(
            f"{spec} is not a folder; only the images of a folder are cut into patches"
        )
    if background is not None:
        if not spec.startswith(("folder:", "tfds:")) or channels == 4:
            raise ValueError(
                f"background={background!r} is for transparent images of folder:PATH or tfds:NAME "
                f"with 1 or 3 channels, not for {spec} with {channels}"
            )
        from kd_jax.data.images import parse_colour

        parse_colour(background)
    if channels not in (1, 3, 4):
        raise ValueError(f"channels is {channels}: an image has 1 (grey), 3 (RGB) or 4 (RGBA)")
    if size < 1:
        raise ValueError(f"size is {size}: it is the height and width in pixels")
    cache = Path(cache).expanduser() if cache else cache_dir() / "tfds"
    kind, _, argument = spec.partition(":")
    if spec == "digits":
        from kd_jax.data.digits import open_digits

        source = open_digits(split, size, channels, cache)
    elif spec == "photos":
        from kd_jax.data.photos import open_photos

        source = open_photos(split, size, channels, cache)
    elif kind == "folder" and argument:
        from kd_jax.data.folder import open_folder

        folder = Path(argument).expanduser()
        source = open_folder(
            folder, split, size, channels, resize, in_patches, skip_corrupt, background
        )
    elif kind == "tfds" and argument:
        from kd_jax.data.prepared import open_prepared

        source = open_prepared(argument, split, size, channels, cache, resize, background)
    elif kind in ("zip", "npz", "npy") and argument:
        raise ValueError(f"unknown data {spec!r}: did you mean folder:{argument}?")
    else:
        raise ValueError(
            f"unknown data {spec!r}: did you mean digits, photos, folder:PATH or tfds:NAME?"
        )
    return dataclasses.replace(cache_in_memory(source), skip_corrupt=skip_corrupt)
