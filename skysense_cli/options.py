"""Options that several commands share, so that one thing has one name and one explanation everywhere.

An option that is not given is None: the config file or the default of the core's dataclass then holds.
"""

from pathlib import Path
from typing import Annotated

import typer

DATA = "Data"
READING = "Reading"
MODEL = "Model"
TRAINING = "Training"
AREA = "Area and grid"
OUTPUT = "Output"
MACHINE = "Machine"

# Data
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        "-d",
        metavar="PATH",
        help="A data set folder, or MODALITY=PATH of a raster, a glob or a folder of dates; repeat for several, "
        "e.g. --data s2=IMG_DATA/ --data hr=ortho.tif.",
        rich_help_panel=DATA,
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Polygons (any vector format) or a raster of class codes.", rich_help_panel=DATA),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column of the polygons that holds the class.", rich_help_panel=DATA),
]
Unlabelled = Annotated[
    str | None,
    typer.Option(
        metavar="ignore|CLASS",
        help="What lies outside every polygon: not scored at all, or a class of its own, e.g. background.",
        rich_help_panel=DATA,
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|LIST",
        help='Classes as "water,forest,urban", or a TOML file with a [classes] table from label values to classes: '
        'oak = "forest". The class ignore leaves a value out.',
        rich_help_panel=DATA,
    ),
]
SourceName = Annotated[
    str | None,
    typer.Option("--source", metavar="NAME", help="Layout of the data; found by itself.", rich_help_panel=DATA),
]
SplitBy = Annotated[
    str | None,
    typer.Option(
        metavar="RULE",
        help="How the area is split in space: blocks, west-east or north-south; of a table the column of places.",
        rich_help_panel=DATA,
    ),
]
Fold = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Test fold of data that have folds.", rich_help_panel=DATA)
]

# Reading
Bands = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAMES",
        help="What the bands of the files are, in their order: B02,B03,B04,B08 or red,green,blue,-; - leaves one out. "
        "MODALITY=NAMES where there are several modalities.",
        rich_help_panel=READING,
    ),
]
Nodata = Annotated[
    float | None,
    typer.Option(
        metavar="VALUE", help="Pixel value that means no data, beside what the file says.", rich_help_panel=READING
    ),
]
Rescale = Annotated[
    str | None,
    typer.Option(metavar="LO,HI", help="Map LO..HI to 0..255, for 16-bit RGB.", rich_help_panel=READING),
]
S2Offset = Annotated[
    float | None,
    typer.Option(
        "--s2-offset",
        metavar="VALUE",
        help="Added to reflectance: -1000 for a bare GeoTIFF of Sentinel-2 baseline 04.00 and later.",
        rich_help_panel=READING,
    ),
]
S1Unit = Annotated[
    str | None,
    typer.Option(
        "--s1-unit", metavar="linear|dB", help="What Sentinel-1 values are; linear becomes dB.", rich_help_panel=READING
    ),
]
CloudMask = Annotated[
    list[str] | None,
    typer.Option(
        "--cloud-mask",
        metavar="none|FILE",
        help="A raster, or a folder of dated ones, whose pixels other than 0 are left out; none keeps the clouds that "
        "a Sentinel-2 L2A product states. MODALITY=FILE where there are several modalities.",
        rich_help_panel=READING,
    ),
]
Date = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DATE",
        help="Acquisition date, 2024-06-30 or MODALITY=2024-06-30: once for all files or once per file.",
        rich_help_panel=READING,
    ),
]
DatePattern = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help=r"Where a path holds its date: 'img_(?P<date>\d{8})'.", rich_help_panel=READING),
]

# Area and grid
Bbox = Annotated[
    str | None,
    typer.Option(metavar="XMIN,YMIN,XMAX,YMAX", help="Only this rectangle.", rich_help_panel=AREA),
]
BboxCrs = Annotated[
    str | None,
    typer.Option(
        "--bbox-crs", metavar="CRS", help="CRS of --bbox, e.g. EPSG:4326; else the scene's.", rich_help_panel=AREA
    ),
]
Aoi = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Only inside these polygons.", rich_help_panel=AREA),
]

# Model and training
Model = Annotated[
    Path | None, typer.Option("--model", "-m", metavar="RUN", help="A run or model folder.", rich_help_panel=MODEL)
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Samples or windows at a time; of a training, per step.", rich_help_panel=MACHINE
    ),
]
Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=MACHINE)
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="auto, bf16, fp32; auto is bf16 where the hardware has it.", rich_help_panel=MACHINE
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Processes that read samples.", rich_help_panel=MACHINE)
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, metavar="N", help="Threads that read ahead.", rich_help_panel=MACHINE),
]

Window = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Side of a window in pixels of the reference modality; else the model's.",
        rich_help_panel=MODEL,
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(min=0, help="Pixels that neighbouring windows share; else 5/16 of the window.", rich_help_panel=MODEL),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory to stay below, e.g. 4G: chooses batch size and width of strips.",
        rich_help_panel=MACHINE,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Only say how many windows, how much memory, disk and time it takes.",
        rich_help_panel=MACHINE,
    ),
]

# Output
ClassMap = Annotated[str, typer.Argument(metavar="MAP", help="A class map that skysense predict wrote.")]
CreationOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--co",
        metavar="KEY=VALUE",
        help="Creation option of GDAL's COG driver, e.g. --co COMPRESS=ZSTD.",
        rich_help_panel=OUTPUT,
    ),
]
Unsure = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        metavar="P",
        help="Leave pixels whose highest probability is below P without a class (value 254 of the map).",
        rich_help_panel=OUTPUT,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is there; refused otherwise.", rich_help_panel=OUTPUT)
]
KeepGoing = Annotated[
    bool,
    typer.Option(
        "--keep-going",
        help="Leave out samples that cannot be read: all are read once before, noted in failures.jsonl, exit code 3.",
        rich_help_panel=DATA,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on stdout.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.", rich_help_panel=OUTPUT)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Every detail.", rich_help_panel=OUTPUT)]
Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Settings in TOML; options given here win over it.", rich_help_panel=OUTPUT),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any other setting by its name, e.g. --set data.block=2.",
        rich_help_panel=OUTPUT,
    ),
]
