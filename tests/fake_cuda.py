"""A GPU that computes shapes, types and devices, but no values. It finds CPU tensors in steps on any machine.

    with fake_cuda() as gpu:
        distiller, batch = gpu.move((distiller, batch))
        with gpu.step("KD"):
            distiller(**batch, epoch=1)

`check_distiller` and `check_model` do this in one call.

Tensors of the GPU are PyTorch's fake tensors. Tensors of the CPU stay real, so a loader can draw its random numbers.
"""

from __future__ import annotations

import traceback
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from mdistiller.distillers import Distiller
from mdistiller.engine.evaluation.evaluate import count_correct
from tests.conftest import REPO

CPU = torch.device("cpu")
COPIES = ("aten::_to_copy", "aten::copy_")
Table = Dict[str, Any]  # a module's parameters, or its buffers


class FaultyStep(AssertionError):
    """A step failed, used a CPU tensor, or waited for the device."""


class FakeDevice(TorchDispatchMode):
    """Runs operations of one device with fake tensors, and all others as usual. See `fake_cuda`.

    Args:
        name: `cuda:0` or `meta`.

    Attributes:
        device: of that name.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.device = torch.device(name)
        self.fakes: Any = None  # the mode that computes with fake tensors
        self._devices: Dict[int, torch.device] = {}  # of generators, by their address
        self._moved: Dict[int, Tuple[Tensor, Tensor]] = {}  # by the id of the first tensor, which moved
        self._tables: List[Tuple[Table, Table]] = []  # with their content before the move
        self._in_step = False

    def move(self, value: Any) -> Any:
        """Return tensors and modules on the device; `value` may be a container of them.

        A module changes in place: its parameters and buffers move, its other tensors stay, as with `Module.to`. They
        return at the end of `fake_cuda`.
        """
        return tree_map(self._on_device, value)

    def _on_device(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            for module in value.modules():
                for table in (module._parameters, module._buffers):
                    self._tables.append((table, dict(table)))
                    table.update({name: self._on_device(tensor) for name, tensor in table.items()})
            return value
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            return value
        if id(value) not in self._moved:
            kind = {"dtype": value.dtype, "device": self.device}
            moved = torch.empty_strided(value.shape, value.stride(), **kind)
            if isinstance(value, nn.Parameter):
                moved = nn.Parameter(moved, value.requires_grad)
            self._moved[id(value)] = value, moved
        return self._moved[id(value)][1]

    def restore(self) -> None:
        """Undo what `move` did to modules."""
        for table, before in reversed(self._tables):
            table.update(before)

    def generator(self, device: Any = CPU) -> torch.Generator:
        """Return a generator that counts as one of `device`. A real one of CUDA needs a driver."""
        generator = _Generator(CPU)
        self._devices[generator._cdata] = torch.device(device)
        return generator

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Raise `FaultyStep` if the block fails, uses a CPU tensor with dimensions, or waits for the device.

        Args:
            name: of what is tested, for the message.
        """
        self._in_step = True
        try:
            yield
        except Exception as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(REPO))]
            last = [frame for frame in frames if frame.filename != __file__][-1:]
            where = "".join(f", {Path(frame.filename).relative_to(REPO)} line {frame.lineno}" for frame in last)
            raise FaultyStep(f"{name}{where}: {type(error).__name__}: {error}") from error
        finally:
            self._in_step = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves, spec = tree_flatten((args, kwargs))
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if kwargs.get("device") in (None, CPU) and not any(isinstance(tensor, FakeTensor) for tensor in given):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if not all(isinstance(tensor, FakeTensor) for tensor in given):
            args, kwargs = tree_unflatten([self._as_fake(leaf) for leaf in leaves], spec)
        result = func(*args, **kwargs)
        if self._in_step:
            results = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
            self._check(func, given, results, args, kwargs)
        return result

    def _as_fake(self, value: Any) -> Any:
        real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self.fakes.from_tensor(value) if real else value

    def _check(self, func: Any, given: List[Tensor], results: List[Tensor], args: Any, kwargs: Any) -> None:
        if func._schema.name in COPIES:
            waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            if waits and len({tensor.device for tensor in (*given, *results)}) > 1:
                raise RuntimeError(f"{func} waits for the device")
        elif len({tensor.device for tensor in given if tensor.ndim}) > 1:
            raise RuntimeError(f"{func} takes tensors of two devices")
        generator = kwargs.get("generator")
        if generator is not None:
            device = self._devices.get(generator._cdata, generator.device)
            if any(device != tensor.device for tensor in results):
                raise RuntimeError(f"{func} takes a generator of {device}")


_Generator, _autocast = torch.Generator, torch.autocast


def _autocast_without_meta(device_type: str, *args: Any, **kwargs: Any) -> Any:
    return nullcontext() if device_type == "meta" else _autocast(device_type, *args, **kwargs)


@contextmanager
def fake_cuda(gradients: bool = False) -> Iterator[FakeDevice]:
    """Provide a fake device within a `with` block.

    Args:
        gradients: whether backward passes are needed. PyTorch's autograd asks the driver for the streams of a CUDA
            device, so the device is then called `meta`, has no autocast, and does not run code for `cuda` alone. With
            old versions of PyTorch, forward passes ask the driver too, and the device is always `meta`.
    """
    name = "cuda:0" if not gradients and hasattr(torch._C, "_ensureCUDADeviceGuardSet") else "meta"
    gpu = FakeDevice(name)
    with ExitStack() as stack:
        stack.enter_context(functorch_config.patch(fake_tensor_allow_meta=True))
        stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        stack.enter_context(mock.patch("torch.autocast", _autocast_without_meta))
        stack.enter_context(mock.patch("torch.Generator", gpu.generator))
        stack.enter_context(torch.set_grad_enabled(gradients))
        stack.callback(gpu.restore)
        gpu.fakes = stack.enter_context(FakeTensorMode())
        yield stack.enter_context(gpu)


def check_model(name: str, model: nn.Module, image: Tensor) -> None:
    """Run a model on `image [B, 3, H, W]` in both modes on a fake device; raise `FaultyStep`."""
    with fake_cuda() as gpu, gpu.step(name), torch.autocast(gpu.device.type, torch.float16):
        for mode in (model.training, not model.training):
            gpu.move(model).train(mode)(gpu.move(image))
        model.train(not mode)


def check_distiller(name: str, distiller: Distiller, batch: Dict[str, Tensor], gradients: bool = False) -> None:
    """Take a training step and a test step on a fake device; raise `FaultyStep`.

    Args:
        name: of the method, for the message.
        distiller: on the CPU; it does not change.
        batch: its images and labels, on the CPU.
        gradients: `True` adds a backward pass, `False` autocast to float16; see `fake_cuda`.
    """
    distiller.train()
    with fake_cuda(gradients) as gpu:
        gpu.move(distiller)
        batch = gpu.move(batch)
        with gpu.step(name), torch.autocast(gpu.device.type, torch.float16):
            _, losses = distiller(**batch, epoch=1)
            wrong = [key for key, loss in losses.items() if loss.device != gpu.device]
            assert not wrong, f"{wrong} are not on the device"
            if gradients:
                sum(losses.values()).backward()
                missing = [key for key, value in distiller.named_parameters() if _lacks_gradient(key, value)]
                assert not missing, f"{missing} have no gradient"
        with gpu.step(name), torch.inference_mode():
            for logits in distiller.eval().forward_eval(batch["image"]).values():
                count_correct(logits, batch["target"])
    distiller.train()


def _lacks_gradient(name: str, parameter: Tensor) -> bool:
    return parameter.requires_grad and parameter.grad is None
