"""Data sets as a loader reads them: each image transformed by random draws of its own."""

from collections.abc import Callable

import torch
from torch.utils.data import Dataset

from util.data.datasets import Images
from util.errors import UsageError, first_line
from util.randomness import STREAM_SAMPLE, derive_seed, seed_libraries


class TransformedImages(Dataset):
    """Gives the loader item (epoch, index) -> (image [C, h, w], target, bad index or −1).

    The augmentation is a function of (seed, epoch, index), whichever worker does it. An image
    that cannot be read is replaced by another one, always the same.
    """

    max_attempts = 20

    def __init__(self, images: Images, transform: Callable, seed: int):
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int]) -> tuple:
        epoch, wanted = item
        index, bad = wanted, -1
        for attempt in range(self.max_attempts):
            try:
                image, target = self.read(index)
            except UsageError:
                raise
            except Exception:  # whatever a decoder makes of a damaged file
                bad = wanted if attempt == 0 else bad
                replacement = derive_seed(self.seed, STREAM_SAMPLE, wanted, attempt)
                index = replacement % len(self.images)
                continue
            seed_libraries(self.seed, STREAM_SAMPLE, epoch, wanted)
            try:
                return *self.transformed(image, target), bad
            except UsageError:
                raise
            except Exception as error:
                if hasattr(error, "add_note"):  # from Python 3.11 on
                    error.add_note(f"with the image {self.images.name(index)}")
                raise
        raise UsageError(
            f"{self.max_attempts} images in a row cannot be read, the first is "
            f"{self.problem(wanted)}: check --data_path and --in_chans"
        )

    def read(self, index: int) -> tuple[torch.Tensor, int]:
        """An image as it is, and its target; it raises what makes it unusable."""
        return self.images.read(index), int(self.images.targets[index])

    def transformed(self, image: torch.Tensor, target: int) -> tuple[torch.Tensor, int]:
        return self.transform(image), target

    def problem(self, index: int) -> str:
        """The name of an image that could not be read, and why."""
        try:
            self.read(index)
        except Exception as error:
            return f"{self.images.name(index)} ({first_line(error)})"
        return self.images.name(index)


class TransformedPairs(TransformedImages):
    """As `TransformedImages`, where the target (label map, boxes) is transformed with the image.

    Its images' `read` gives (image, target), and its transform takes and gives both.
    """

    def read(self, index: int) -> tuple:
        return self.images.read(index)

    def transformed(self, image, target) -> tuple:
        return self.transform(image, target)
