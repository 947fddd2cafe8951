"""Custom Diffusion: only what makes keys and values of the text is trained, of all subjects together."""
from __future__ import annotations

import pytest
import torch

from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import AdapterPart, KeyValuePart, UNetPart
from personalize.nodes.training.plan import Settings
from support.trainings import subject, train

ENDINGS = (".attn2.to_k.diff", ".attn2.to_v.diff")


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_it_learns_keys_and_values_of_every_layer_and_nothing_else(kind, request):
    checkpoint = request.getfixturevalue(kind)
    trainer, learned, _ = train(checkpoint, Settings(steps=3, batch_size=2),
                                parts=(EmbeddingPart(), KeyValuePart(1e-3)))
    weights = trainer.weights()
    assert len(weights) == 2 * len(trainer.session.family.layers) and learned.keys() == {"<my-dog>"}
    assert all(name.startswith("diffusion_model.") and name.endswith(ENDINGS) for name in weights)
    assert all(difference.abs().max() > 0 for difference in weights.values())


def test_several_subjects_share_the_weights_and_keep_words_of_their_own(sd15):
    subjects = (subject(), subject(placeholder="<my-cat>"))
    trainer, learned, _ = train(sd15, Settings(steps=2, batch_size=2), subjects=subjects,
                                parts=(EmbeddingPart(0.1), KeyValuePart(1e-3)))
    assert learned.keys() == {"<my-dog>", "<my-cat>"}
    assert not torch.equal(learned["<my-dog>"]["clip_l"], learned["<my-cat>"]["clip_l"])
    assert len(trainer.weights()) == 2 * len(trainer.session.family.layers)


@pytest.mark.parametrize("parts", [(UNetPart(), KeyValuePart()), (KeyValuePart(), KeyValuePart(1e-3)),
                                   (AdapterPart(), AdapterPart(rank=4))])
def test_parts_that_would_share_a_file_s_names_are_refused(sd15, parts):
    with pytest.raises(ValueError, match="Two parts at trainable train the same weights .*; keep one of them"):
        train(sd15, Settings(steps=1), parts=parts)
    train(sd15, Settings(steps=1), parts=(EmbeddingPart(), KeyValuePart(), AdapterPart()))


def test_a_model_without_keys_and_values_of_its_own_for_text_is_refused(z_image):
    with pytest.raises(ValueError, match="keys and values of text and picture by the same weights"):
        train(z_image, Settings(steps=1), parts=(EmbeddingPart(), KeyValuePart()))
