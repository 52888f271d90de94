"""Random resized crops: torchvision's, and as TensorFlow's pipelines draw them."""

import math

import torch
from torchvision.transforms.v2 import RandomResizedCrop

__all__ = ["RandomResizedCrop", "TFRandomResizedCrop"]


class TFRandomResizedCrop(RandomResizedCrop):
    """A crop by one draw of area and aspect, cut to the image; torchvision draws up to ten."""

    def make_params(self, flat_inputs):
        height, width = flat_inputs[0].shape[1:]
        area = height * width * torch.empty(()).uniform_(*self.scale).item()
        log_ratio = [math.log(ratio) for ratio in self.ratio]
        aspect = math.exp(torch.empty(()).uniform_(*log_ratio).item())
        crop_width = min(max(round(math.sqrt(area * aspect)), 1), width)
        crop_height = min(max(round(math.sqrt(area / aspect)), 1), height)
        top = int(torch.randint(height - crop_height + 1, ()))
        left = int(torch.randint(width - crop_width + 1, ()))
        return dict(top=top, left=left, height=crop_height, width=crop_width)
