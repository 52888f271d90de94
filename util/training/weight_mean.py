"""The running mean of a model's weights (EMA), which is tested and saved in their place."""

from torch import nn

from util.training.checkpoint import TRAINED, Stateful


class WeightMean:
    """The running mean of a model's weights, or with `decay` 0 the weights themselves.

    The mean forgets at the rate `decay`, at first faster: after step t at 1 − t^(−2/3) at most, so
    that a short run forgets how it began. The rate follows from the step alone, as a run needs it
    that can stop anywhere.

    Args:
        model: what is trained. decay: 0: no mean.
    """

    def __init__(self, model: nn.Module, decay: float):
        from timm.utils import ModelEmaV3  # here: it takes seconds

        self.trained = model
        self.mean = ModelEmaV3(model, decay, use_warmup=True) if decay else None

    @property
    def model(self) -> nn.Module:
        """What is tested, and what others find in a checkpoint as its `model`."""
        return self.mean.module if self.mean else self.trained

    def objects(self) -> dict[str, Stateful]:
        """What a checkpoint saves of the weights, by its key in the file."""
        own = {TRAINED: self.trained} if self.mean else {}
        return {"model": self.model} | own

    def update(self, step: int) -> None:
        """Take in the weights after a step, numbered from 0; the first ones replace the mean."""
        if self.mean:
            self.mean.update(self.trained, step + 1)
