"""A GPU that is not there: tensors of the device `cuda` that have a shape, a dtype and no values.

Under `FakeGPU` a forward pass fails where it would fail on a GPU: a tensor that was left on the
CPU, dtypes that do not go together. What would make the host wait for the device goes on with a
made-up answer and is written down.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)
# Operations that wait, whatever they are given; the size of what they give is not known before.
SIZED_BY_VALUES = {
    "nonzero": "looks for what is true", "masked_select": "picks by a mask",
    "bincount": "counts values", "repeat_interleave": "repeats by values",
    "nms": "suppresses boxes",
}  # fmt: skip
OTHERS_THAT_WAIT = {"_linalg_check_errors": "checks a decomposition", "equal": "compares"}


class Wait(NamedTuple):
    """Something for which the host waits: what it does, and the function that does it."""

    what: str
    where: str


class FakeGPU(TorchDispatchMode):
    """Everything below `with FakeGPU() as gpu:` is computed without values.

    Models are built before, as they are, and brought here by `take`. `waits` lists what would wait
    for the device, each kind and place once, in the order of their first time.

    Args:
        truth: what a condition that is read turns out to be.
        one_in: a mask is true in one of so many places. boxes: kept of those that overlap.
    """

    def __init__(self, truth: bool = True, one_in: int = 2, boxes: int = 40) -> None:
        super().__init__()
        self.fake, self.truth, self.one_in, self.boxes = FakeTensorMode(), truth, one_in, boxes
        self.waits: list[Wait] = []
        self.outside = contextlib.ExitStack()

    def __enter__(self) -> "FakeGPU":
        here = self.outside.enter_context
        unavailable = "torch.cuda.amp.common.amp_definitely_not_available"
        here(mock.patch(unavailable, lambda: False))
        here(mock.patch("torch.cuda.is_bf16_supported", lambda *_, **__: True))
        here(mock.patch("torch.cuda.default_generators", (torch.Generator(),)))
        here(mock.patch.object(Tensor, "pin_memory", _pin))
        here(self.fake)
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self.outside.__exit__(*error)

    def take(self, module: nn.Module) -> nn.Module:
        """The module, changed in place, with fakes of its parameters and buffers on the device.

        Tensors that are neither stay on the CPU, as with `module.to`.
        """
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(_fake(parameter), parameter.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = _fake(buffer)
        return module

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func._schema.name.split("::")[1]
        if name == "_local_scalar_dense":
            return self._number(args[0])
        if name in ("_to_copy", "copy_"):
            self._note_copy(name, args, kwargs)
        elif name in ("index", "index_put", "index_put_"):
            args = self._with_known_indices(name, args)
        elif name in SIZED_BY_VALUES:
            found = self._of_some_size(name, args, kwargs)
            if found is not None:
                return found
        elif name in OTHERS_THAT_WAIT and args[0].is_cuda:
            self._note(OTHERS_THAT_WAIT[name])
            return True if name == "equal" else None
        return func(*args, **kwargs)

    def _number(self, tensor: Tensor) -> float | int | bool:
        """What is read of a tensor: a condition's truth, else 1, which is in range anywhere."""
        if tensor.is_cuda:
            self._note("reads a number")
        if tensor.dtype == torch.bool:
            return self.truth
        return 1.0 if tensor.is_floating_point() else 1

    def _note_copy(self, name: str, args: tuple, kwargs: dict) -> None:
        source = args[1] if name == "copy_" else args[0]
        target = args[0].device if name == "copy_" else kwargs.get("device") or source.device
        target, is_async = torch.device(target), kwargs.get("non_blocking", False)
        is_async = is_async or (name == "copy_" and len(args) > 2 and args[2])
        if not source.numel():
            return
        if source.is_cuda and target.type == "cpu":
            self._note("copies to the CPU")
        is_pinned = is_async and getattr(source, "is_pinned_here", False)
        if not source.is_cuda and target.type == "cuda" and not is_pinned:
            self._note("copies from memory that is not pinned")

    def _with_known_indices(self, name: str, args: tuple) -> tuple:
        """The arguments of an operation by indices, with numbers in place of a mask."""
        x, indices, *rest = args
        given = [i for i in indices if i is not None]
        masks = [i for i in given if i.dtype in (torch.bool, torch.uint8)]
        is_fill = masks and name != "index" and rest[0].numel() == 1 and not rest[0].is_cuda
        put = [] if name == "index" or is_fill else rest[:1]  # a number is a tensor of the CPU here
        if x.is_cuda and not all(tensor.is_cuda for tensor in given + put):
            self._note("copies from memory that is not pinned")
        if not masks:
            return args
        if x.is_cuda and not is_fill:
            self._note("picks by a mask")
        known: list[Tensor | None] = []
        for index in indices:
            is_mask = index is not None and index.dtype in (torch.bool, torch.uint8)
            known += [self._ids(index)] * index.ndim if is_mask else [index]
        if name != "index" and rest[0].ndim and rest[0].shape[0] != 1:
            rest = [rest[0].new_empty(()).expand(1), *rest[1:]]
        return (x, known, *rest)

    def _ids(self, mask: Tensor) -> Tensor:
        return mask.new_zeros(max(1, mask.numel() // self.one_in), dtype=torch.long)

    def _of_some_size(self, name: str, args: tuple, kwargs: dict) -> Tensor | None:
        """A result of a size that could be; None: there is nothing to make up."""
        x = args[0]
        if name == "repeat_interleave" and kwargs.get("output_size") is not None:
            return None
        if x.is_cuda:
            self._note(SIZED_BY_VALUES[name])
        some = max(1, x.numel() // self.one_in)
        if name == "nonzero":
            return x.new_empty((some, x.ndim), dtype=torch.long)
        if name == "bincount":
            return x.new_empty(args[2] if len(args) > 2 else kwargs.get("minlength") or some)
        if name == "nms":
            return x.new_empty(min(len(x), self.boxes), dtype=torch.long)
        if name == "masked_select":
            return x.new_empty(some)
        return None

    def _note(self, what: str) -> None:
        wait = Wait(what, _caller())
        if wait not in self.waits:
            self.waits.append(wait)


def _fake(like: Tensor) -> Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=DEVICE)


def _pin(tensor: Tensor, *_) -> Tensor:
    pinned = tensor.clone()
    pinned.is_pinned_here = True
    return pinned


def _caller() -> str:
    """The innermost function outside torch and this file, as `heads/rois.py forward`."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename.replace("\\", "/")
        library = path.partition("/site-packages/")[2]
        is_own = path == __file__.replace("\\", "/") or frame.f_code.co_name.startswith("<")
        is_inner = library.startswith(("torch/", "torchvision/_")) or "/unittest/" in path
        if not is_own and not is_inner:
            return f"{library or _in_project(path)} {frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


def _in_project(path: str) -> str:
    root = __file__.replace("\\", "/").removesuffix("benchmarks/gpu/fake_gpu.py")
    return path.removeprefix(root)


@contextlib.contextmanager
def given_gradients() -> Iterator[None]:
    """Under it gradients with respect to an input are zero: autograd does not run on fakes."""
    name = "util.training.exact_accumulation._gradient"
    with mock.patch(name, lambda loss, leaf: torch.zeros_like(leaf)):
        yield
