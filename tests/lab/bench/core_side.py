"""ComfyUI's own Train LoRA node, run as its users run it and watched from step to step."""
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import comfy.patcher_extension
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from .measure import recorded_bytes


class CoreTraining:
    """*Train LoRA* on a MODEL, latents (batch, 4, h, w) in the model's space and a prompt: every layer, AdamW, float32.

    It learns biases and norms beside the low-rank changes, which no setting turns off. bypass: in its bypass mode.
    """

    def __init__(self, model, clip, latents: Tensor, prompt: str, rank: int, bypass: bool):
        self.model, self.rank, self.bypass = model, rank, bypass
        self.latents = model.get_model_object("latent_format").process_out(latents)
        with torch.inference_mode():
            self.positive = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))

    def __call__(self, steps: int, after_step: Callable[[], None] = lambda: None) -> list[float]:
        """The loss of every step: the mean square error of the predicted clean latents."""
        from comfy_extras.nodes_train import TrainLoraNode

        settings = {"batch_size": len(self.latents), "grad_accumulation_steps": 1, "steps": steps,
                    "learning_rate": 1e-4, "rank": self.rank, "optimizer": "AdamW", "loss_function": "MSE", "seed": 0,
                    "training_dtype": "fp32", "lora_dtype": "fp32", "quantized_backward": False, "algorithm": "LoRA",
                    "gradient_checkpointing": False, "checkpoint_depth": 1, "offloading": False,
                    "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": self.bypass}
        hook = register_optimizer_step_post_hook(lambda *_: after_step())
        try:
            with torch.inference_mode():
                _, losses, _ = TrainLoraNode.execute(
                    model=[self.model], latents=[{"samples": self.latents.clone()}], positive=[self.positive],
                    **{name: [value] for name, value in settings.items()}).result
        finally:
            hook.remove()
        return losses["loss"]

    def step_seconds(self, steps: int = 2) -> float:
        """CPU seconds of a step, without what comes before the first; the mean of `steps`."""
        ends: list[float] = []
        self(1 + steps, lambda: ends.append(time.process_time()))
        return (ends[-1] - ends[0]) / steps

    def step_peak_bytes(self) -> int:
        """As `measure.peak_bytes` of the second step."""
        with contextlib.ExitStack() as stack:
            found = []
            step = iter((lambda: found.append(stack.enter_context(recorded_bytes())), stack.close))
            self(2, lambda: next(step)())
        return found[0].peak

    def first_step(self) -> tuple[float, Tensor, Tensor]:
        """Loss of a first step, its noisy latents as the denoiser gets them, and their noise levels (batch,)."""
        seen = []

        def watch(executor, x, t, *args, **kwargs):
            seen.append((x.detach().clone(), t.detach().clone()))
            return executor(x, t, *args, **kwargs)

        model, self.model = self.model, self.model.clone()
        self.model.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, watch)
        try:
            [loss] = self(1)
        finally:
            self.model = model
        return loss, *seen[0]
