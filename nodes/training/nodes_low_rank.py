"""The node that makes a LoRA of trained weights."""
from __future__ import annotations

from comfy_api.latest import io, ui

from .low_rank import reduce_rank


class PersonalizeReduceToLoRA(io.ComfyNode):
    """Differences of whole weights as a LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeReduceToLoRA", display_name="Reduce to LoRA", category="personalize/training",
            is_output_node=True,
            description="Makes a small LoRA of what Train U-Net or Train Key/Value has trained, and says how much of "
                        "it is lost. Save it with Save LoRA Weights.",
            search_aliases=["extract lora", "svd", "low rank", "compress", "shrink"],
            inputs=[
                io.LoraModel.Input("lora", tooltip="From Train."),
                io.Int.Input("rank", default=32, min=1, max=256,
                             tooltip="Rank of every layer; layers that would not become smaller stay as they are. More "
                                     "keeps more: look at the report.")],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="For Save LoRA Weights."),
                io.String.Output(display_name="report", tooltip="To read: how much smaller it is, and what was lost.")])

    @classmethod
    def execute(cls, lora, rank: int) -> io.NodeOutput:
        """LORA_MODEL and a report."""
        reduced = reduce_rank(lora, rank)
        before, after = (sum(tensor.nbytes for tensor in weights.values()) for weights in (lora, reduced.weights))
        report = (f"{after / 2**20:.1f} MB in place of {before / 2**20:.1f} MB. Of the length of all changes "
                  f"{reduced.lost:.1%} is lost, most in {reduced.worst_layer} ({reduced.worst:.1%}).")
        return io.NodeOutput(dict(reduced.weights), report, ui=ui.PreviewText(report))


NODES: list[type] = [PersonalizeReduceToLoRA]
