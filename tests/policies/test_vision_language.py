import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from tensordict import NonTensorStack

import guerdon
from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.tiny_lm import build_tokenizer
from guerdon.policies.tiny_vlm import TinyVLM
from guerdon.policies.vision_language import ImageTextToText, VisionLanguagePolicy
from guerdon.tasks.base import Problem, Starts, Task
from guerdon.tasks.gridimage import GridImage
from guerdon.tasks.pictures import Illustrated, Picture
from guerdon.training import checkpoint, loop
from guerdon.training.folder import RunFolder

OPTIONS = LanguageSampling(max_new_tokens=6, temperature=0.8)
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


class Looking(Task):
    """Prompts of 0, 1 or 2 images among words, of various lengths and image sizes."""

    kind = "language"
    supplies = frozenset({"answer"})

    def train_batch(self, n, seed):
        random = np.random.default_rng(seed)
        return [self.problem(i, random) for i in range(n)]

    def problem(self, i, random):
        images = [random.integers(0, 256, (32, 32 + 16 * (i % 2), 3), dtype=np.uint8) for _ in range(i % 3)]
        text = "sum? " + " and ".join(["<image>"] * len(images)) + "12"[: i % 2]
        return Problem(i, Illustrated(text, images), answer=str(i % 10))

    def eval_problems(self, n):
        return self.train_batch(n, 1)

    def corpus(self):
        yield "sum? and 0123456789"


def lively(network, scale=8.0):
    """Weights large enough for what is read to matter."""
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim > 1:
                p.mul_(scale)
    return network


@pytest.fixture
def policy():
    torch.manual_seed(0)
    made = TinyVLM(Looking(), width=32, vision_width=32, layers=2, vision_layers=1)
    lively(made.network, 2.0)
    return made


def starts_of(n=6, group_size=2, seed=0):
    return Starts.repeat(Looking().train_batch(n, seed), group_size)


def sampled(policy, seed=3, **options):
    with torch.no_grad():
        return policy.sample(starts_of(), OPTIONS, seed=seed, **options)


def with_pictures(rollouts, change):
    other, payload = rollouts.clone(recurse=False), rollouts.payload.clone(recurse=False)
    payload["images"] = NonTensorStack(*[tuple(map(change, row)) for row in rollouts.payload.get("images").tolist()])
    other.payload = payload
    return other


def network_logp(policy, rollouts, row):
    """Log-probabilities by the network itself, without any code of ours; None where it wrote an image token."""
    prompt, there = rollouts.payload["prompt_tokens"][row], rollouts.payload["attention"][row]
    prompt, written = prompt[there[: len(prompt)]], rollouts.tokens[row][rollouts.mask[row]]
    if policy._sight.image_token in written.tolist():
        return None
    images = [[policy._sight.prepared(picture)[0] for picture in rollouts.payload.get("images").tolist()[row]]]
    pixels = {name: torch.cat([image[name] for image in images[0]]) for name in (images[0] or [{}])[0]}
    with torch.no_grad():
        ids = torch.cat([prompt, written])[None]
        logits = policy.network(input_ids=ids, **pixels).logits[0, len(prompt) - 1 : -1] / OPTIONS.temperature
    return logits.log_softmax(-1).gather(1, written.unsqueeze(1)).squeeze(1)


def test_what_is_sampled_is_what_is_evaluated_and_what_the_network_says(policy):
    rollouts = sampled(policy)
    assert {len(row) for row in rollouts.payload.get("images").tolist()} == {0, 1, 2}
    seen = policy.evaluate(rollouts)
    assert torch.allclose(seen.logp, rollouts.old_logp, atol=1e-4)
    assert torch.allclose(seen.entropy, rollouts.entropy, atol=1e-4)
    checked = 0
    for row in range(len(rollouts)):
        logp = network_logp(policy, rollouts, row)
        if logp is not None:
            assert torch.allclose(rollouts.old_logp[row][rollouts.mask[row]], logp, atol=1e-4)
            checked += 1
    assert checked > 3


def test_rows_are_read_alike_alone_and_among_others(policy):
    rollouts = sampled(policy)
    for row in range(len(rollouts)):
        alone = policy.evaluate(rollouts[row : row + 1])
        assert torch.allclose(alone.logp, rollouts.old_logp[row : row + 1], atol=1e-4)
    shuffled = rollouts[torch.randperm(len(rollouts))]
    assert torch.allclose(policy.evaluate(shuffled).logp, shuffled.old_logp, atol=1e-4)


def test_sampling_is_a_function_of_its_arguments(policy):
    one, again, other = sampled(policy), sampled(policy), sampled(policy, seed=4)
    assert torch.equal(one.tokens, again.tokens)
    assert torch.equal(one.old_logp, again.old_logp)
    assert not torch.equal(one.mask, other.mask) or not torch.equal(one.tokens, other.tokens)
    greedy = sampled(policy, greedy=True)
    assert torch.equal(greedy.tokens[::2], greedy.tokens[1::2])


def test_each_row_sees_its_own_images(policy):
    rollouts = sampled(policy)
    moved = policy.evaluate(with_pictures(rollouts, lambda picture: Picture(255 - picture.pixels)))
    change = (moved.logp - rollouts.old_logp).abs().amax(dim=1)
    looking = torch.tensor([bool(row) for row in rollouts.payload.get("images").tolist()])
    assert (change[looking] > 1e-3).all()
    assert (change[~looking] < 1e-4).all()
    # The same text with another image is another prompt, though every token of it is the same.
    problems = [Problem(i, Illustrated("<image>", [np.full((32, 32, 3), i * 60, np.uint8)])) for i in range(4)]
    with torch.no_grad():
        drawn = policy.sample(Starts.repeat(problems, 1), OPTIONS, seed=0, greedy=True)
    assert len(torch.unique(drawn.old_logp[:, 0])) == 4
    assert len(torch.unique(drawn.payload["prompt_tokens"], dim=0)) == 1


def test_images_of_plain_prompts_lie_in_the_metadata(policy):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    own = Problem(0, Illustrated("12", [pixels]))
    lent = Problem(0, "12", metadata={"images": [pixels]})
    one, other = (policy.sample(Starts.repeat([p], 2), OPTIONS, seed=1) for p in (own, lent))
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.payload["prompt_tokens"], other.payload["prompt_tokens"])


def test_gradients_reach_the_vision_tower_and_do_not_depend_on_how_much_is_held(policy):
    rollouts, grads = sampled(policy), []
    for limit in (None, 30):
        policy.max_tokens = limit
        policy.module.zero_grad()
        (policy.evaluate(rollouts).logp * rollouts.mask).sum().backward()
        grads.append({name: p.grad.clone() for name, p in policy.trainable().items() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert torch.allclose(grad, grads[1][name], atol=1e-3, rtol=1e-3), name
        assert torch.isfinite(grad).all()
    assert any("vision_tower" in name and float(grad.abs().max()) > 0 for name, grad in grads[0].items())


def test_an_image_token_that_the_policy_wrote_is_no_image(policy):
    rollouts = sampled(policy)
    rollouts.tokens[rollouts.mask] = policy._sight.image_token
    seen = policy.evaluate(rollouts)
    assert torch.isfinite(seen.logp).all()
    assert torch.allclose(policy.evaluate(rollouts[3:4]).logp, seen.logp[3:4], atol=1e-4)


def test_batches_are_joined_replayed_and_branched(policy):
    rollouts = sampled(policy)
    joined = policy.join([rollouts[:5], rollouts[5:]])
    assert torch.allclose(policy.evaluate(joined).logp, rollouts.old_logp, atol=1e-4)
    written = [row[keep].tolist() for row, keep in zip(rollouts.tokens, rollouts.mask, strict=True)]
    again = policy.replay(starts_of(), written, OPTIONS)
    assert torch.allclose(again.old_logp, rollouts.old_logp, atol=1e-4)
    assert again.external.equal(again.mask)
    branches = policy.branch(rollouts, [1, 3, 5], [0, 0, 0], OPTIONS, seed=9)
    assert torch.allclose(policy.evaluate(branches).logp, branches.old_logp, atol=1e-4)
    assert branches.payload.get("images").tolist() == rollouts[[1, 3, 5]].payload.get("images").tolist()


def test_continuations_of_a_prompt_with_an_image_are_scored(policy):
    prompt = Looking().train_batch(2, 0)[1].prompt
    logp, mask = policy.score(prompt, ["12", "5"])
    assert mask.tolist() == [[True, True], [True, False]]
    alone, _ = policy.score(prompt, ["5"])
    assert torch.allclose(alone[0, 0], logp[1, 0], atol=1e-5)


def test_imitation_teaches_what_the_image_says(policy):
    optimizer = torch.optim.Adam(policy.trainable().values(), lr=3e-3)
    pixels = [np.full((32, 32, 3), shade, np.uint8) for shade in (0, 255)]
    problems = [Problem(i, Illustrated("sum?", [pixels[i]]), answer="37"[i]) for i in (0, 1)]
    for step in range(60):
        loss = policy.supervised_loss(problems, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    drawn = policy.sample(Starts.repeat(problems, 1), LanguageSampling(max_new_tokens=2), seed=0, greedy=True)
    assert drawn.text == ["3", "7"]


def test_snapshots_and_state_come_back(policy):
    policy.snapshot("ref")
    rollouts, state = sampled(policy), None
    state = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    with torch.no_grad():
        for p in policy.trainable().values():
            p.add_(0.05 * torch.randn_like(p))
    assert not torch.allclose(policy.evaluate(rollouts).logp, rollouts.old_logp, atol=1e-3)
    with policy.using("ref"):
        assert torch.allclose(policy.evaluate(rollouts).logp, rollouts.old_logp, atol=1e-4)
    policy.load_state_dict(state)
    assert torch.allclose(policy.evaluate(rollouts).logp, rollouts.old_logp, atol=1e-4)


def test_a_model_is_saved_and_loaded_by_its_folder(policy, tmp_path):
    assert policy.save_pretrained(str(tmp_path))
    loaded = ImageTextToText(Looking(), model=str(tmp_path))
    rollouts = sampled(policy)
    again = sampled(loaded)
    assert torch.equal(again.tokens, rollouts.tokens)
    assert torch.allclose(again.old_logp, rollouts.old_logp, atol=1e-5)
    adapted = ImageTextToText(Looking(), model=str(tmp_path), lora=2)
    assert all("lora_" in name for name in adapted.trainable())
    assert torch.allclose(adapted.evaluate(rollouts).logp, rollouts.old_logp, atol=1e-4)
    adapted.evaluate(rollouts).logp.sum().backward()
    frozen = ImageTextToText(Looking(), model=str(tmp_path), freeze_vision=True)
    assert not any("vision_tower" in name for name in frozen.trainable())
    assert any("multi_modal_projector" in name for name in frozen.trainable())


def test_a_model_that_is_not_there_and_texts_without_their_images_are_refused(policy, tmp_path):
    with pytest.raises(RecipeError, match="cannot load model"):
        ImageTextToText(Looking(), model=str(tmp_path / "nothing"))
    lost = Starts.repeat([Problem(0, "look: <image>")], 1)
    with pytest.raises(RecipeError, match=r"has the mark <image> and no image"):
        policy.sample(lost, OPTIONS, seed=0)
    with pytest.raises(RecipeError, match=r"with policy.seeing"):
        policy.encode_prompt(Looking().train_batch(2, 0)[1].prompt)


# Other architectures ------------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}MARK{% else %}{{ p.text }}{% endif %}"
    "{% endfor %}{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)


def tokenizer_with(*tokens):
    tokenizer = build_tokenizer([*Looking().corpus(), "\n"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<answer>", *tokens]})
    return tokenizer


def idefics3():
    """Cuts images into tiles, so that an image is several runs of tokens with words between them."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tiles = [f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)]
    tokenizer = tokenizer_with("<fake_token_around_image>", "<image>", "<global-img>", *tiles)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    template = TEMPLATE.replace("MARK", "<image>")
    processor = transformers.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template)
    config = transformers.Idefics3Config(
        vision_config={**SIZES, "image_size": 32, "patch_size": 8},
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **SIZES},
        image_token_id=processor.image_token_id,
        scale_factor=2,
        pad_token_id=0,
    )
    return transformers.Idefics3ForConditionalGeneration(config), processor


def qwen2_5_vl(monkeypatch):
    """Gives images positions in two dimensions, so that it is run whole."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = tokenizer_with("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
    images = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, min_pixels=16 * 16, max_pixels=64 * 64)
    # Its processor wants one for videos, which there is none of without torchvision.
    monkeypatch.setattr(transformers.Qwen2_5_VLProcessor, "check_argument_for_proper_class", lambda *_: None)
    template = TEMPLATE.replace("MARK", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = transformers.Qwen2_5_VLProcessor(images, tokenizer, None, chat_template=template)
    vision = {"hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 4, "patch_size": 8}
    more = {"spatial_merge_size": 2, "out_hidden_size": 32, "window_size": 32, "fullatt_block_indexes": [1]}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision | more,
        text_config={"vocab_size": len(tokenizer), "rope_parameters": rope, "num_key_value_heads": 2, **SIZES},
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


@pytest.mark.filterwarnings("ignore:model:UserWarning")
@pytest.mark.parametrize("kind", ["idefics3", "qwen2_5_vl"])
def test_any_architecture_samples_and_evaluates_alike(kind, monkeypatch):
    torch.manual_seed(0)
    network, processor = idefics3() if kind == "idefics3" else qwen2_5_vl(monkeypatch)
    policy = VisionLanguagePolicy(lively(network), processor)
    assert policy.model.flat == (kind == "idefics3")
    rollouts = sampled(policy)
    seen = policy.evaluate(rollouts)
    assert torch.allclose(seen.logp, rollouts.old_logp, atol=1e-4)
    assert torch.allclose(policy.evaluate(rollouts[5:6]).logp, rollouts.old_logp[5:6], atol=1e-4)
    seen.logp.sum().backward()
    moved = policy.evaluate(with_pictures(rollouts, lambda picture: Picture(255 - picture.pixels)))
    looking = torch.tensor([bool(row) for row in rollouts.payload.get("images").tolist()])
    change = (moved.logp - rollouts.old_logp).abs().amax(dim=1)
    assert (change[looking] > 1e-3).all()
    assert (change[~looking] < 1e-4).all()
    branches = policy.branch(rollouts, [2, 5], [0, 0], OPTIONS, seed=1)
    assert torch.allclose(policy.evaluate(branches).logp, branches.old_logp, atol=1e-4)
    if kind == "qwen2_5_vl":
        inputs = processor(
            text=[processor.apply_chat_template(_asked(), add_generation_prompt=True)],
            images=[[_pil(Looking().train_batch(2, 0)[1].prompt.pictures[0])]],
            return_tensors="pt",
        )
        with torch.no_grad():
            wanted = network(**inputs).logits[0, -1] / OPTIONS.temperature
        row = int((rollouts.task_id == 1).nonzero()[0])
        assert torch.allclose(
            wanted.log_softmax(-1)[rollouts.tokens[row, 0]], rollouts.old_logp[row, 0].detach(), atol=1e-4
        )


def _asked():
    content = [{"type": "text", "text": "sum? "}, {"type": "image"}, {"type": "text", "text": "1"}]
    return [{"role": "user", "content": content}]


def _pil(picture):
    from PIL import Image

    return Image.fromarray(picture.pixels)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_model_that_looks_ahead_in_texts_is_refused():
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer = tokenizer_with("<image>")
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.add_bos_token = False
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(images, tokenizer)
    vision = {**SIZES, "image_size": 32, "patch_size": 8, "vision_use_head": False, "projection_dim": 32}
    text = {"model_type": "gemma", "vocab_size": len(processor.tokenizer), "head_dim": 8, "num_key_value_heads": 2}
    config = transformers.PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **vision},
        text_config={**text, **SIZES},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    with pytest.raises(RecipeError, match="reads a prompt differently once something is written behind it"):
        VisionLanguagePolicy(lively(transformers.PaliGemmaForConditionalGeneration(config)), processor)


# Episodes and runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [{}, {"context": 26, "truncation": "drop_oldest"}])
def test_episodes_are_played_on_pictures(context):
    torch.manual_seed(0)
    task = GridImage(size=3, max_turns=4)
    policy = TinyVLM(task, width=32, vision_width=32, image=24, tokenizer="word")
    options = LanguageSampling(max_new_tokens=2, **context).bound_to(task)
    with torch.no_grad():
        rollouts = policy.sample(Starts.repeat(task.train_batch(3, 0), 2), options, seed=0)
    assert ("begins" in rollouts.payload.keys()) == bool(context)  # noqa: SIM118
    turns = rollouts.turn.amax(dim=1) + 1
    images = rollouts.payload.get("images").tolist()
    assert [len(row) for row in images] == turns.tolist()
    assert torch.allclose(policy.evaluate(rollouts).logp, rollouts.old_logp, atol=1e-4)
    assert torch.equal(rollouts.state_key[::2, 0], rollouts.state_key[1::2, 0])
    assert len(torch.unique(rollouts.state_key[:, 0])) == 3
    policy.supervised_loss(task.train_batch(3, 1), 0).backward()


RECIPE = {
    "name": "looking",
    "task": {"name": "image_count", "size": 2},
    "policy": {"name": "tiny_vlm", "width": 16, "layers": 1, "heads": 2, "image": 16, "vision_width": 16},
    "warm_start": {"steps": 2, "batch": 4},
    "sampling": {"prompts": 3, "group_size": 4, "max_new_tokens": 2},
    "objective": {"name": "ppo_clip"},
    "terms": [{"name": "kl", "beta": 0.01}],
    "training": {"steps": 4, "minibatches": 2},
    "evaluation": {"problems": 6, "every": 2},
    "checkpoint": {"every": 1, "keep": 4},
}


def test_a_run_goes_on_bit_by_bit_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = guerdon.train(RECIPE, progress=Progress(quiet=True))
    assert whole.steps == 4
    json.dumps(whole.to_dict())
    folder = RunFolder(whole.run)
    for newest in checkpoint.list_checkpoints(folder.checkpoints_path)[-2:]:
        shutil.rmtree(newest)
    again = loop.resume(whole.run, progress=Progress(quiet=True))
    assert again.weights_sha256 == whole.weights_sha256
    assert again.eval == whole.eval


def test_a_recipe_that_asks_what_it_cannot_say_without_images_is_refused():
    from guerdon.recipe import load_recipe
    from guerdon.training.plan import make_plan

    recipe = {**RECIPE, "task": {"name": "gridimage"}, "credit": "igpo", "terms": []}
    with pytest.raises(RecipeError, match="answer_logp"):
        make_plan(load_recipe(recipe))
