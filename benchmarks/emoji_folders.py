"""Emoji of two vendors as image folders: to train on one's drawings and be tested on the other's.

npm pack emoji-datasource-google emoji-datasource-twitter
python benchmarks/emoji_folders.py --train emoji-datasource-google-16.0.0.tgz \\
    --val emoji-datasource-twitter-16.0.0.tgz --output_dir emoji

Makes train/CLASS/NAME.png and val/CLASS/NAME.png; a class is Unicode's category (9, without the
5 swatches of skin), a name the emoji's code points. Variants by skin are left out. Each drawing
lies on white, with a border that the evaluation's crop of 7/8 takes off again.
"""

import argparse
import io
import json
import os
import pathlib
import sys
import tarfile

from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from util.data.images import convert

NO_CLASS = "Component"
BORDER = 1 / 14  # of the drawing's side, on each side: 7/8 of the whole is the drawing


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--train", required=True, metavar="TGZ", help="npm's package emoji-datasource-VENDOR")
    add("--val", required=True, metavar="TGZ", help="that of another vendor")
    add("--output_dir", required=True, help="a new folder")
    return parser


def drawings(package: str) -> dict[str, Image.Image]:
    """`CLASS/NAME` and drawing on white of each emoji that the package has an image of."""
    with tarfile.open(package) as tar:
        members = {member.name: member for member in tar.getmembers()}
        listed = json.load(tar.extractfile(members["package/emoji.json"]))
        vendor = next(name.split("/")[2] for name in members if "/img/" in name)
        found = {}
        for emoji in listed:
            name = f"package/img/{vendor}/64/{emoji['image']}"
            if name in members and emoji["category"] != NO_CLASS:
                with Image.open(io.BytesIO(tar.extractfile(members[name]).read())) as image:
                    place = f"{emoji['category'].replace(' & ', '_')}/{emoji['image']}"
                    found[place] = on_white(convert(image, 3, name))
    return found


def on_white(drawing: Image.Image) -> Image.Image:
    """With the border around it."""
    border = round(BORDER * drawing.width)
    page = Image.new("RGB", [side + 2 * border for side in drawing.size], "white")
    page.paste(drawing, (border, border))
    return page


def main() -> None:
    args = get_args_parser().parse_args()
    if os.path.exists(args.output_dir):
        sys.exit(f"error: --output_dir {args.output_dir} is there: name a new folder")
    train, val = drawings(args.train), drawings(args.val)
    for split, images in (("train", train), ("val", val)):
        for place, image in images.items():
            path = os.path.join(args.output_dir, split, place)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            image.save(path)
    print(f"{len(train)} drawings for training, {len(val)} for tests")


if __name__ == "__main__":
    main()
