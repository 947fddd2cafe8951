"""Masked words: which are hidden, what the loss is, and whether a contextualizer learns to tell them."""
from __future__ import annotations

import math

import comfy.model_management
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from personalize.nodes.papers.context.contextualizer import ContextNetwork, Sizes
from personalize.nodes.papers.context.files import find_contextualizer, read_contextualizer, write_contextualizer
from personalize.nodes.papers.context.learning import Learning, Progress, train_contextualizer
from personalize.nodes.papers.context.loss import hidden_word_logits, masked_language_loss
from personalize.nodes.papers.context.masking import MASK, draw_positions, hidden, hidden_words, hideable, masked
from personalize.nodes.papers.context.terms import MaskedLanguageLoss
from personalize.nodes.text.encode import encode
from personalize.nodes.text.encoders import text_encoders
from personalize.nodes.text.rich_prompts import PATTERNS, rich_prompts
from personalize.nodes.text.tokens import PromptTokenizer
from personalize.nodes.training.assembly import open_training
from personalize.nodes.training.description import encoder_fingerprint
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.plan import Plan, Settings
from personalize.nodes.training.recipe import TemplateRecipe
from support.masked_words import EVERY, TEMPLATES, untrained
from support.trainings import flat_gradient, in_place_of_a_step, move, subject, train
from tiny.text_encoders import FAMILIES

PROMPT = "a photo of a {} wearing a red hat on the beach"
ENCODERS = ("sd15", "sdxl", "z_image", "qwen_image", "flux1")


@pytest.fixture(params=ENCODERS)
def clip(request):
    """CLIPs of several families."""
    if request.param in FAMILIES:
        return FAMILIES[request.param]()
    return request.getfixturevalue(request.param)[1]


def tokenizer_of(clip, count=2):
    return PromptTokenizer(clip, {"<x>": count})


def test_each_word_is_hidden_as_often_as_said():
    rng, words, share, draws = torch.Generator().manual_seed(1), tuple(range(3, 10)), 0.15, 20_000
    counts = dict.fromkeys(words, 0)
    for _ in range(draws):
        chosen = draw_positions(words, share, rng)
        assert chosen and list(chosen) == sorted(set(chosen))
        for word in chosen:
            counts[word] += 1
    expected = share / (1 - (1 - share) ** len(words))  # where one at least is hidden
    error = math.sqrt(expected * (1 - expected) / draws)
    assert all(abs(count / draws - expected) < 4 * error for count in counts.values()), counts


def test_words_are_hidden_independently_of_each_other():
    rng, words, share, draws = torch.Generator().manual_seed(2), (1, 2, 3), 0.4, 20_000
    sizes = [len(draw_positions(words, share, rng)) for _ in range(draws)]
    some = 1 - (1 - share) ** 3
    for size in (1, 2, 3):
        expected = math.comb(3, size) * share**size * (1 - share) ** (3 - size) / some
        assert sizes.count(size) / draws == pytest.approx(expected, abs=4 * math.sqrt(expected / draws))


def test_the_subject_and_what_is_no_word_stay(clip):
    tokenizer = tokenizer_of(clip)
    tokens = tokenizer.fill(PROMPT, "<x>")
    places = hideable(tokens, EVERY)
    shown = [tokens.layout.pieces[place].text for place in places]
    assert "".join(shown).replace(" ", "").startswith("aphotoofa") and "<x>" not in shown
    assert not set(places) & set(tokens.layout.span("<x>"))
    assert all(tokens.layout.pieces[place].kind == "word" for place in places)
    known = {tokens.layout.pieces[place].id for place in places[:2]}
    assert {tokens.layout.pieces[place].id for place in hideable(tokens, known)} == known


def test_a_hidden_word_is_the_mask_embedding_in_every_encoder(clip):
    """By hand: the stock tokenizer's list with a vector in the word's place."""
    tokenizer = tokenizer_of(clip)
    tokens = tokenizer("a photo of a red hat")
    places = [place for place in hideable(tokens, EVERY) if tokens.layout.pieces[place].text in ("red", "hat")]
    found = masked(tokens, places, tokenizer)
    assert hidden(found) == tuple(places)
    assert hidden_words(found) == tuple(tokens.layout.pieces[place].id for place in places)
    encoders = text_encoders(clip)
    vectors = {e.key: torch.randn(1, e.width) for e in encoders}
    with torch.no_grad():
        ours, plain = (encode(clip, [each], [{MASK: vectors}]).cond for each in (found, tokens))
        theirs = clip.encode_from_tokens(_by_hand(clip, "a photo of a red hat", ("red", "hat"), vectors))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, ours, atol=1e-3)


def _by_hand(clip, prompt, words, vectors):
    """The stock tokenizer's chunks with vectors in the places of words, in the encoders whose rows are used."""
    chunks = clip.tokenize(prompt)
    used = {e.token_key for e in PromptTokenizer(clip, {}).sequence} | ({"g"} if set(chunks) == {"l", "g"} else set())
    for encoder in text_encoders(clip):
        if encoder.token_key in used:
            ids = {id for word in words for id in encoder.word_ids(f" {word}") if encoder.piece(id).text == word}
            chunks[encoder.token_key] = [[(vectors[encoder.key][0] if token in ids else token, weight)
                                          for token, weight in chunk] for chunk in chunks[encoder.token_key]]
    return chunks


# ------------------------------------------------------------------------------------------------ loss
@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ContextNetwork(Sizes(text=32, words=7, width=32, layers=2, heads=4)).double().eval()


def test_the_network_attends_in_both_directions_and_not_to_padding(network):
    outputs, ignored = torch.randn(1, 9, 32, dtype=torch.float64), torch.zeros(1, 9, dtype=torch.bool)
    ignored[:, 6:] = True
    with torch.no_grad():
        logits = network(outputs, ignored)
        for place, matters in ((0, True), (5, True), (7, False)):
            changed = outputs.clone()
            changed[:, place] += torch.randn(32, dtype=torch.float64)
            moved = (network(changed, ignored) - logits)[0, [1, 4]].abs().max()
            assert (moved > 1e-6) == matters, place


def test_the_network_is_what_a_loop_over_its_weights_says(network):
    outputs, ignored = torch.randn(1, 6, 32, dtype=torch.float64), torch.zeros(1, 6, dtype=torch.bool)
    ignored[0, 5] = True
    with torch.no_grad():
        assert torch.allclose(network(outputs, ignored)[0, :5], _network_by_hand(network, outputs[0, :5]), atol=1e-10)


def _network_by_hand(network, x):
    state = network.state_dict()

    def linear(name, values, weight="weight", bias="bias"):
        return values @ state[f"{name}{weight}"].T + state[f"{name}{bias}"]

    def norm(name, values):
        centred = values - values.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * state[f"{name}weight"] + state[
            f"{name}bias"]

    x = linear("narrow.", norm("norm.", x))
    for layer in ("layers.layers.0.", "layers.layers.1."):
        q, k, v = linear(f"{layer}self_attn.", norm(f"{layer}norm1.", x), "in_proj_weight", "in_proj_bias").chunk(3, 1)
        heads = []
        for head in range(4):
            part = slice(8 * head, 8 * head + 8)
            scores = q[:, part] @ k[:, part].T / 8 ** 0.5
            heads.append(torch.softmax(scores, 1) @ v[:, part])
        x = x + linear(f"{layer}self_attn.out_proj.", torch.cat(heads, 1))
        inner = linear(f"{layer}linear1.", norm(f"{layer}norm2.", x))
        x = x + linear(f"{layer}linear2.", inner * 0.5 * (1 + torch.erf(inner / 2 ** 0.5)))
    return linear("words.", norm("layers.norm.", x))


def test_the_loss_is_the_mean_surprise_over_hidden_words(sd15, network):
    clip = sd15[1]
    tokenizer = tokenizer_of(clip)
    prompts = []
    for prompt, share in (("a photo of a red hat on the beach", 0.3), ("a dog", 0.5)):
        tokens, rng = tokenizer(prompt), torch.Generator().manual_seed(4)
        prompts.append(masked(tokens, draw_positions(hideable(tokens, EVERY), share, rng), tokenizer))
    vectors = {MASK: {e.key: torch.randn(1, e.width) for e in text_encoders(clip)}}
    with torch.no_grad():
        encoded = encode(clip, prompts, [vectors] * 2)
        logits = hidden_word_logits(network.float(), encoded)
        labels = torch.arange(len(logits)) % 7
        surprises = []
        for row, tokens in enumerate(prompts):
            kept = [place for place, piece in enumerate(tokens.layout.pieces) if piece.kind != "padding"]
            alone = network(encoded.cond[row:row + 1, kept].float(), torch.zeros(1, len(kept), dtype=torch.bool))[0]
            for place in hidden(tokens):
                scores = alone[kept.index(place)].double()
                surprises.append(float(scores.exp().sum().log() - scores[labels[len(surprises)]]))
    network.double()
    assert float(masked_language_loss(logits, labels)) == pytest.approx(sum(surprises) / len(surprises), rel=1e-5)


# ------------------------------------------------------------------------------------------------ contextualizer
def learned_on(clip, steps=300, **changes):
    prompts = [template.replace("{}", "dog") for template in rich_prompts("animate", PATTERNS, 400).templates]
    progress: list[Progress] = []
    how = Learning(**{"steps": steps, "batch": 8, "width": 64, "layers": 1, **changes})
    made = train_contextualizer(clip, prompts, how, "mine", progress.append, check_every=50)
    return made, progress


@pytest.mark.slow
def test_it_beats_the_commonest_word_and_leaves_the_encoder_as_it_was(sd15):
    made, progress = learned_on(sd15[1])
    checks = [each for each in progress if each.accuracy is not None]
    assert [each.step for each in checks] == list(range(50, 301, 50)) and len(progress) == 300
    assert checks[-1].accuracy > checks[-1].unigram + 0.03
    assert progress[-1].loss < progress[0].loss
    assert made.sizes.words == len(made.vocabulary) == len(made.places)
    untrained, _ = learned_on(sd15[1], steps=1, rate=0.0)
    assert untrained.figures["accuracy"] < checks[-1].unigram


def stopped(clip, begun, each_step=lambda progress: None, save=lambda made: None):
    prompts = [template.replace("{}", "dog") for template in rich_prompts("animate", PATTERNS, 100).templates]
    how = Learning(steps=5, batch=4, width=32, layers=1, heads=2)
    return train_contextualizer(clip, prompts, how, "mine", each_step, 2, begun, save)


def failing_in_step(number):
    """A hook that lets a network fail when a step's prompts are drawn and encoded."""
    steps = []

    def fail(module, _):
        if isinstance(module, ContextNetwork) and torch.is_grad_enabled():
            steps.append(module)
            if len(steps) == number:
                raise MemoryError("no room")

    return register_module_forward_pre_hook(fail)


@pytest.mark.parametrize("when, done", [("after a step", 3), ("in a step", 2), ("while it is saved", 5)])
def test_what_was_cut_short_goes_on_to_the_same_bits(clip, when, done, tmp_path):
    begun, whole, steps = tmp_path / "begun.safetensors", stopped(clip, None), []

    def interrupt(progress):
        if when == "after a step" and progress.step == 3:
            comfy.model_management.interrupt_current_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()

    def refuse(made):
        write_contextualizer(tmp_path / ("x" * 300), made)

    hook = failing_in_step(3 if when == "in a step" else 0)
    try:
        with pytest.raises((comfy.model_management.InterruptProcessingException, MemoryError, OSError)):
            stopped(clip, begun, interrupt, refuse)
    finally:
        hook.remove()
    assert begun.is_file()
    again = stopped(clip, begun, lambda progress: steps.append(progress.step), lambda made: steps.append("saved"))
    assert steps == [*range(done + 1, 6), "saved"] and not begun.exists()
    assert again.figures == whole.figures and again.weights.keys() == whole.weights.keys()
    assert all(torch.equal(weight, whole.weights[name]) for name, weight in again.weights.items())
    assert all(torch.equal(rows, whole.mask[key]) for key, rows in again.mask.items())


@pytest.mark.parametrize("damage", [lambda content: content[:-8], lambda content: b"",
                                    lambda content: content.replace(b"draws.prompts", b"draws.prompt_"),
                                    lambda content: content.replace(b"part.mask.clip_l", b"part.mask.clip_x")])
def test_a_damaged_state_is_told_and_the_training_begins_anew(sd15, damage, tmp_path, caplog):
    begun, steps = tmp_path / "begun.safetensors", []

    def fail(progress):
        raise MemoryError("no room")

    with pytest.raises(MemoryError):
        stopped(sd15[1], begun, fail)
    assert "ended at step 1 of 5; Run goes on from there" in caplog.text
    begun.write_bytes(damage(begun.read_bytes()))
    made = stopped(sd15[1], begun, lambda progress: steps.append(progress.step))
    assert steps == [1, 2, 3, 4, 5] and "because its state begun.safetensors is damaged" in caplog.text
    whole = stopped(sd15[1], None)
    assert all(torch.equal(weight, whole.weights[name]) for name, weight in made.weights.items())


def test_a_state_that_cannot_be_written_hides_no_error(sd15, tmp_path, caplog):
    (tmp_path / "no folder").touch()

    def fail(progress):
        raise MemoryError("no room")

    with pytest.raises(MemoryError):
        stopped(sd15[1], tmp_path / "no folder" / "begun.safetensors", fail)
    assert "ended at step 1 of 5, and Run cannot go on from there: " in caplog.text


def test_too_few_prompts_are_refused(sd15):
    with pytest.raises(ValueError, match="2 prompts are too few to learn from and to hold some out; connect a Prompt"):
        train_contextualizer(sd15[1], ["a dog in the snow", "a cat on the beach"], Learning(steps=1), "x", print)


def test_a_file_holds_all_of_it_and_is_found_by_its_encoder(sd15, sdxl, base):
    from personalize.nodes.locations import first_folder

    made, _ = learned_on(sd15[1], steps=2)
    folder = first_folder("contextualizers")
    path = write_contextualizer(folder / "mine.safetensors", made)
    read = read_contextualizer(path)
    assert (read.name, read.encoder, read.sizes, dict(read.figures)) == (
        "mine", made.encoder, made.sizes, dict(made.figures))
    assert torch.equal(read.vocabulary, made.vocabulary)
    assert all(torch.equal(read.weights[name], made.weights[name]) for name in made.weights)
    assert all(torch.equal(read.mask[key], made.mask[key]) for key in made.mask)
    assert find_contextualizer(encoder_fingerprint(sd15[1])) == path
    assert find_contextualizer(encoder_fingerprint(sdxl[1])) is None
    path.unlink()


# ------------------------------------------------------------------------------------------------ in training
@pytest.mark.parametrize("kind", ["sd15", "sdxl", "z_image"])
def test_gradients_of_the_words_equal_finite_differences(kind, request):
    checkpoint = request.getfixturevalue(kind)
    term = MaskedLanguageLoss(TEMPLATES, untrained(checkpoint[1]), 1.0, 0.4)
    settings = Settings(steps=1, batch_size=2, seed=5)

    def compare(trainer, batch):
        trainer.optimizer.zero_grad()
        trainer.objective.backward(batch)
        found = flat_gradient(trainer)
        direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
        direction /= direction.norm()
        values, size = [], 1e-2
        for step in (size, -2 * size):
            move(trainer, step * direction)
            values.append(sum(trainer.objective.backward(batch).values()))
        move(trainer, size * direction)
        slope = (values[0] - values[1]) / (2 * size)
        assert float(found @ direction) == pytest.approx(slope, rel=2e-2, abs=3e-4) and found.norm() > 1e-4

    with in_place_of_a_step(compare):
        train(checkpoint, settings, terms=(term,))


def test_only_the_word_learns_and_its_loss_falls(sd15):
    contextualizer = untrained(sd15[1])
    before = {name: weight.clone() for name, weight in contextualizer.weights.items()}
    term = MaskedLanguageLoss(TEMPLATES[:1], contextualizer, 1.0, 0.4)
    trainer, learned, _ = train(sd15, Settings(steps=40, batch_size=2), terms=(DiffusionLoss(), term),
                                parts=(EmbeddingPart(lr=0.05),))
    values = [record["parts"]["masked words"] for record in trainer.history]
    assert sum(values[-10:]) < sum(values[:10])
    assert learned.keys() == {"<my-dog>"}
    assert all(torch.equal(weight, before[name]) for name, weight in contextualizer.network.state_dict().items())


def test_every_subject_gets_the_same_words_hidden(sd15):
    subjects = (subject(), subject(placeholder="<my-cat>"))
    term, seen = MaskedLanguageLoss(TEMPLATES, untrained(sd15[1]), 1.0, 0.3), []

    def look(trainer, batch):
        needs = term.needs(batch, trainer.objective.text, torch.Generator().manual_seed(2))
        seen.append(needs.encodes["masked"].tokens)

    with in_place_of_a_step(look):
        train(sd15, Settings(steps=1, batch_size=2), subjects=subjects, terms=(term,))
    ours, theirs = seen[0]
    assert hidden(ours) == hidden(theirs) and hidden_words(ours) == hidden_words(theirs)
    assert ours.layout.span("<my-dog>") == theirs.layout.span("<my-cat>") != ()


def test_a_contextualizer_of_another_encoder_is_refused_before_the_first_step(sd15):
    term = MaskedLanguageLoss(TEMPLATES, untrained(sd15[1], encoder="of another"), 1.0)
    with pytest.raises(ValueError, match="The contextualizer untrained was trained on another text encoder"):
        _rehearsed(sd15, term)
    strange = MaskedLanguageLoss((*TEMPLATES, "{} zzz"), untrained(sd15[1]), 1.0)
    with pytest.raises(ValueError, match="knows no word of the prompt '{} zzz'; train it on prompts of this kind"):
        _rehearsed(sd15, strange)


def _rehearsed(checkpoint, term):
    plan = Plan(*checkpoint, (subject(),), (EmbeddingPart(),), (DiffusionLoss(), term), TemplateRecipe(),
                Settings(steps=2, batch_size=1))
    with torch.inference_mode(), open_training(plan) as trainer:
        trainer.rehearse()
