"""Compose one scene of pasted objects: where each lies, what it hides, and the picture."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from util.data.scenes.grounds import Photographs, Plain, Textures
from util.data.scenes.stickers import SPLITS, Stickers, vivid_ink

# Of scenes: shares, and sides as shares of the scene's shorter one.
MAX_OBJECTS = 8
EMPTY_SHARE, CROWD_SHARE = 0.08, 0.12
OVER_BORDER_SHARE = 0.3  # of objects: those that may hang over the border
SMALLEST, LARGEST = 0.09, 0.81  # an object's longer side
CROWD_SIDE, MEMBER_SIDE = (0.3, 0.55), (0.09, 0.16)
MIN_VISIBLE_SHARE, MIN_VISIBLE = 0.15, 4  # of an object, and pixels: what shows less is left out
IN_TILE = 0.9  # of a tile's side: its object's longer one
WHITE = np.full(3, 255, dtype=np.float32)


@dataclass(frozen=True)
class World:
    """Everything that determines a scene, except its split and index."""

    stickers: Stickers
    grounds: Photographs | Textures | Plain
    seed: int
    height: int
    width: int
    one_class: str = ""  # the name of all objects; empty: each has its source's class
    tile: int = 0  # an object in each square of so many pixels; 0: scattered

    @property
    def classes(self) -> list[str]:
        return [self.one_class] if self.one_class else list(self.stickers.classes)

    def class_of(self, thing: "Thing") -> int:
        return 0 if self.one_class else thing.label


@dataclass
class Thing:
    """An object, or a crowd of one class: RGBA pixels [h, w, 4] that lie at (top, left)."""

    pixels: np.ndarray
    top: int
    left: int
    label: int
    is_crowd: bool
    sources: list[str]
    visible: np.ndarray | None = None  # [H, W] of the scene, True: seen and this object's


def compose(world: World, split: str, index: int) -> tuple[np.ndarray, list[Thing]]:
    """Scene `index` of a split: uint8 [H, W, 3], and what is seen in it, the farthest first."""
    rng = np.random.default_rng([world.seed, SPLITS.index(split), index])
    ground = world.grounds.draw(rng, split, world.height, world.width)
    if world.tile:
        things = _tiled(world, split, rng)
    else:
        things = _scattered(world, split, rng, ground)
    things = _see(things, world.height, world.width)
    for thing in things:
        _paint(ground, thing)
    return ground.round().astype(np.uint8), things


def _tiled(world: World, split: str, rng: np.random.Generator) -> list[Thing]:
    """An object in the middle of each tile, upright, all of one size and white."""
    things, tile = [], world.tile
    for top in range(0, world.height - tile + 1, tile):
        for left in range(0, world.width - tile + 1, tile):
            label = int(rng.integers(len(world.stickers.classes)))
            side = IN_TILE * tile
            sticker, source = _sticker(world, split, rng, label, side, WHITE, upright=True)
            place = top + (tile - sticker.height) // 2, left + (tile - sticker.width) // 2
            things.append(Thing(np.asarray(sticker), *place, label, False, [source]))
    return things


def _scattered(
    world: World, split: str, rng: np.random.Generator, ground: np.ndarray
) -> list[Thing]:
    """Up to MAX_OBJECTS of all sizes, and sometimes a crowd, the farthest first."""
    things = []
    if rng.random() >= EMPTY_SHARE:
        things = [_object(world, split, rng, ground) for _ in range(rng.integers(MAX_OBJECTS) + 1)]
        if rng.random() < CROWD_SHARE:
            things.append(_crowd(world, split, rng, ground))
    # Small ones mostly in front: behind large ones they would be hidden.
    nearness = [-max(thing.pixels.shape) * rng.uniform(0.5, 2) for thing in things]
    return [things[i] for i in np.argsort(nearness, kind="stable")]


def _object(world: World, split: str, rng: np.random.Generator, ground: np.ndarray) -> Thing:
    label = int(rng.integers(len(world.stickers.classes)))
    shorter = min(world.height, world.width)
    side = shorter * math.exp(rng.uniform(math.log(SMALLEST), math.log(LARGEST)))
    sticker, source = _sticker(world, split, rng, label, side, vivid_ink(rng, ground))
    return _place(world, rng, sticker, label, False, [source])


def _sticker(
    world: World, split: str, rng: np.random.Generator, label: int, side: float, ink: np.ndarray,
    upright: bool = False,
) -> tuple[Image.Image, str]:  # fmt: skip
    """An object of a class as RGBA, turned unless `upright`, its longer side `side` pixels; and
    its source."""
    stickers = world.stickers
    drawn = int(rng.choice(np.flatnonzero(stickers.targets[split] == label)))
    sticker = stickers.draw(split, drawn, ink)
    if stickers.may_flip and rng.random() < 0.5:
        sticker = sticker.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    # Most of a large one's pixels would be turned for nothing.
    sticker = sticker.reduce(max(1, int(max(sticker.size) / (2 * side))))
    if not upright:
        turn = rng.uniform(-stickers.max_turn, stickers.max_turn)
        sticker = sticker.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    box = Image.fromarray(np.asarray(sticker)[..., 3] >= 128).getbbox()
    sticker = sticker.crop(box) if box else sticker
    sizes = [max(1, round(s * side / max(sticker.size))) for s in sticker.size]
    return sticker.resize(sizes, Image.Resampling.LANCZOS), stickers.name(split, drawn)


def _crowd(world: World, split: str, rng: np.random.Generator, ground: np.ndarray) -> Thing:
    """Many small objects of one class in a heap, which nobody would outline one by one."""
    label = int(rng.integers(len(world.stickers.classes)))
    shorter = min(world.height, world.width)
    width = round(shorter * rng.uniform(*CROWD_SIDE))
    height = round(width * rng.uniform(0.5, 1))
    heap = Image.new("RGBA", (width, height))
    sources = []
    for depth in np.sort(rng.random(rng.integers(10, 21))):  # the lower, the nearer
        side, ink = shorter * rng.uniform(*MEMBER_SIDE), vivid_ink(rng, ground)
        member, source = _sticker(world, split, rng, label, min(side, height), ink)
        left = round(rng.uniform(0, width - member.width))
        heap.alpha_composite(member, (left, round(depth * (height - member.height))))
        sources.append(source)
    return _place(world, rng, heap, label, True, sources)


def _place(
    world: World, rng: np.random.Generator, sticker: Image.Image, label: int, is_crowd: bool,
    sources: list[str],
) -> Thing:  # fmt: skip
    """Put a sticker wholly inside the scene, or only with its centre inside."""
    place = []
    may_hang_over = rng.random() < OVER_BORDER_SHARE
    for side, room in ((sticker.height, world.height), (sticker.width, world.width)):
        low, high = (-side / 2, room - side / 2) if may_hang_over else (0, room - side)
        place.append(round(rng.uniform(low, high)))
    return Thing(np.asarray(sticker), *place, label, is_crowd, sources)


def _window(thing: Thing, height: int, width: int) -> tuple[tuple, tuple]:
    """Where a thing lies on the canvas, and the part of its pixels that does."""
    there, here = [], []
    for start, side, room in zip(
        (thing.top, thing.left), thing.pixels.shape, (height, width), strict=False
    ):
        first, last = max(start, 0), min(start + side, room)
        there.append(slice(first, last))
        here.append(slice(first - start, last - start))
    return tuple(there), tuple(here)


def _see(things: list[Thing], height: int, width: int) -> list[Thing]:
    """The things that are visible, with their visible masks, which are disjoint.

    From the nearest to the farthest, so that what is left out hides nothing.
    """
    seen = []
    covered = np.zeros((height, width), dtype=bool)
    for thing in reversed(things):
        is_solid = thing.pixels[..., 3] >= 128
        there, here = _window(thing, height, width)
        thing.visible = np.zeros((height, width), dtype=bool)
        thing.visible[there] = is_solid[here] & ~covered[there]
        if thing.visible.sum() >= max(MIN_VISIBLE, MIN_VISIBLE_SHARE * is_solid.sum()):
            covered |= thing.visible
            seen.append(thing)
    return seen[::-1]


def _paint(canvas: np.ndarray, thing: Thing) -> None:
    there, here = _window(thing, *canvas.shape[:2])
    pixels = thing.pixels[here].astype(np.float32)
    alpha = pixels[..., 3:] / 255
    canvas[there] += alpha * (pixels[..., :3] - canvas[there])
