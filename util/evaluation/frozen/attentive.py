"""An attentive probe of frozen patch tokens: *efficient probing* [Psomas et al., ICLR 2026].

Its protocol: 32 queries, 90 epochs, 10 of them warm-up, LARS without weight decay, base rate
0.1 per 256, batches of 4096. The last epoch's probe counts here; its authors' tables have the best
on the validation set. B images, L patches, D channels, M queries, H probes.
"""

import argparse
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from util.data.datasets import Images, Subset
from util.data.loader import Batches, open_batches
from util.data.transformed import TransformedImages
from util.data.transforms import CropAndFlip
from util.errors import EXIT_DATA, RunError, UsageError
from util.evaluation.frozen.features import FeatureStore, checksum
from util.evaluation.frozen.probes import Probe, TestSet, held_out_tenth
from util.progress import ProgressLine
from util.randomness import STREAM_INIT, seed_libraries
from util.training import optim
from util.weights.checkpoint_file import read_checkpoint, write_atomically

log = logging.getLogger(__name__)

TOKENS = "tokens"
DISK_SHARE = 0.5  # of what is free, that kept tokens may take
MIN_STEPS = 16  # per epoch: smaller sets have smaller batches (our choice)


class EfficientProbe(nn.Module):
    """Learned queries that pool patch tokens, then MAE's linear probe.

    y_m = V_m Σ_l softmax_l(u_m · x_l / √D) x_l: the queries u attend to the tokens as they are, and
    each gives D / M channels of the pooled [y_1 … y_M]. V_m follows the sum over tokens here: the
    same result as from values of every token, for ViT-B with a twelfth of the work.

    Raises:
        UsageError: D that M does not divide.
    """

    def __init__(self, dim: int, num_classes: int, num_queries: int = 32):
        super().__init__()
        check_queries(dim, num_queries)
        self.queries = nn.Parameter(0.02 * torch.randn(num_queries, dim))
        values = torch.empty(dim, dim)
        nn.init.kaiming_uniform_(values, a=math.sqrt(5))
        self.values = nn.Parameter(values)  # [M · D/M, D]
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, D] -> logits [B, C]."""
        return self.head(self.norm(self.pool(tokens)))

    def pool(self, tokens: Tensor) -> Tensor:
        """[B, L, D] -> [B, D]."""
        pooled = self.attention(tokens) @ tokens  # [B, M, D]
        values = self.values.unflatten(0, (len(self.queries), -1))  # [M, D/M, D]
        return torch.einsum("bmd,med->bme", pooled, values).flatten(1)

    def attention(self, tokens: Tensor) -> Tensor:
        """[B, L, D] -> the share of each token in each query, [B, M, L]."""
        scores = self.queries @ tokens.transpose(1, 2) / math.sqrt(tokens.shape[2])
        return scores.softmax(2)


def check_queries(dim: int, num_queries: int) -> None:
    """Raise UsageError where the number of queries does not divide the channels."""
    if dim % num_queries:
        raise UsageError(
            f"--attentive_queries {num_queries} does not divide the encoder's width {dim}: "
            f"give {math.gcd(dim, num_queries)}, for instance"
        )


class KeptTokens(Dataset):
    """Patch tokens on disk as the loader reads them: (epoch, index) -> (tokens [L, D], label, −1).

    Args:
        store: has the tokens under the name TOKENS. ids: of the images that are read, [n].
    """

    def __init__(self, store: FeatureStore, ids: np.ndarray):
        self.images, self.tokens, self.ids = store.images, store.rows(TOKENS), ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int, int]:
        index = int(self.ids[item[1]])
        return self.tokens[index], int(self.images.targets[index]), -1


def are_kept(tokens: str, folders: Mapping[str, int]) -> bool:
    """Whether the patch tokens of all encoders, or of none, are to be kept on the disk.

    By --tokens; with `auto`, where they take no more than DISK_SHARE of the free space.

    Args:
        folders: of each encoder's tokens, and how many numbers they have, in half precision.
    """
    missing = {folder: count for folder, count in folders.items() if not os.path.isdir(folder)}
    if tokens != "auto" or not missing:
        return tokens != "images"
    place = os.path.abspath(next(iter(missing)))
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    needed, free = 2 * sum(missing.values()), shutil.disk_usage(place).free
    kept = needed <= DISK_SHARE * free
    log.info(
        "the encoders' patch tokens take %.1f GB of %.1f GB that are free: %s",
        needed / 1e9, free / 1e9, "kept" if kept else "from the images each epoch",
    )  # fmt: skip
    return kept


def evaluate(
    encoder, tests: Mapping[str, TestSet], args: argparse.Namespace, device: torch.device
) -> Probe:
    """Train the probe on an encoder's training images, and test it on all test sets.

    Args:
        encoder: has `encode_tokens(images [B, C, H, W]) -> [B, L, D]`, the stores `train`,
            `tests` and `tokens` (None: not kept), `width` (D), `name` and `view`.
    """
    images, ids, targets = encoder.train.images, encoder.train.ids(), encoder.train.targets()
    size = min(args.attentive_batch, 2 ** int(math.log2(max(len(ids) / MIN_STEPS, 2))))
    rates = args.attentive_blr
    trainer = _Trainer(encoder, args, size, device)
    best = rates[0]
    if len(rates) > 1:
        is_held = held_out_tenth(targets)
        probes = trainer.train(rates, ids[~is_held.numpy()])
        held = Subset(images, ids[is_held.numpy()])
        right = [(p == targets[is_held]).sum().item() for p in trainer.predict(probes, held)]
        best = rates[right.index(max(right))]
    probes = trainer.train((best,), ids)
    found = Probe(f"{trainer.words}, base rate {best:g}")
    for name, test in tests.items():
        store = encoder.tests.get(name, encoder.tests["val"])  # ReaL's are those of val
        shown = Subset(store.images, store.ids())
        found.right[name] = test.right(trainer.predict(probes, shown)[0])
    return found


class _Trainer:
    """Trains probes of one encoder; those of several learning rates see the same batches.

    Args:
        size: images a step.
    """

    def __init__(self, encoder, args: argparse.Namespace, size: int, device: torch.device):
        self.encoder, self.args, self.size, self.device = encoder, args, size, device
        seen = "kept tokens without augmentation"
        if encoder.tokens is None:
            flip = ", flipped" if args.flip else ""
            seen = f"random crops of at least {args.min_crop:g}{flip}"
        self.words = (
            f"{args.attentive_queries} queries, {args.attentive_epochs} epochs of LARS, batches of "
            f"{size}, {seen}"
        )

    def train(self, rates: Sequence[float], ids: np.ndarray) -> nn.ModuleList:
        """Train a probe for each base rate, on the training images `ids`."""
        args, encoder, images = self.args, self.encoder, self.encoder.train.images
        if encoder.tokens is None:
            crop = CropAndFlip(encoder.view.size, args.min_crop, args.flip, tf_style=True)
            data: Dataset = TransformedImages(Subset(images, ids), crop, args.seed)
        else:
            data = KeptTokens(encoder.tokens, ids)
        probes = nn.ModuleList()
        for _ in rates:
            seed_libraries(args.seed, STREAM_INIT)  # all start from the same weights
            num_classes = len(images.classes)
            probes.append(EfficientProbe(encoder.width, num_classes, args.attentive_queries))
        made_of = [encoder.train.digest(), encoder.train.made_of()]
        about = [self.words, list(rates), args.seed, *made_of, len(ids)]
        path = f"{encoder.train.folder}-attentive-{checksum(about)[:8]}.pth"
        rates = [optim.absolute_lr(None, rate, self.size) for rate in rates]
        batches = self._batches(data, self.size, training=True)
        label = f"{encoder.name}, attentive"
        train(
            probes.to(self.device), rates, batches, self._encode, args.attentive_epochs, path, label
        )
        return probes

    @torch.no_grad()
    def predict(self, probes: nn.ModuleList, images: Images) -> Tensor:
        """The class of each image, by probe: [H, n].

        Raises:
            RunError: an image that cannot be read, as it could when features were computed.
        """
        data = TransformedImages(images, self.encoder.view, self.args.seed)
        batches, parts = self._batches(data, self.args.batch_size, training=False), []
        for _, imgs, _ in batches.each_once():
            tokens = self.encoder.encode_tokens(imgs.to(self.device))
            parts.append(torch.stack([probe(tokens).argmax(1) for probe in probes]))
        for index in batches.left_out():
            raise RunError(
                f"{data.problem(index)}: it could be read when its features were computed, and "
                "cannot now: start again",
                EXIT_DATA,
            )
        return torch.cat(parts, 1).cpu()

    def _encode(self, inputs: Tensor) -> Tensor:
        """What the batches hold -> tokens [B, L, D]."""
        inputs = inputs.to(self.device, non_blocking=True)
        if self.encoder.tokens is not None:
            return inputs.float()
        parts = inputs.split(self.args.batch_size)
        return torch.cat([self.encoder.encode_tokens(part) for part in parts])

    def _batches(self, data: Dataset, size: int, training: bool) -> Batches:
        return open_batches(self.args, data, training, self.device, batch_size=size, alone=True)


def train(
    probes: nn.ModuleList, rates: Sequence[float], batches: Batches,
    encode: Callable[[Tensor], Tensor], epochs: int, path: str, label: str = "",
) -> None:  # fmt: skip
    """Train probes side by side, each at its own learning rate, to the last epoch.

    Args:
        rates: absolute, one for each probe. encode: what the batches hold -> tokens [B, L, D].
        path: where the state is saved after each epoch, and from which this goes on.
    """
    optimizers = [optim.LARS(probe.parameters()) for probe in probes]
    start = _resume(path, probes, optimizers)
    line = ProgressLine(label, epochs * len(batches), start * len(batches))
    schedule = argparse.Namespace(
        lr=1.0, min_lr=0.0, warmup_lr=0.0, epochs=epochs, warmup_epochs=epochs / 9,
        lr_schedule="cosine",
    )  # fmt: skip
    probes.train()
    for epoch in range(start, epochs):
        for number, (inputs, targets) in enumerate(batches.epoch(epoch)):
            tokens = encode(inputs)
            share = optim.scheduled_lr(epoch + number / len(batches), schedule)
            for probe, optimizer, rate in zip(probes, optimizers, rates, strict=True):
                optim.set_lr(optimizer, rate * share)
                F.cross_entropy(probe(tokens), targets.to(tokens.device)).backward()
                optimizer.step()
                optimizer.zero_grad()
            line.update(epoch * len(batches) + number + 1)
        states = [optimizer.state_dict() for optimizer in optimizers]
        write_atomically(path, dict(epoch=epoch + 1, probes=probes.state_dict(), optimizers=states))
    line.close()
    probes.eval()


def _resume(path: str, probes: nn.ModuleList, optimizers: list[torch.optim.Optimizer]) -> int:
    """Load the state in `path`, if there is one, and return the number of epochs done."""
    if not os.path.exists(path):
        return 0
    state = read_checkpoint(path)
    probes.load_state_dict(state["probes"])
    for optimizer, its_state in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(its_state)
    return state["epoch"]
