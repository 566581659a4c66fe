"""Recomputing activations in the backward pass, without the dropout of training mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from potstill.errors import PotstillError


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass, see `training_mode`.

    A layer is in training mode where it decides to recompute, and in evaluation mode where it
    computes. A model that decides for its layers is in training mode all the time: its shares of
    dropout are set to 0.
    """
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise PotstillError(
            f'"{model.config.model_type}" models cannot recompute activations: '
            f"{str(error).splitlines()[0]}",
            "leave out gradient_checkpointing",
        ) from error
    model.enable_input_require_grads()
    for module in filter(_recomputes, model.modules()):
        module._gradient_checkpointing_func = _evaluating(
            module, module._gradient_checkpointing_func
        )
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _evaluating(module: Any, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """A checkpoint function that computes, and computes again, with `module` in evaluation mode."""

    def call(compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def quietly(*inner: Any, **named: Any) -> Any:
            before, module.training = module.training, False
            try:
                return compute(*inner, **named)
            finally:
                module.training = before

        return checkpoint(quietly, *args, **kwargs)

    return call


def training_mode(model: Any, *, dropout: bool, recompute: bool = True) -> None:
    """Prepare a model for the forward pass of a step: recomputation, and dropout of its adapters.

    `model.train()` would also switch on the model's own dropout, the noise of its router, and the
    skipping of whole layers: the policy that samples would not be the one that is trained.
    """
    model.eval()
    for module in model.modules():
        if recompute and _recomputes(module):
            module.training = True
        for adapter in getattr(module, "lora_dropout", {}).values():
            adapter.train(dropout)


def _recomputes(module: Any) -> bool:
    return bool(getattr(module, "gradient_checkpointing", False))
