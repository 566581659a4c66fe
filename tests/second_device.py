"""A second device on the CPU, to find code that mixes devices without owning a GPU.

Tensors on the device "card" claim to be there, and keep their data in a CPU tensor inside. As on a
GPU, an operation on tensors of two devices is an error, unless the other tensor is a number (no
dimensions) or an index; NumPy cannot read such a tensor. `with second_device():` switches it on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "card"
DEVICE = f"{NAME}:0"
# Operations whose tensors may be on two devices, and those whose result is no tensor.
COPIES = ("aten._to_copy.default", "aten.copy_.default")
INDEXED = (
    "aten.index.Tensor",
    "aten.index_put.default",
    "aten.index_put_.default",
    "aten._index_put_impl_.default",
)


class OnCard(Tensor):
    """A tensor that claims to be on the second device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnCard:
        with torch.inference_mode(False):
            made: OnCard = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls,
                inner.shape,
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=torch.device(DEVICE),
            )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnCard({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name == "numpy":
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy")
        if name == "tolist":
            return args[0].detach().cpu().tolist()
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(call, args, kwargs or {})


class Mode(TorchDispatchMode):
    """Operations that make tensors, which no tensor can take over."""

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(call, args, kwargs or {})


def computed(call: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU; its results are where a GPU would have them."""
    if str(call).startswith("aten.to."):  # whole in inference mode
        with Mode():
            return call.decompose(*args, **kwargs)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, OnCard)]
    device = kwargs.get("device")
    if there and str(call) not in COPIES:
        check(str(call), tensors, args)
    if device is not None:
        target = torch.device(device).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    else:
        target = isinstance(args[0], OnCard) if str(call) == COPIES[1] else bool(there)
    whole = tree_map(lambda x: x.inner if isinstance(x, OnCard) else x, (args, kwargs))
    if str(call) == "aten.histc.default":  # a CPU counts floats only, a GPU whole numbers too
        whole = (whole[0][0].float(), *whole[0][1:]), whole[1]
    out = call(*whole[0], **whole[1])
    known = {id(x.inner) if isinstance(x, OnCard) else id(x): x for x in tensors}

    def placed(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return known[id(x)] if id(x) in known else OnCard(x) if target else x

    return tree_map(placed, out)


def check(name: str, tensors: list[Tensor], args: Any) -> None:
    """Raise the error of a GPU where tensors of two devices meet."""
    free: list[Tensor] = []
    if name in INDEXED and isinstance(args[0], OnCard):
        free = [x for x in args[1] if x is not None]
    wrong = [
        x
        for x in tensors
        if not isinstance(x, OnCard) and x.dim() and not any(x is other for other in free)
    ]
    if wrong:
        shapes = [tuple(x.shape) for x in wrong]
        raise RuntimeError(f"expected all tensors on one device: {name}, on the CPU: {shapes}")


@cache
def register() -> None:
    """Make torch know the device; needs torch 2.9 or newer."""
    import torch.utils.backend_registration as registration

    registration._setup_privateuseone_for_python_backend(NAME)


def available() -> bool:
    """Return whether this torch can have such a device."""
    import torch.utils.backend_registration as registration

    return hasattr(registration, "_setup_privateuseone_for_python_backend")


@contextlib.contextmanager
def second_device(patch: Callable[[Any, str, Any], None]) -> Iterator[None]:
    """Switch the device on.

    Args:
        patch: `setattr` of a MonkeyPatch: weights there are a class of their own, which the short
            cuts would not trust.
    """
    from safetensors.torch import save_file

    from potstill import settings
    from potstill.engines.torch import models, proved

    def save(tensors: dict[str, Tensor], place: Any) -> None:
        save_file({name: value.cpu() for name, value in tensors.items()}, place)

    register()
    patch(settings, "DEVICES", (*settings.DEVICES, NAME))
    patch(proved, "_plain_weight", lambda weight: weight.dtype in proved.FLOATS)
    patch(models, "save_file", save)  # reads memory, which only the inner tensor has
    before = torch.__future__.get_swap_module_params_on_conversion()
    lifted = torch._C._only_lift_cpu_tensors()
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device=)` comes through `Mode`
    try:
        with Mode():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)
        torch.__future__.set_swap_module_params_on_conversion(before)
