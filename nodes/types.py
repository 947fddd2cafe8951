"""Types of the wires that the pack adds to ComfyUI's own."""
from comfy_api.latest import io

ConceptType = io.Custom("PERSONALIZE_CONCEPT")
PromptSetType = io.Custom("PERSONALIZE_PROMPT_SET")
SubjectType = io.Custom("PERSONALIZE_SUBJECT")
TrainableType = io.Custom("PERSONALIZE_TRAINABLE")
LossType = io.Custom("PERSONALIZE_LOSS")
RecipeType = io.Custom("PERSONALIZE_RECIPE")
ValidationType = io.Custom("PERSONALIZE_VALIDATION")
VisualTokensType = io.Custom("PERSONALIZE_VISUAL_TOKENS")
RecordType = io.Custom("PERSONALIZE_RECORD")
IPAdapterType = io.Custom("PERSONALIZE_IP_ADAPTER")
BlipDiffusionType = io.Custom("PERSONALIZE_BLIP_DIFFUSION")
ContextualizerType = io.Custom("PERSONALIZE_CONTEXTUALIZER")
ViCoType = io.Custom("PERSONALIZE_VICO")
EliteType = io.Custom("PERSONALIZE_ELITE")
