"""Look at pre-training while it goes on: the same images each time, as numbers and pictures.

Shapes: n images, N masks per image, h × w patches, C channels, D encoder width.
"""

import argparse
import logging
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from util.data.image_sets import Images
from util.data.images import of_one_type, to_tensor
from util.data.loader import evaluation_view
from util.data.transformed import TransformedImages
from util.evaluation.first_row import FirstRow
from util.evaluation.frozen.monitors import label_free
from util.evaluation.pictures import (
    heat_map,
    picture_sheet,
    principal_colours,
    reconstruction_sheet,
    to_image,
)
from util.evaluation.scatter import plane, scatter
from util.training.effective_rank import image_share
from util.training.run import Run

log = logging.getLogger(__name__)

IMAGES, SHOWN, NEIGHBOURS, BATCH = 512, 6, 5, 64  # looked at, shown, of each, at once
LARGEST = 224  # pixels of a picture's longer side
FOLDER = "pictures"


class Monitor:
    """Numbers and pictures of one set of images, every `args.monitor_every` epochs, on rank 0.

    They go to TensorBoard, run.jsonl and pictures/KIND-EPOCH.png, not to log.txt: since they are
    left out where they would cost more than `args.monitor_share` of the training time, they depend
    on the clock. Nothing of training depends on them: they draw from generators of their own.

    Args:
        images: of pre-training; IMAGES of them, in equal steps, are looked at.
        normalize: of images as a loader gives them.
    """

    def __init__(self, args: argparse.Namespace, images: Images, normalize: nn.Module):
        self.args, self.normalize, self.images = args, normalize, images
        count = min(IMAGES, len(images))
        self.ids = [i * len(images) // count for i in range(count)]
        self.pixels: Tensor | None = None  # [n, C, H, W], read when they are first needed
        self.began, self.spent = time.monotonic(), 0.0

    def __call__(self, model: nn.Module, run: Run) -> None:
        """Look at the model, where that is due and has not cost too much."""
        if not run.is_due(self.args.monitor_every):
            return
        trained = max(time.monotonic() - self.began - self.spent, 1e-9)
        share, allowed = self.spent / trained, self.args.monitor_share
        if share > allowed:
            log.info(
                "monitors are left out after epoch %d: they have taken %.1f %% of the training "
                "time, and --monitor_share allows %.1f %%",
                run.progress.epoch, 100 * share, 100 * allowed,
            )  # fmt: skip
            return
        started, was_training = time.monotonic(), model.training
        model.eval()
        try:
            self._look(model, run)
        except OSError as error:
            log.error("monitors could not be written (%s): training goes on", error)
        model.train(was_training)
        seconds = time.monotonic() - started
        self.spent += seconds
        log.info(
            "monitors: %.1f s, in all %.1f %% of the training time", seconds,
            100 * self.spent / trained,
        )  # fmt: skip

    @torch.no_grad()
    def _look(self, model: nn.Module, run: Run) -> None:
        device = next(model.parameters()).device
        self.pixels = self._read() if self.pixels is None else self.pixels
        tokens = self._by_batches(lambda imgs, _: model.encode(imgs), device)  # [n, 1 + L, D]
        views = self._by_batches(
            lambda imgs, noise: masked_views(model, imgs, noise), device, model
        )
        latents = tokens[:, 0]
        found = label_free(latents, views if views.shape[1] > 1 else None)
        found["image share"] = image_share(views.flatten(0, 1), views.shape[1])
        numbers = {f"monitor_{name.replace(' ', '_')}": value for name, value in found.items()}
        step = run.progress.total_steps
        run.journal.scalars(numbers, step)
        run.record.numbers(step, numbers)
        folder = os.path.join(self.args.output_dir, FOLDER)
        os.makedirs(folder, exist_ok=True)
        for kind, picture in self._pictures(model, run, latents, tokens[:SHOWN, 1:], device):
            picture.save(os.path.join(folder, f"{kind}-{run.progress.epoch:05d}.png"))
            run.journal.image(f"monitor/{kind}", to_tensor(picture), step)

    def _read(self) -> Tensor:
        view = evaluation_view(self.args)
        transformed = TransformedImages(self.images, view, self.args.seed)
        return torch.stack(of_one_type([transformed[0, index][0] for index in self.ids]))

    def _by_batches(
        self, act: Callable[[Tensor, Tensor | None], Tensor], device: torch.device,
        masked: nn.Module | None = None,
    ) -> Tensor:  # fmt: skip
        """What `act` makes of all images, normalised, on the CPU: [n, …].

        Args:
            masked: the model whose masks' noise is drawn, the same each time.
        """
        found = []
        for start in range(0, len(self.pixels), BATCH):
            imgs = self.normalize(self.pixels[start : start + BATCH].to(device))
            noise = self._noise(masked, len(imgs), start).to(device) if masked else None
            found.append(act(imgs, noise).float().cpu())
        return torch.cat(found)

    def _noise(self, model: nn.Module, count: int, start: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(self.args.seed + start)
        return torch.rand(model.masks.noise_shape(count), generator=generator)

    # ------------------------------------------------------------------------------ the pictures

    def _pictures(
        self, model: nn.Module, run: Run, latents: Tensor, tokens: Tensor, device: torch.device
    ) -> list[tuple[str, Image.Image]]:
        """Each picture by its kind."""
        imgs = self.normalize(self.pixels[:SHOWN].to(device))
        shown = [to_image(image) for image in self.normalize.inverse(imgs)]
        noise = self._noise(model, len(imgs)).to(device)
        caption = f"epoch {run.progress.epoch}"
        found = [("reconstructions", reconstructions(
            model, imgs, noise, self.normalize, self.args.visualize_stats, caption))]  # fmt: skip
        maps = class_token_maps(model, imgs)
        if maps is not None:
            found.append(("attention", _sheet(shown, attention_columns(maps, shown), caption)))
        grid = patch_grid(model, tokens.shape[1])
        colours = principal_colours(tokens.unflatten(1, grid))
        size = shown[0].size
        cells = [to_image(c).resize(size, Image.Resampling.NEAREST) for c in colours]
        found.append(("features", _sheet(shown, {"patch features": cells}, caption)))
        found.append(("neighbours", self._neighbours(latents, caption)))
        points, shares = plane(latents)
        labels = np.asarray([self.images.targets[index] for index in self.ids])
        axes = " and ".join(f"{100 * share:.0f} %" for share in shares)
        title = f"{caption}: latents, two components of {axes} of the variance"
        return [*found, ("latents", scatter(points, labels, self.images.classes, title))]

    def _neighbours(self, latents: Tensor, caption: str) -> Image.Image:
        """The shown images, each beside those whose latents are nearest by cosine."""
        unit = torch.nn.functional.normalize(latents, dim=1)
        similar = unit[:SHOWN] @ unit.T
        similar[torch.arange(len(similar)), torch.arange(len(similar))] = -2  # not itself
        nearest = similar.topk(min(NEIGHBOURS, len(unit) - 1), dim=1).indices
        columns = {"image": self._as_shown(range(len(similar)))}
        for rank in range(nearest.shape[1]):
            columns[f"neighbour {rank + 1}"] = self._as_shown(nearest[:, rank].tolist())
        return picture_sheet(columns, 96, f"{caption}: nearest latents", LARGEST)

    def _as_shown(self, places) -> list[Image.Image]:
        device = next(iter(self.normalize.buffers())).device
        imgs = self.pixels[list(places)].to(device)
        return [to_image(image) for image in self.normalize.inverse(self.normalize(imgs))]


def masked_views(model: nn.Module, imgs: Tensor, noise: Tensor) -> Tensor:
    """The latents of what N masks leave of images [B, C, H, W]: class tokens, or the means of all
    tokens where a model has none; [B, N, D]."""
    z, _ = model.forward_encoder(imgs, model.draw_masks(imgs, noise))  # [B·N, ·, D]
    latent = z[:, 0] if getattr(model, "num_prefix", 1) else z.mean(1)
    return latent.unflatten(0, (len(imgs), -1))


def class_token_maps(model: nn.Module, imgs: Tensor) -> Tensor | None:
    """What the class token attends to in the last block, [B, heads, h, w]; None without one."""
    if not getattr(model, "num_prefix", 1):
        return None
    with FirstRow() as watched:
        tokens = model.encode(imgs)
    if watched.weights is None or watched.weights.shape[2] != tokens.shape[1]:
        return None
    return watched.weights[..., 1:].unflatten(2, patch_grid(model, tokens.shape[1] - 1))


def patch_grid(model: nn.Module, num_patches: int) -> tuple[int, int]:
    """(h, w) of the encoder's patches, of which there may be fewer than the model predicts."""
    height, width = model.grid
    finer = round((num_patches / (height * width)) ** 0.5 * height)
    return finer, num_patches // finer


def reconstructions(
    model: nn.Module, imgs: Tensor, noise: Tensor, normalize: nn.Module, stats: str, caption: str
) -> Image.Image:
    """What each mask sees of normalised images [B, C, H, W] and what is predicted from it.

    Args:
        stats: `true` or `visible`; see `MaskedImageModel.reconstruct`.
    """
    is_masked, predicted = model.reconstruct(imgs, noise, stats)
    is_masked = is_masked.view(len(imgs), -1, *model.grid)
    for side in (2, 3):
        is_masked = is_masked.repeat_interleave(model.patch_size, side)  # [B, N, H, W]
    predicted = normalize.inverse(predicted).unflatten(0, (len(imgs), -1))
    return reconstruction_sheet(normalize.inverse(imgs), is_masked, predicted, caption)


def attention_columns(maps: Tensor, shown: list[Image.Image]) -> dict[str, list[Image.Image]]:
    """Maps [B, heads, h, w] as pictures: their mean, and each head's."""
    columns = {f"mean of {maps.shape[1]} heads": maps.mean(1)}
    columns |= {f"head {head + 1}": maps[:, head] for head in range(maps.shape[1])}
    return {
        name: [heat_map(one, picture.size) for one, picture in zip(values, shown, strict=True)]
        for name, values in columns.items()
    }


def _sheet(
    shown: list[Image.Image], columns: dict[str, list[Image.Image]], caption: str
) -> Image.Image:
    return picture_sheet({"image": shown} | columns, 96, caption, LARGEST)
