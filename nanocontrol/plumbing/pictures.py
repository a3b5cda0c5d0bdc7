"""Pictures as tensors and as files: reading, resizing, arranging in grids, writing."""

import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.files import first_bytes, read_text, write_atomically
from nanocontrol.plumbing.metadata import orientation_in, without_metadata

CAPTION = 16  # height in pixels
HEADER = 2**18  # bytes, that seldom is longer
# Pillow knows more formats, but to read some of them it starts other programs.
PICTURES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx"),
)
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM", "JPEG2000")
TURN = Image.Transpose
UPRIGHT = (  # the turn that undoes each EXIF orientation, 0 to 8
    *(None, None, TURN.FLIP_LEFT_RIGHT, TURN.ROTATE_180, TURN.FLIP_TOP_BOTTOM),
    *(TURN.TRANSPOSE, TURN.ROTATE_270, TURN.TRANSVERSE, TURN.ROTATE_90),
)
warnings.filterwarnings("ignore", module="PIL")  # of damaged metadata, which does not matter here


class PictureFile(Protocol):
    """A file, or a part of an archive. Its string names it in messages."""

    def read_bytes(self) -> bytes: ...


def open_picture(path: PictureFile) -> Image.Image:
    """Open a picture; only its header is decoded. Raises InputError if the file is no picture."""
    try:
        # Reading from a pipe would wait for ever.
        if os.path.exists(str(path)) and not os.path.isfile(str(path)):
            raise InputError(f"{path} is not a regular file; expected a picture")
        data = path.read_bytes()
        return opened(data)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected a picture") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise InputError(f"{path} has more than {most:.0f} megapixels; expected fewer") from None
    except UnidentifiedImageError:
        kind = format_of(data)
        known = (*FORMATS, "unknown")
        found = "cannot be read as a picture" if kind in known else f"is a file of type {kind}"
        raise InputError(f"{path} {found}; expected {', '.join(FORMATS)}") from None
    except InputError:
        raise
    except Exception as error:  # a damaged header can raise nearly anything
        raise InputError(f"{path} cannot be read ({error}); expected a picture") from None


def opened(data: bytes) -> Image.Image:
    pixels, exif = without_metadata(data)
    image = Image.open(BytesIO(pixels), formats=FORMATS)
    image.info |= {"exif": exif} if exif else {}
    image.info.pop("xmp", None)  # Pillow would take an orientation from it, later than the size
    return image


def format_of(data: bytes) -> str:
    """The format that a file's first bytes announce, of those that Pillow knows, else "unknown"."""
    Image.init()
    for name, (_, accepts) in Image.OPEN.items():
        with suppress(Exception):  # too few bytes
            if accepts and accepts(data[:16]) is True:
                return name
    return "unknown"


def picture_size(path: PictureFile) -> tuple[int, int]:
    """(width, height) of the upright picture. Of a JPEG file only the beginning is read."""
    image = None
    if isinstance(path, Path) and path.suffix.lower() in (".jpg", ".jpeg"):
        with suppress(Exception):  # its header is longer, or it is no JPEG file
            image = opened(first_bytes(path, HEADER))
    image = image or open_picture(path)
    return image.size[::-1] if orientation(image) > 4 else image.size


def orientation(image: Image.Image) -> int:
    """See `orientation_in`. (Pillow itself turns TIFF files.)"""
    return orientation_in(image.info.get("exif", b""))


def read_image(path: PictureFile, behind: str = "black") -> Image.Image:
    """The upright picture in RGB. behind: the colour that replaces transparent pixels."""
    image = open_picture(path)
    try:
        turn = UPRIGHT[orientation(image)]
        image.load()
        if image.mode[0] in "IF":
            image = Image.fromarray(eight_bits(path, image))
        if turn is not None:
            image = image.transpose(turn)
        if image.has_transparency_data:
            ground = Image.new("RGBA", image.size, behind)
            image = Image.alpha_composite(ground, image.convert("RGBA"))
        return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    except InputError:
        raise
    except Exception as error:  # in a broken file, a decoder finds nearly anything
        why = str(error) or type(error).__name__
        raise InputError(f"{path} is cut off or damaged ({why}); expected a picture") from None


def eight_bits(path: PictureFile, image: Image.Image) -> np.ndarray:
    """The bytes [H, W] of a grey picture with 16 bits per pixel or with floats from 0 to 1. (Pillow
    would clip both at 255.)"""
    values = np.asarray(image)
    if image.mode == "I" and isinstance(image, TiffImageFile):
        kinds = "8 or 16 bits without a sign, or floats from 0 to 1"
        raise InputError(f"{path} has pixels of 32 bits or with a sign; expected {kinds}")
    if image.mode != "F":
        tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
        bits = tags.get(258, (16,))[0]  # BitsPerSample
        return (values // 2 ** (bits - 8)).clip(0, 255).astype(np.uint8)
    if not (values.min() >= 0 and values.max() <= 1):  # NaN is neither
        values_found = f"values from {values.min():g} to {values.max():g}"
        raise InputError(f"{path} has floats with {values_found}; expected 0 to 1")
    return (values * 255).round().astype(np.uint8)


def is_picture(file: Path) -> bool:
    """Whether it is a file with a picture's ending."""
    return file.suffix.lower() in PICTURES and os.path.isfile(file)


def pictures_in(folder: Path) -> list[Path]:
    """The folder's pictures, by name. Hidden files are none: macOS leaves ._cat.jpg."""
    try:
        files = sorted(file for file in folder.iterdir() if is_picture(file))
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); expected a folder") from None
    return [file for file in files if not file.name.startswith(".")]


def filter_for(old: tuple[int, int], new: tuple[int, int]) -> Image.Resampling:
    """The best filter for resizing: box averages to shrink, Lanczos interpolation to enlarge."""
    smaller = new[0] * new[1] < old[0] * old[1]
    return Image.Resampling.BOX if smaller else Image.Resampling.LANCZOS


def as_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as a tensor [3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def read_picture(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """A picture file as [3, H, W], RGB in [0, 1], resized if a size (width, height) is given.
    Transparent pixels become black, which means "nothing" in hints and masks."""
    image = read_image(path)
    if size and size != image.size:
        image = image.resize(size, filter_for(image.size, size))
    return as_tensor(image)


def cut_out(image: Image.Image, size: tuple[int, int], place: tuple[float, float]) -> Image.Image:
    """The largest part with the aspect ratio of `size` (width, height), resized to `size`. place:
    the part's position, right and down, as fractions of the free room; 0.5, 0.5 is the middle."""
    if image.size == size:
        return image
    part = min(image.width / size[0], image.height / size[1])
    method = filter_for((round(part * size[0]), round(part * size[1])), size)
    return ImageOps.fit(image, size, method, centering=place)


def size_to_sample(
    size: tuple[int, int], short_side: int, width: int | None, height: int | None
) -> tuple[int, int]:
    """The size (width, height) of a picture that is generated from one of this size; multiples of
    64. As in the original, the aspect ratio is nearly kept and the short side becomes `short_side`,
    unless a width or a height is given."""
    scale = width / size[0] if width else height / size[1] if height else short_side / min(size)
    own = [max(64, round(side * scale / 64) * 64) for side in size]
    return width or own[0], height or own[1]


def read_caption(path: Path) -> str:
    """The text of a caption file, as captioners write them, in one line. It may be empty."""
    return " ".join(read_text(path).split())


def to_pixels(image: Tensor) -> np.ndarray:
    """[3, H, W] in [-1, 1] -> [H, W, 3], bytes; truncated, not rounded, as in the original."""
    pixels = (image.float().cpu() * 127.5 + 127.5).clamp(0, 255)
    return pixels.to(torch.uint8).permute(1, 2, 0).numpy()


def to_bytes(picture: Tensor) -> np.ndarray:
    """[3, H, W] in [0, 1], as read from a file -> the file's own bytes, [H, W, 3]."""
    return (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def grid(rows: Sequence[Iterable[Tensor]]) -> Image.Image:
    """An image of rows of pictures, each [3, H, W] in [-1, 1], without gaps."""
    strips = [np.concatenate([to_pixels(image) for image in row], axis=1) for row in rows]
    return Image.fromarray(np.concatenate(strips, axis=0))


def columns_with_titles(strips: list[np.ndarray], titles: list[str], width: int) -> Image.Image:
    """Arrange rows of pictures [H, n * width, 3] as columns, each with a title above."""
    columns = [np.concatenate(np.split(s, s.shape[1] // width, axis=1), axis=0) for s in strips]
    pixels = np.pad(np.concatenate(columns, axis=1), ((16, 0), (0, 0), (0, 0)), constant_values=255)
    image = Image.fromarray(pixels)
    for i, title in enumerate(titles):
        ImageDraw.Draw(image).text((i * width + width // 2, 2), title, fill="black", anchor="ma")
    return image


def with_caption(image: Image.Image, text: str) -> Image.Image:
    """The picture with a line of text below it. The line is CAPTION pixels high, and the letters
    are small enough for the text to fit."""
    whole = Image.new("RGB", (image.width, image.height + CAPTION), "white")
    whole.paste(image)
    draw = ImageDraw.Draw(whole)
    fitting = 10 * (image.width - 8) / draw.textlength(text, font_size=10)
    draw.text((4, image.height + 2), text, fill="black", font_size=min(10, fitting))
    return whole


def save_picture(image: Image.Image, path: Path, text: PngInfo | None = None) -> None:
    write_atomically(path, lambda temporary: image.save(temporary, "PNG", pnginfo=text))
