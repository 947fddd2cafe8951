"""Pictures as visual tokens, and what carries them into a model: IP-Adapter, BLIP-Diffusion, ELITE."""

CATEGORY = "personalize/visual_prompts"
