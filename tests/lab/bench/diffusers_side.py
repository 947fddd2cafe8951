"""Textual Inversion with diffusers' and transformers' modules: the training step of diffusers' example script, written
out, and the cheapest step that the same modules allow.

Weights are copies of ComfyUI's, so that both sides compute the same loss.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from support.diffusers_models import PLACEHOLDER

from .measure import tensor_bytes

LEARNING_RATE = 5e-3
WEIGHT_DECAY = 0.01


class Step:
    """What both kinds of training share. ids: (B, 77) token ids of the rows' prompts; latents: (B, 4, h, w)."""

    def __init__(self, unet: UNet2DConditionModel, text: CLIPTextModel, ids: Tensor, latents: Tensor):
        self.unet, self.text, self.ids, self.latents = unet, text, ids, latents
        self.schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

    def loss(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The scalar that both sides must agree on."""
        noisy = self.schedule.add_noise(latents, noise, timesteps)
        prediction = self.unet(noisy, timesteps, self.text(self.ids)[0]).sample
        return F.mse_loss(prediction.float(), noise.float(), reduction="mean")

    def lasting_bytes(self) -> int:
        """Bytes of both models, of the optimiser, and of what else is kept from step to step."""
        state = [t for values in self.optimizer.state.values() for t in values.values()]
        kept = [value for value in vars(self).values() if isinstance(value, Tensor)]
        return tensor_bytes([*self.unet.parameters(), *self.text.parameters(), *state, *kept])

    def random_loss(self) -> Tensor:
        """Loss at new noise and timesteps."""
        noise = torch.randn_like(self.latents)
        timesteps = torch.randint(0, self.schedule.config.num_train_timesteps, (len(self.latents),))
        return self.loss(self.latents, noise, timesteps.long())


class ScriptStep(Step):
    """As examples/textual_inversion/textual_inversion.py: the whole token table is optimised, then put back but for
    the new row."""

    def __init__(self, unet: UNet2DConditionModel, text: CLIPTextModel, ids: Tensor, latents: Tensor, vector: Tensor):
        super().__init__(unet, text, ids, latents)
        self.table = text.get_input_embeddings().requires_grad_(True)
        self.table.weight.data[PLACEHOLDER] = vector
        self.optimizer = torch.optim.AdamW(self.table.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.rate = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        self.original = self.table.weight.data.clone()

    def __call__(self) -> float:
        loss = self.random_loss()
        loss.backward()
        self.optimizer.step()
        self.rate.step()
        self.optimizer.zero_grad()
        unchanged = torch.ones(PLACEHOLDER + 1, dtype=torch.bool)
        unchanged[PLACEHOLDER] = False
        with torch.no_grad():
            self.table.weight[unchanged] = self.original[unchanged]
        return loss.detach().item()

    def gradient(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[float, Tensor]:
        """Loss and gradient of the new row, (768,)."""
        loss = self.loss(latents, noise, timesteps)
        loss.backward()
        found = self.table.weight.grad[PLACEHOLDER].clone()
        self.optimizer.zero_grad()
        return loss.item(), found


class _TableWithVector(nn.Module):
    """A frozen token table whose last row is a parameter of its own."""

    def __init__(self, table: nn.Embedding, vector: Tensor):
        super().__init__()
        self.table, self.vector = table, nn.Parameter(vector.clone())

    def forward(self, ids: Tensor) -> Tensor:
        return torch.where((ids == PLACEHOLDER)[..., None], self.vector, self.table(ids))


class OneVectorStep(Step):
    """The same modules and loss, with gradient and optimiser for the one new row only."""

    def __init__(self, unet: UNet2DConditionModel, text: CLIPTextModel, ids: Tensor, latents: Tensor, vector: Tensor):
        super().__init__(unet, text, ids, latents)
        self.table = _TableWithVector(text.get_input_embeddings(), vector)
        text.set_input_embeddings(self.table)
        self.optimizer = torch.optim.AdamW([self.table.vector], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def __call__(self) -> float:
        loss = self.random_loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach().item()

    def gradient(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[float, Tensor]:
        """Loss and gradient of the vector, (768,)."""
        loss = self.loss(latents, noise, timesteps)
        loss.backward()
        found = self.table.vector.grad.clone()
        self.optimizer.zero_grad()
        return loss.item(), found
