"""The running mean of weights against its recursion, written out."""

import numpy as np
import torch
from torch import nn

from util.training.weight_mean import WeightMean


def test_it_is_the_recursion():
    model = nn.Linear(3, 2).double()
    mean, expected = WeightMean(model, 0.6), None
    for step in range(12):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        mean.update(step)
        decay = min(0.6, 1 - (1 + step) ** (-2 / 3))  # at step 0 none
        weights = model.weight.detach().numpy().copy()
        expected = weights if step == 0 else decay * expected + (1 - decay) * weights
        np.testing.assert_allclose(mean.model.weight.detach().numpy(), expected, rtol=1e-12)
    assert decay == 0.6 and mean.model is not model
    assert set(mean.objects()) == {"model", "trained"} and mean.objects()["trained"] is model


def test_without_a_mean_there_are_the_weights_alone():
    model = nn.Linear(3, 2)
    mean = WeightMean(model, 0.0)
    mean.update(0)
    assert mean.model is model and mean.objects() == {"model": model}
