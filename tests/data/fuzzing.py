"""Seeded mutations of image files that keep to their structure.

`python tests/data/fuzzing.py COUNT` opens each in three ways. Prints how often images were read,
refused, and refused without their name, and the peak of the memory in MiB; ends with an error for
any other exception, for a program that starts, and after 10 seconds of one image.
"""

import faulthandler
import io
import random
import resource
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

NUMBERS = [0, 1, 2, 3, 7, 8, 16, 255, 256, 8192, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1]
SECONDS = 10


def number(rng: random.Random, size: int) -> int:
    value = rng.choice(NUMBERS) if rng.random() < 0.7 else rng.getrandbits(32)
    return value % 256**size


def garble(rng: random.Random, data: bytes) -> bytes:
    """Changes, removes, repeats or inserts some bytes."""
    for _ in range(rng.randint(1, 4)):
        place, count = rng.randrange(len(data) + 1), rng.choice([1, 2, 4, 30])
        middle = rng.choice([b"", rng.randbytes(count), data[place : place + count] * 2])
        data = data[:place] + middle + data[place + rng.choice([0, count]) :]
    return data


def tiff(rng: random.Random, data: bytes) -> bytes:
    """Changes the entries of the first directory of a TIFF file or an EXIF block."""
    order = ">" if data[:2] == b"MM" else "<"
    start = struct.unpack(order + "I", data[4:8])[0]
    if start + 20 > len(data):
        return garble(rng, data)
    count = min(
        struct.unpack(order + "H", data[start : start + 2])[0], (len(data) - start) // 12 - 1
    )
    if count < 1:
        return garble(rng, data)
    result = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        entry = start + 2 + 12 * rng.randrange(count)
        field = rng.choice(["tag", "type", "count", "value", "next", "garble"])
        if field == "tag":
            tags = [
                254,
                256,
                257,
                258,
                259,
                262,
                266,
                273,
                274,
                277,
                278,
                279,
                284,
                317,
                320,
                322,
                323,
                324,
                325,
                338,
                339,
                347,
                530,
                34665,
                34675,
                34853,
                700,
                33723,
                37500,
            ]
            struct.pack_into(order + "H", result, entry, rng.choice(tags))
        elif field == "type":
            struct.pack_into(order + "H", result, entry + 2, rng.randint(0, 19))
        elif field == "count":
            struct.pack_into(order + "I", result, entry + 4, number(rng, 4))
        elif field == "value":
            values = [number(rng, 4), rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 32773, 34676, 50000])]
            struct.pack_into(order + "I", result, entry + 8, rng.choice(values))
        elif field == "next":
            place = start + 2 + 12 * count
            result[place : place + 4] = struct.pack(order + "I", rng.choice([start, 8, 0]))
        else:
            return garble(rng, bytes(result))
    return bytes(result)


def png(rng: random.Random, data: bytes) -> bytes:
    chunks, place = [], 8
    while place < len(data):
        length = struct.unpack(">I", data[place : place + 4])[0]
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    for _ in range(rng.randint(1, 3)):
        index = rng.randrange(len(chunks))
        kind, content = chunks[index]
        action = rng.choice(["header", "repeat", "drop", "move", "garble", "insert", "inflate"])
        if action == "header":
            fields = (
                list(struct.unpack(">IIBBBBB", chunks[0][1])) if len(chunks[0][1]) == 13 else []
            )
            for field in rng.sample(range(len(fields)), min(len(fields), 2)):
                choice = [1, 2, 3, 4, 6, 8, 16] if field > 1 else [number(rng, 4), 17, 70_000]
                fields[field] = rng.choice(choice)
            chunks[0] = b"IHDR", struct.pack(">IIBBBBB", *fields) if fields else b""
        elif action == "repeat":
            chunks.insert(index, (kind, content))
        elif action == "drop" and len(chunks) > 1:
            del chunks[index]
        elif action == "move":
            chunks.insert(rng.randrange(len(chunks)), chunks.pop(index))
        elif action == "garble":
            chunks[index] = kind, garble(rng, content)
        elif action == "insert":
            bomb = zlib.compress(bytes(5_000_000))
            content = rng.choice(
                [rng.randbytes(rng.choice([0, 1, 13, 40])), b"a\0\0" + bomb, b"a\0\1\0\0\0" + bomb]
            )
            kinds = b"tEXt zTXt iTXt iCCP eXIf acTL fcTL fdAT tRNS PLTE gAMA pHYs sRGB cHRM".split()
            chunks.insert(index, (rng.choice(kinds), content))
        else:
            chunks[index] = kind, zlib.compress(bytes(rng.choice([0, 10, 10_000_000])))
    result = data[:8]
    for kind, content in chunks:
        wrong = rng.random() < 0.05
        length = number(rng, 4) if wrong else len(content)
        result += struct.pack(">I", length) + kind + content
        result += struct.pack(">I", zlib.crc32(kind + content) ^ (rng.random() < 0.03))
    return result


def jpeg(rng: random.Random, data: bytes) -> bytes:
    segments, place = [], 2
    while data[place + 1] != 0xDA:
        length = struct.unpack(">H", data[place + 2 : place + 4])[0]
        segments.append((data[place + 1], data[place + 4 : place + 2 + length]))
        place += 2 + length
    scan = data[place:]
    for _ in range(rng.randint(1, 3)):
        index = rng.randrange(len(segments))
        marker, content = segments[index]
        action = rng.choice(["frame", "repeat", "drop", "garble", "insert", "scan", "exif"])
        if action == "frame":
            for i, (kind, own) in enumerate(segments):
                if 0xC0 <= kind <= 0xC2 and len(own) > 8:
                    height, width = number(rng, 2), number(rng, 2)
                    sides = rng.choice([own[1:5], struct.pack(">HH", height, width)])
                    parts = own[5:] if rng.random() < 0.5 else garble(rng, own[5:])
                    kinds = [kind, 0xC0, 0xC1, 0xC2, 0xC3, 0xC9]
                    segments[i] = rng.choice(kinds), own[:1] + sides + parts
        elif action == "repeat":
            segments.insert(index, (marker, content))
        elif action == "drop" and len(segments) > 1:
            del segments[index]
        elif action == "garble":
            segments[index] = marker, garble(rng, content)
        elif action == "insert":
            heads = [
                b"MPF\0MM\0*\0\0\0\x08",
                b"ICC_PROFILE\0\1\2",
                b"Adobe\0d\0\0\0\0\2",
                b"Exif\0\0",
            ]
            segments.insert(
                index, (0xE0 + rng.randrange(16), rng.choice(heads) + rng.randbytes(40))
            )
        elif action == "scan":
            scan = rng.choice(
                [scan * 2, garble(rng, scan), scan[: len(scan) // 2], scan[:12] * 300]
            )
        else:
            exif = [(i, own) for i, (_, own) in enumerate(segments) if own[:4] == b"Exif"]
            for i, own in exif:
                if len(own) > 20:
                    segments[i] = 0xE1, own[:6] + tiff(rng, own[6:])
    result = data[:2]
    for marker, content in segments:
        length = number(rng, 2) if rng.random() < 0.05 else (len(content) + 2) % 65536
        result += struct.pack(">BBH", 0xFF, marker, length) + content
    return result + scan


def webp(rng: random.Random, data: bytes) -> bytes:
    chunks, place = [], 12
    while place < len(data):
        length = struct.unpack("<I", data[place + 4 : place + 8])[0]
        chunks.append((data[place : place + 4], data[place + 8 : place + 8 + length]))
        place += 8 + length + length % 2
    for _ in range(rng.randint(1, 3)):
        index = rng.randrange(len(chunks))
        kind, content = chunks[index]
        action = rng.choice(["canvas", "repeat", "drop", "garble", "insert", "rename", "exif"])
        kinds = [b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"EXIF", b"XMP ", b"ICCP"]
        if action == "canvas":
            sides = (number(rng, 3).to_bytes(3, "little") for _ in range(2))
            chunks.insert(0, (b"VP8X", rng.randbytes(4) + b"".join(sides)))
        elif action == "repeat":
            chunks.insert(index, (kind, content))
        elif action == "drop" and len(chunks) > 1:
            del chunks[index]
        elif action == "garble":
            chunks[index] = kind, garble(rng, content)
        elif action == "insert":
            chunks.insert(index, (rng.choice(kinds), rng.randbytes(rng.choice([0, 6, 16, 50]))))
        elif action == "rename":
            chunks[index] = rng.choice(kinds), content
        else:
            chunks = [
                (k, own[:6] + tiff(rng, own[6:]) if k == b"EXIF" and own[:4] == b"Exif" else own)
                for k, own in chunks
            ]
    body = b"WEBP"
    for kind, content in chunks:
        length = number(rng, 4) if rng.random() < 0.05 else len(content)
        body += kind + struct.pack("<I", length) + content + bytes(len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(rng: random.Random, data: bytes) -> bytes:
    result = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place, kind = rng.choice(
            [(10, "I"), (14, "I"), (18, "I"), (22, "I"), (28, "H"), (30, "I"), (34, "I"), (46, "I")]
        )
        size = struct.calcsize(kind)
        small = [0, 1, 2, 3, 4, 8, 12, 16, 24, 32, 40, 64, 108, 124]
        value = rng.choice([number(rng, size), rng.choice(small)])
        struct.pack_into("<" + kind, result, place, value)
    if rng.random() < 0.3:  # run lengths, with jumps over rows
        struct.pack_into("<HI", result, 28, *rng.choice([(8, 1), (4, 2)]))
        struct.pack_into("<ii", result, 18, *rng.choice([(16, 16), (65_000, 1_000), (2**26, 1)]))
        return (
            bytes(result[:54]) + bytes(1024) + rng.choice([b"\0\2\xff\xff" * 50, b"\xff\1" * 500])
        )
    return bytes(result) if rng.random() < 0.7 else garble(rng, bytes(result))


def gif(rng: random.Random, data: bytes) -> bytes:
    """Changes the screen, the place of a frame, blocks of extensions, or the codes."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        frame = rng.choice([place for place, byte in enumerate(data) if byte == 0x2C])
        action = rng.choice(["screen", "flags", "frame", "insert", "cut", "garble"])
        if action == "screen":
            struct.pack_into("<HH", result, 6, number(rng, 2), number(rng, 2))
        elif action == "flags":
            result[10] = rng.randrange(256)
        elif action == "frame" and frame + 10 < len(result):
            struct.pack_into("<HHHHB", result, frame + 1, *(number(rng, 2) for _ in range(4)), 135)
        elif action == "insert":
            block = bytes([0x21, rng.choice([1, 0xF9, 0xFE, 0xFF]), rng.choice([0, 4, 11, 255])])
            result[frame:frame] = block + rng.randbytes(rng.choice([0, 4, 20]))
        elif action == "cut":
            del result[rng.randrange(13, len(result)) :]
        else:
            return bytes(result[:13]) + garble(rng, bytes(result[13:]))
    return bytes(result)


MUTATIONS = {"gif": gif, "png": png, "jpeg": jpeg, "webp": webp, "bmp": bmp, "tiff": tiff}


def seeds(kind: str) -> list[bytes]:
    """Intact files of a kind: modes, compressions, an EXIF block, an animation."""
    rng, files = np.random.default_rng(0), []
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    images = {
        mode: Image.fromarray(rng.integers(0, 256, (16, 24, len(mode)), np.uint8).squeeze(), mode)
        for mode in ("L", "RGB", "RGBA", "CMYK")
    }
    images["P"] = images["RGB"].quantize(16)
    modes = {"png": "L RGB RGBA P", "jpeg": "L RGB CMYK", "webp": "RGB RGBA", "bmp": "L RGB P",
             "gif": "L P", "tiff": "L RGB RGBA CMYK P"}[kind].split()  # fmt: skip
    further: list[dict] = {
        "png": [{"exif": exif}],
        "jpeg": [{"progressive": True}, {"exif": exif}],
        "webp": [{"lossless": True}, {"exif": exif}],
        "tiff": [
            {"compression": name} for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")
        ],
        "bmp": [],
        "gif": [{"interlace": False}],
    }[kind]
    for mode in modes:
        for options in [{}, *further]:
            if options.get("compression") == "jpeg" and mode in ("RGBA", "P"):
                continue
            file = io.BytesIO()
            images[mode].save(file, kind, **options)
            files.append(file.getvalue())
    if kind in ("png", "webp", "tiff", "gif"):
        file = io.BytesIO()
        images["RGB"].save(file, kind, save_all=True, append_images=[images["RGB"].rotate(180)])
        files.append(file.getvalue())
    return files


def mutated(seed: int) -> bytes:
    """The mutated file of a seed."""
    rng = random.Random(seed)
    kind = sorted(MUTATIONS)[seed % len(MUTATIONS)]
    return MUTATIONS[kind](rng, rng.choice(seeds(kind)))


def forbid_programs(event: str, arguments: tuple) -> None:
    starts = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn")
    if event.startswith((*starts, "socket.connect")):
        raise SystemExit(f"{event} {arguments}")


def main(count: int) -> None:
    from kd_jax.data import open_source

    Image.init()
    sys.addaudithook(forbid_programs)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results = {"read": 0, "refused": 0, "unnamed": 0}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "a.png")
        for seed in range(count):
            path.write_bytes(mutated(seed))
            for options in ({}, {"resize": True}, {"in_patches": True}):
                faulthandler.dump_traceback_later(SECONDS, exit=True)
                channels = (1, 3, 4)[seed % 3]
                try:
                    source = open_source(f"folder:{name}", "train", 8, channels, **options)
                    for place in (0, -1):
                        assert source[place]["image"].shape == (8, 8, channels)
                    results["read"] += 1
                except ValueError as error:
                    one_line = str(error).isprintable() and "a.png" in str(error)
                    results["refused" if one_line else "unnamed"] += 1
                except BaseException:
                    print("seed", seed, options, file=sys.stderr)
                    raise
                finally:
                    faulthandler.cancel_dump_traceback_later()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024
    print(*results.values(), peak)


if __name__ == "__main__":
    main(int(sys.argv[1]))
