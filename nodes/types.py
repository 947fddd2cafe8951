"""Types of the wires that the pack adds to ComfyUI's own."""
from comfy_api.latest import io

ConceptType = io.Custom("CONCEPT")
PromptSetType = io.Custom("PROMPT_SET")
SubjectType = io.Custom("SUBJECT")
TrainableType = io.Custom("TRAINABLE")
LossType = io.Custom("PERSONALIZE_LOSS")
RecipeType = io.Custom("RECIPE")
