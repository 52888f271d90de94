"""Forward passes as the mains run them on a GPU, on small models, for the rehearsal.

Each function builds a model as its main does, on the CPU, and gives back what has to go to the
device and a function that runs there in a precision. Two images at a time; the structure is the
real one, only width and depth are small.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.gpu.fake_gpu import DEVICE, given_gradients
from util.training import optim
from util.training.precision import Precision

IMAGES, CLASSES = 2, 8
Run = Callable[[str], None]  # of a precision
Built = tuple[list[nn.Module], Run]


class Rehearsed(Precision):
    """Precision whose backward pass looks at the loss and gives every parameter a gradient of 0."""

    def __init__(self, amp: str, model: nn.Module):
        super().__init__(amp, DEVICE)
        self.model = model

    def backward(self, loss: Tensor) -> None:
        check({"loss": self.scaler.scale(loss)})
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)


def check(losses: dict[str, Tensor]) -> None:
    """Raise TypeError where a loss is not a single fp32 number on the device."""
    for name, loss in losses.items():
        if loss.dtype != torch.float32 or not loss.is_cuda or loss.ndim:
            raise TypeError(f"{name} is {loss.dtype} {tuple(loss.shape)} on {loss.device}")


def images(size: int, channels: int = 3, count: int = IMAGES) -> Tensor:
    """A batch as the loader gives it, on its way to the device."""
    imgs = torch.zeros(count, channels, size, size, dtype=torch.uint8).pin_memory()
    return imgs.to(DEVICE, non_blocking=True)


class GivenBatches:
    """One batch of an evaluation loader: images, and labels or label maps."""

    def __init__(self, imgs: Tensor, targets: Tensor):
        self.dataset, self.batch = range(len(imgs)), (torch.arange(len(imgs)), imgs, targets)

    def __len__(self) -> int:
        return 1

    def each_once(self) -> Iterator[tuple[Tensor, ...]]:
        yield tuple(part.pin_memory() for part in self.batch)

    def left_out(self) -> list[int]:
        return []


def shallow(model: nn.Module) -> nn.Module:
    """A ViT with its first block alone: the others are the same again."""
    for name in ("blocks", "decoder_blocks"):
        if hasattr(model, name):
            setattr(model, name, getattr(model, name)[:1])
    return model


# ------------------------------------------------------------------------------------ pre-training


def pretraining(*flags: str) -> Built:
    import main_pretrain
    from engine_pretrain import step_noise, train_step
    from util.data.transforms import Normalize
    from util.training.checkpoint import Progress
    from util.training.metrics import Meters

    args = main_pretrain.parse_args(list(flags))
    model = shallow(main_pretrain.build_model(args)).train()
    normalize = Normalize(args.mean, args.std)

    def run(amp: str) -> None:
        precision = Rehearsed(amp, model)
        optimizer = optim.adamw(optim.decay_groups(model, args.weight_decay), betas=args.betas)
        shape = model.masks.noise_shape(IMAGES * args.accum_iter)
        noise = step_noise(shape, args.accum_iter, 0, 0, DEVICE)
        size = model.grid[0] * model.patch_size
        batches = (normalize(images(size, args.in_chans)) for _ in range(args.accum_iter))
        with given_gradients():
            losses, _ = train_step(
                model, batches, noise, optimizer, precision, args.clip_grad, args.exact_accum
            )
        check(losses)
        Meters(Progress(), DEVICE).add(0, losses)

    return [model, normalize], run


def monitors(*flags: str) -> Built:
    """What a log step asks for besides, the k-NN monitor's search, and reconstructions."""
    import main_pretrain
    from util.evaluation.frozen.knn import nearest_neighbours
    from util.training.effective_rank import effective_rank, image_share

    args = main_pretrain.parse_args(list(flags))
    model = shallow(main_pretrain.build_model(args))

    def run(amp: str) -> None:
        imgs = images(8, 1).float()
        with Rehearsed(amp, model).autocast(), torch.no_grad():
            latent = model.encode(imgs)[:, 0]
        model.eval().reconstruct(imgs, None, "visible")
        model.mean_patch.settle()
        model.gate.settle()
        image_share(latent, IMAGES)
        effective_rank(latent)
        features = torch.zeros(30, latent.shape[1])
        labelled = features, torch.zeros(30, dtype=torch.long)
        nearest_neighbours(labelled, features, k=5, device=DEVICE, block=20)

    return [model], run


# -------------------------------------------------------------------------- classification, frozen


def finetuning(*flags: str, architecture: dict | None = None) -> Built:
    import main_finetune
    from encoders.load import build_encoder
    from engine_finetune import train_step
    from util.data.transforms import Normalize
    from util.training.drop_path import DropPaths

    args = main_finetune.parse_args(["--input_size", "32", "--in_chans", "3", *flags])
    if architecture:
        options = dict(drop_path=args.drop_path, architecture=architecture)
        model = build_encoder("beit", CLASSES, 32, 3, **options)
    else:
        model = shallow(main_finetune.build_model(args, None, CLASSES))
    normalize, drops = Normalize([0.5] * 3, [0.5] * 3), DropPaths(model, 0)
    augmentation = main_finetune.build_augmentation(args, normalize, CLASSES)

    def run(amp: str) -> None:
        precision, labels = Rehearsed(amp, model), torch.zeros(IMAGES, dtype=torch.long)
        optimizer = optim.adamw(optim.decay_groups(model, args.weight_decay))
        drops.draw(0, 0, IMAGES, DEVICE)
        targets = labels.pin_memory().to(DEVICE, non_blocking=True)
        batch = augmentation(images(32), targets, 0, 0)
        check(train_step(model.train(), [batch], 1, optimizer, precision, args.clip_grad))

    return [model, normalize], run


def classifying(name: str) -> Built:
    """The evaluation of a classifier, to the numbers that it tells."""
    from encoders.load import build_encoder
    from engine_finetune import evaluate
    from util.data.transforms import Normalize

    model = shallow(build_encoder(name, CLASSES, 32, 3))
    normalize = Normalize([0.5] * 3, [0.5] * 3)

    def run(amp: str) -> None:
        given = GivenBatches(torch.zeros(IMAGES, 3, 32, 32), torch.zeros(IMAGES).long())
        evaluate(model, given, normalize, Rehearsed(amp, model))

    return [model, normalize], run


def probing(*flags: str) -> Built:
    import main_linprobe
    from encoders.vit import LinearProbe
    from engine_finetune import train_step

    args = main_linprobe.parse_args(["--input_size", "32", "--in_chans", "3", *flags])
    encoder, dim = main_linprobe.build_frozen(args)
    shallow(encoder.vit)
    probe = LinearProbe(encoder, dim, CLASSES).train()
    kind = optim.LARS if args.optimizer == "lars" else torch.optim.SGD

    def run(amp: str) -> None:
        optimizer = kind(probe.head.parameters(), lr=0.1, momentum=0.9)
        labels = torch.zeros(IMAGES, dtype=torch.long, device=DEVICE)
        batch = images(32).float(), labels
        check(train_step(probe, [batch], 1, optimizer, Rehearsed(amp, probe)))

    return [probe], run


def frozen(name: str) -> Built:
    """Features of an encoder, of its blocks and of masked images, and an attentive probe."""
    from encoders.frozen import FrozenEncoder
    from encoders.load import build_encoder
    from util.data.transforms import Normalize
    from util.evaluation.frozen.attentive import EfficientProbe

    encoder = shallow(build_encoder(name, 0, 32, 3))
    model = FrozenEncoder(encoder, Normalize([0.5] * 3, [0.5] * 3))
    probe = EfficientProbe(encoder.num_features, CLASSES, 4)

    def run(amp: str) -> None:
        with Rehearsed(amp, model).autocast():
            model(images(32))
            tokens = model.patch_tokens(images(32)).float()
            ids = torch.zeros(IMAGES, 4, 3, dtype=torch.long, device=DEVICE)
            model.masked_views(images(32), ids)
        check({"loss": probe(tokens).mean()})

    return [model, probe], run


def regression() -> Built:
    """Logistic regressions on kept features, until their optimum is found."""
    from util.evaluation.frozen import logistic

    def run(amp: str) -> None:
        targets = torch.zeros(6, dtype=torch.long, device=DEVICE)
        features = torch.zeros(6, 8, device=DEVICE)
        logistic.fit(features, targets, CLASSES, [0.1, 1.0], max_iter=1).predict(features)

    return [], run


# ------------------------------------------------------------------------------------------- dense


def segmentation(*flags: str) -> Built:
    from engine_segmentation import train_step
    from util.training.drop_path import DropPaths

    args, model, normalize = _segmenter(*flags)
    drops = DropPaths(model, 0)

    def run(amp: str) -> None:
        optimizer = optim.adamw(optim.decay_groups(model, args.weight_decay))
        drops.draw(0, 0, IMAGES, DEVICE)
        maps = torch.zeros(IMAGES, 32, 32, dtype=torch.long, device=DEVICE)
        batch = normalize(images(32)), maps
        check(train_step(model.train(), [batch], 1, optimizer, Rehearsed(amp, model)))

    return [model, normalize], run


def segmenting(*flags: str) -> Built:
    """An image that is larger than a window, and its place in the confusion matrix."""
    import main_segmentation
    from util.evaluation.dense.iou import ConfusionMatrix

    args, model, normalize = _segmenter(*flags)

    def run(amp: str) -> None:
        precision = Rehearsed(amp, model.eval())
        predict = main_segmentation.build_predict(args, model, normalize, precision)
        with torch.no_grad():
            found = predict(images(48, count=1))
        target = torch.zeros(1, 48, 48, dtype=torch.long, device=DEVICE)
        ConfusionMatrix(CLASSES, DEVICE).add(found, target)

    return [model, normalize], run


def _segmenter(*flags: str) -> tuple[argparse.Namespace, nn.Module, nn.Module]:
    import main_segmentation
    from util.data.transforms import Normalize

    args = main_segmentation.parse_args(["--data_path", ".", *flags])
    args.input_size = [32, 32]
    model = main_segmentation.build_model(args, None, CLASSES)
    return args, model, Normalize(args.mean, args.std)


def detection(*flags: str) -> Built:
    from engine_detection import train_step
    from util.training.drop_path import DropPaths
    from util.training.roi_sampling import RoISampling

    args, model = _detector(*flags)
    drops, sampling = DropPaths(model, 0), RoISampling(model, 0)

    def run(amp: str) -> None:
        optimizer = optim.adamw(optim.decay_groups(model, args.weight_decay))
        drops.draw(0, 0, IMAGES, DEVICE)
        sampling.draw(0, 0, IMAGES)
        batch = _objects()
        check(train_step(model.train(), [batch], 1, optimizer, Rehearsed(amp, model)))

    return [model], run


def detecting(*flags: str) -> Built:
    _, model = _detector(*flags)

    def run(amp: str) -> None:
        with Rehearsed(amp, model.eval()).autocast(), torch.no_grad():
            model(_objects()[0])

    return [model], run


def _detector(*flags: str) -> tuple[argparse.Namespace, nn.Module]:
    import main_detection

    args = main_detection.parse_args(["--data_path", ".", *flags])
    args.input_size = [64, 64]
    return args, main_detection.build_model(args, None, CLASSES)


def _objects() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images with objects, on the device: with 40 boxes that are found as many as maps divide."""
    import main_detection

    def target() -> dict[str, Tensor]:
        labels, masks = torch.ones(24).long(), torch.zeros(24, 64, 64, dtype=torch.uint8)
        found = dict(boxes=torch.zeros(24, 4), labels=labels, masks=masks)
        return {name: value.pin_memory() for name, value in found.items()}

    pinned = [torch.zeros(3, 64, 64, dtype=torch.uint8).pin_memory() for _ in range(IMAGES)]
    return main_detection.to_device(pinned, [target() for _ in range(IMAGES)], DEVICE)
