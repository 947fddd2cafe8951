"""What holds no numbers is named where it comes in, and advice is only what helps there."""
from __future__ import annotations

import pytest
import torch

from personalize.nodes.attention.masks import OTSU, THRESHOLD
from personalize.nodes.attention.words import Words
from personalize.nodes.papers.harmonize.nodes_orthogonal import PersonalizeOrthogonalize
from personalize.nodes.recording.nodes_mask import PersonalizeSubjectMask
from personalize.nodes.recording.nodes_show import EACH_MAP, MEAN, PersonalizeShowAttention
from personalize.nodes.training.images import sources_from_tensors
from personalize.nodes.visual_prompts.tokens import BLIP_DIFFUSION, ELITE, IP_ADAPTER, VisualTokens
from support.layouts import of_spans
from support.recorded import DOG, PROMPT, recording
from support.sampling import encoded, sample

pytestmark = pytest.mark.usefixtures("execute")
ODD = [float("nan"), float("inf")]


@pytest.mark.parametrize("odd", ODD)
def test_masks_of_pictures(odd):
    mask = torch.ones(1, 64, 64)
    mask[0, 3, 4] = odd
    with pytest.raises(ValueError, match="The mask of picture 1 holds values that are not numbers; look at the node"):
        [source.load() for source in sources_from_tensors([torch.rand(1, 64, 64, 3)], [mask])]


@pytest.mark.parametrize("source", [IP_ADAPTER, BLIP_DIFFUSION, ELITE])
def test_visual_tokens(source):
    with pytest.raises(ValueError, match=f"The visual tokens of {source} are not numbers: the model that saw the "
                                         "picture"):
        VisualTokens(torch.full((1, 4, 8), float("nan")), source)


def orthogonalized(conditioning, **changed):
    return PersonalizeOrthogonalize.execute(conditioning, **{"words": "", "strength": 1.0, "basis": "all",
                                                             "last_tokens": 0, **changed}).result


@pytest.mark.parametrize("odd", ODD)
def test_conditionings_to_orthogonalize(odd):
    text = torch.rand(1, 6, 8)
    text[0, 2, 1] = odd
    tokens = VisualTokens(torch.rand(1, 2, 8), IP_ADAPTER)
    for inputs in ({"visual_tokens": tokens}, {"last_tokens": 2}):
        with pytest.raises(ValueError, match="The conditioning holds values that are not numbers; look at the text "
                                             "encoder"):
            orthogonalized([[text, {}]], **inputs)


def test_a_text_that_spans_the_whole_space():
    tokens = VisualTokens(torch.rand(1, 2, 8), IP_ADAPTER)
    _, left, report, rank = orthogonalized([[torch.rand(1, 9, 8, generator=torch.Generator().manual_seed(0)), {}]],
                                           visual_tokens=tokens)
    assert rank == 8 and "of the picture nothing is left" in report and left.vectors.abs().max() < 1e-5
    assert "nothing is left" not in orthogonalized([[torch.rand(1, 7, 8), {}]], visual_tokens=tokens)[2]


def recorded(checkpoint):
    """(record, LATENT) of a run whose attention to "dog" was recorded."""
    model, record = recording(checkpoint.model, Words(("dog",), of_spans({"dog": DOG})))
    positive, negative = encoded(checkpoint.clip, PROMPT), encoded(checkpoint.clip, "")
    return record, {"samples": sample(model, positive, negative)}


def masked(record, latent, method=OTSU, **inputs):
    return PersonalizeSubjectMask.execute(record, "", method, 1.0, latent=latent, **inputs)


def test_attention_of_a_model_that_gave_no_numbers(sd15, nan_in):
    nan_in(sd15.model.model, "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_q.weight")
    record, latent = recorded(sd15)
    sentence = "The attention that the test saw holds values that are not numbers, as the model gave such while it ran"
    with pytest.raises(ValueError, match=sentence):
        masked(record, latent)
    with pytest.raises(ValueError, match=sentence):
        PersonalizeShowAttention.execute(record, MEAN, EACH_MAP, "viridis", 0.5, 0, latent=latent)


def test_a_threshold_is_lowered_only_where_it_is_used(sd15):
    record, latent = recorded(sd15)
    one = torch.zeros(1, 128, 128)
    one[0, :8, :8] = 1  # a single place of the map: nothing in it can stand out
    with pytest.raises(ValueError, match="'dog'; lower the threshold, or record other"):
        masked(record, latent, THRESHOLD)
    with pytest.raises(ValueError, match="'dog'; lower the threshold, or connect a larger mask, or record"):
        masked(record, latent, THRESHOLD, mask=one)
    for sampling in record._samplings:
        sampling._sums.update({key: {step: (torch.ones_like(values), weights)
                                     for step, (values, weights) in steps.items()}
                               for key, steps in sampling._sums.items()})
    with pytest.raises(ValueError, match="stands out by its attention to 'dog'; record other words"):
        masked(record, latent)
