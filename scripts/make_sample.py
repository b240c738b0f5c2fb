"""Make the sample in src/untaint/samples from CIFAR-10 as Parquet files.

    python scripts/make_sample.py CIFAR10_FOLDER

The folder holds train-*.parquet and test-*.parquet with the columns image and label, as Hugging
Face writes them. The same pictures are drawn every time. They are stored as lossless WebP, a
quarter smaller than PNG; every pixel is checked against the original.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from untaint import rng, run, samples
from untaint.writers import image_schema

PER_CLASS = {"train": 500, "test": 100}


def main() -> None:
    """Draw, encode and write both splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where CIFAR-10 lies")
    parser.add_argument("--out", type=Path, default=samples.path())
    given = parser.parse_args()
    for split, count in PER_CLASS.items():
        table = pa.concat_tables([pq.read_table(file) for file in sorted(given.folder.glob(f"{split}-*.parquet"))])
        path = given.out / f"{split}-00000-of-00001.parquet"
        with run.written(path) as file:
            pq.write_table(
                drawn(table, split, count), file, compression="zstd", compression_level=19, use_dictionary=False
            )
        sys.stdout.write(f"{path}: {path.stat().st_size:,} bytes\n")


def drawn(table: pa.Table, split: str, count: int) -> pa.Table:
    """Return ``count`` pictures of every class, in the order of the table given."""
    info = json.loads(table.schema.metadata[b"huggingface"])
    names = info["info"]["features"]["label"]["names"]
    labels = table["label"].to_numpy()
    rows = np.sort(
        np.concatenate(
            [
                rng.choose(0, f"sample/{split}/{name}", np.flatnonzero(labels == label), count)
                for label, name in enumerate(names)
            ]
        )
    )
    records = [
        {"image": {"bytes": lossless(picture["bytes"]), "path": f"{split}-{row:05d}.webp"}, "label": int(labels[row])}
        for row, picture in zip(rows, table["image"].take(rows).to_pylist(), strict=True)
    ]
    return pa.Table.from_pylist(records, schema=image_schema(names))


def lossless(encoded: bytes) -> bytes:
    """Return the picture as lossless WebP."""
    picture = Image.open(io.BytesIO(encoded)).convert("RGB")
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=True, quality=100, method=6)
    if not np.array_equal(np.asarray(Image.open(file).convert("RGB")), np.asarray(picture)):
        raise SystemExit("a picture changed in lossless encoding")
    return file.getvalue()


if __name__ == "__main__":
    main()
