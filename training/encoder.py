"""What a large encoder of images sees in each picture, for `training.train --encoder FILE.onnx`.

A small network that learns to see the same in a few thousand pictures knows more of what is in them than their labels tell
(Hinton et al. 2015; of embeddings instead of answers: Romero et al. 2015). The file is any ONNX export of the image tower of
OpenAI's CLIP (Radford et al. 2021): floats `(batch, 3, side, side)` in; out, an embedding `(batch, numbers)` and, if it gives them,
tokens `(batch, tokens, numbers)`, the first of which is not a place.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image
from rich.progress import track

from training.manifest import Row
from training.predict import read_image

MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)  # CLIP's, of RGB in [0, 1]
DEVIATION = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)
BATCH = 16


def embed(encoder: Path, rows: Sequence[Row], folder: Path, kept: Path, threads: int) -> npt.NDArray[np.float32]:
    """Return what the encoder sees in each row's whole picture, `(rows, numbers)`: its embedding and the mean of its places.

    kept: a folder where what this encoder saw stays, by path; a run that stops goes on from it. Raises `click.ClickException` for a
    file that takes no squares of one size.
    """
    with encoder.open("rb") as file:
        cache = kept / f"encoder-{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}.npz"
    known = _read_cache(cache)
    unseen = [row for row in rows if row.path not in known]
    session = _open(encoder, threads)
    taken = session.get_inputs()[0]
    side = taken.shape[-1]
    if taken.shape[1:] != [3, side, side] or not isinstance(side, int):
        raise click.ClickException(f"{encoder} takes {taken.shape}; it must take (batch, 3, side, side) of a fixed side")
    for start in track(range(0, len(unseen), BATCH), "What the encoder sees", disable=not unseen):
        batch = unseen[start : start + BATCH]
        pixels = np.stack([_prepare(read_image(row, folder, side), side) for row in batch])
        found = [seen[:, 1:].mean(axis=1) if seen.ndim == 3 else seen for seen in session.run(None, {taken.name: pixels})]
        known.update(zip((row.path for row in batch), np.concatenate(found, axis=1), strict=True))
        if start % (BATCH * 100) == 0 or start + BATCH >= len(unseen):
            _write_cache(cache, known)
    return np.stack([known[row.path] for row in rows])


def _open(encoder: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(encoder, options)


def _prepare(image: Image.Image, side: int) -> npt.NDArray[np.float32]:
    """The whole picture as the encoder takes it: squeezed as for our own model, filtered and scaled as for CLIP."""
    square = image.resize((side, side), Image.Resampling.BICUBIC)
    scaled = (np.asarray(square, dtype=np.float32) / np.float32(255) - MEAN) / DEVIATION
    return scaled.astype(np.float32).transpose(2, 0, 1)


def _read_cache(cache: Path) -> dict[str, npt.NDArray[np.float32]]:
    if not cache.is_file():
        return {}
    with np.load(cache) as file:
        return dict(zip(file["paths"].tolist(), file["seen"], strict=True))


def _write_cache(cache: Path, known: dict[str, npt.NDArray[np.float32]]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    part = cache.with_suffix(".part.npz")
    np.savez(part, paths=np.array(list(known)), seen=np.stack(list(known.values())))
    part.replace(cache)
