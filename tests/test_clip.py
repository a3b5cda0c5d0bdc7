"""Text encoders and tokenizer against open_clip's."""

import pytest
import torch

from conftest import randomise
from nanocontrol.clip import END_OF_TEXT, CLIPTextEncoder, OpenCLIPTextEncoder, TextConfig, tokenize

CONFIG = TextConfig(width=128, layers=3, vocabulary=300)


@pytest.fixture(scope="module")
def transformer():
    return pytest.importorskip("open_clip.transformer")


def tower(transformer, layers: int, **options) -> torch.nn.Module:
    """open_clip's text tower with random weights. It returns the normalised tokens."""
    tower = transformer.TextTransformer(
        context_length=77,
        vocab_size=CONFIG.vocabulary,
        width=CONFIG.width,
        heads=2,
        layers=layers,
        output_dim=CONFIG.width,
        output_tokens=True,
        **options,
    )
    return randomise(tower).eval()


@torch.no_grad()
def test_the_openclip_encoder_equals_open_clips_without_its_last_layer(transformer):
    theirs = tower(transformer, CONFIG.layers - 1)
    ours = randomise(OpenCLIPTextEncoder(CONFIG), seed=1)
    weights = {k: v for k, v in theirs.state_dict().items() if k in ours.state_dict()}
    missing, _ = ours.load_state_dict(weights, strict=False)
    assert missing and all(name.startswith("transformer.resblocks.2.") for name in missing)
    compare(ours, theirs)


@torch.no_grad()
def test_the_clip_encoder_equals_open_clips_with_quick_gelu(transformer):
    theirs = tower(transformer, CONFIG.layers, act_layer=transformer.QuickGELU)
    ours = CLIPTextEncoder(CONFIG)
    ours.load_state_dict({k: v for k, v in in_clips_names(theirs.state_dict()).items()})
    compare(ours, theirs)


def compare(ours, theirs) -> None:
    """Compare two encoders in float64, where rounding is below 1e-14."""
    ours, theirs = ours.double(), theirs.double()
    torch.manual_seed(0)
    tokens = torch.randint(CONFIG.vocabulary, (2, 77))
    _, expected = theirs(tokens)
    error = (ours(tokens) - expected).norm() / expected.norm()
    assert error < 1e-10
    later = tokens.clone()
    later[:, 50:] = 7
    assert torch.equal(ours(later)[:, :50], ours(tokens)[:, :50])  # no token sees a later one


def in_clips_names(theirs: dict) -> dict:
    """Rename open_clip's weights as in OpenAI's model in transformers; split fused projections."""
    top = "text_model."
    ours = {
        top + "embeddings.token_embedding.weight": theirs["token_embedding.weight"],
        top + "embeddings.position_embedding.weight": theirs["positional_embedding"],
        top + "final_layer_norm.weight": theirs["ln_final.weight"],
        top + "final_layer_norm.bias": theirs["ln_final.bias"],
    }
    pairs = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for i in range(CONFIG.layers):
        old, new = f"transformer.resblocks.{i}.", f"{top}encoder.layers.{i}."
        for kind in ("weight", "bias"):
            for a, b in pairs.items():
                ours[f"{new}{b}.{kind}"] = theirs[f"{old}{a}.{kind}"]
            for letter, part in zip("qkv", theirs[f"{old}attn.in_proj_{kind}"].chunk(3)):
                ours[f"{new}self_attn.{letter}_proj.{kind}"] = part
    return ours


PROMPTS = ["", "a coral disc", "word " * 200, "naïve café 🎨 日本語", "a!b", "  MiXed   CASE  "]


@pytest.mark.parametrize("pad_with_end", [True, False])
def test_prompts_are_padded_truncated_and_lowercased(pad_with_end):
    tokens = tokenize(PROMPTS, pad_with_end)
    assert tokens.shape == (len(PROMPTS), 77) and tokens.dtype == torch.int64
    assert (tokens[:, 0] == 49406).all()
    padding = END_OF_TEXT if pad_with_end else 0
    assert tokens[0].tolist() == [49406, END_OF_TEXT] + [padding] * 75
    assert tokens[2, 76] == END_OF_TEXT  # kept when the text is truncated
    assert (tokens[2, 1:76] == tokens[2, 1]).all()
    for row in tokens:
        end = row.tolist().index(END_OF_TEXT)
        assert (row[end + 1 :] == padding).all() and (row[1:end] != END_OF_TEXT).all()
    assert torch.equal(tokenize("a coral disc", pad_with_end)[0], tokens[1])
    assert torch.equal(tokenize("mixed case", pad_with_end)[0], tokens[5])


def test_tokens_equal_open_clips(transformer):
    import open_clip

    assert torch.equal(tokenize(PROMPTS, pad_with_end=False), open_clip.tokenize(PROMPTS))


def test_tokens_are_the_ids_of_clips_vocabulary():
    tokens = tokenize("a photo of a cat", pad_with_end=True)[0].tolist()
    assert tokens[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
