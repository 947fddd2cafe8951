"""Types of the wires that the pack adds to ComfyUI's own."""
from comfy_api.latest import io

ConceptType = io.Custom("CONCEPT")
PromptSetType = io.Custom("PROMPT_SET")
SubjectType = io.Custom("SUBJECT")
TrainableType = io.Custom("TRAINABLE")
LossType = io.Custom("PERSONALIZE_LOSS")
RecipeType = io.Custom("RECIPE")
VisualTokensType = io.Custom("VISUAL_TOKENS")
RecordType = io.Custom("PERSONALIZE_RECORD")
IPAdapterType = io.Custom("PERSONALIZE_IP_ADAPTER")
BlipDiffusionType = io.Custom("PERSONALIZE_BLIP_DIFFUSION")
ViCoType = io.Custom("PERSONALIZE_VICO")
EliteType = io.Custom("PERSONALIZE_ELITE")
