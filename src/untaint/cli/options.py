"""The options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from untaint.arguments import flag, given, group, option

Data = Positional[
    Annotated[str, given("A folder, table or archive of pictures, a hub id, or a name such as cifar10.", "DATA")]
]
Run = Positional[Annotated[Path, given("The folder of a scan.", "RUN")]]
FolderOfModel = Positional[Annotated[Path, given("A folder written by `untaint train` or `untaint scan`.", "MODEL")]]
Quiet = Annotated[bool, flag("No bars, no remarks.")]
Json = Annotated[bool, flag("Print one JSON object instead of text.", name="json")]
Check = Annotated[bool, flag("Leave with exit code 3 when something was set aside.")]
Seed = Annotated[int, option("Everything random depends on it and on the row alone.", "N")]
Reject = Annotated[
    str | None,
    option("The rule that decides, such as fraction:share=0.4 or gap; see `untaint list rules`.", "RULE"),
]
KeepPerClass = Annotated[
    float | None,
    option("Keep at least this share of each class, such as 0.2; with false-discovery, 0.05 if not given.", "SHARE"),
]
Marks = Annotated[Path | None, option("Pictures marked fine or poison in a report; obeyed.", "FILE")]
Model = Annotated[
    str | None,
    option("proxy, proxy-wide, or a name of torchvision or timm; NAME+eigenguard:k=50 has that layer.", "NAME"),
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"] | None, option("Of the arithmetic; auto takes the faster one.")
]
Size = Annotated[
    int | None,
    option("Pixels per side that the models look at; if not given, the pictures' shorter side, at most 64.", "PIXELS"),
]
Split = Annotated[str, option("Which part, where the data has parts.", "PART")]
ImageColumn = Annotated[str | None, option("Where a table holds the pictures; guessed if not given.", "COLUMN")]
LabelColumn = Annotated[str | None, option("Where a table holds the labels; guessed if not given.", "COLUMN")]
Augmentation = Literal["none", "crop", "crop-flip", "resized-crop"]


@dataclass(frozen=True)
class _Reading:
    """How DATA is read."""

    split: Split = "train"
    size: Size = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None


@dataclass(frozen=True)
class _Columns:
    """Where a table holds pictures and labels."""

    image_column: ImageColumn = None
    label_column: LabelColumn = None


Reading = Annotated[_Reading, group("DATA")]
Columns = Annotated[_Columns, group("")]
