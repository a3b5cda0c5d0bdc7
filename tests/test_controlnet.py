"""The paper's claims about zero convolutions, locked weights and the copy."""

import copy

import pytest
import torch
import torch.nn.functional as F

from conftest import CONFIGS
from nanocontrol import ControlBlock, ControlNet, UNet
from nanocontrol.controlnet import condition_encoder
from nanocontrol.unet import CrossAttention, UNetEncoder


def test_residuals_are_zero_at_initialisation(unet, inputs):
    x, t, context, hint, _ = inputs
    residuals = ControlNet.from_unet(unet)(x, hint, t, context)
    assert len(residuals) == len(unet.input_blocks) + 1
    assert all(torch.equal(r, torch.zeros_like(r)) for r in residuals)


def test_the_unet_is_bitwise_unchanged_at_initialisation(unet, inputs):
    x, t, context, hint, _ = inputs
    residuals = ControlNet.from_unet(unet)(x, hint, t, context)
    assert torch.equal(unet(x, t, context, residuals), unet(x, t, context))


def test_a_trained_control_changes_the_output_but_not_its_inputs(unet, trained_control, inputs):
    x, t, context, hint, _ = inputs
    residuals = trained_control(x, hint, t, context)
    before = [r.clone() for r in residuals]
    assert (unet(x, t, context, residuals) - unet(x, t, context)).abs().max() > 0.01
    assert len(residuals) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(residuals, before))


def test_each_residual_matters_and_the_middle_one_is_last(unet, trained_control, inputs):
    x, t, context, hint, _ = inputs
    residuals = trained_control(x, hint, t, context)
    skips = unet.skip_channels
    assert [r.shape[1] for r in residuals] == [*skips, skips[-1]]
    plain = unet(x, t, context)
    for i in range(len(residuals)):
        only = [r if j == i else torch.zeros_like(r) for j, r in enumerate(residuals)]
        assert not torch.equal(unet(x, t, context, only), plain)


def test_a_missing_residual_is_an_error(unet, inputs):
    x, t, context, _, _ = inputs
    with pytest.raises(ValueError):
        unet(x, t, context, [torch.zeros(1)] * len(unet.input_blocks))


def test_a_hint_of_another_size_is_an_error(unet, trained_control, inputs):
    x, t, context, hint, _ = inputs
    for other in (hint[..., :64], hint[..., :8, :8]):  # the last one could be broadcast
        with pytest.raises(ValueError, match="64, 128"):
            trained_control(x, other, t, context)


def group_of(name: str) -> str:
    if name.startswith(("zero_convs", "middle_block_out")):
        return "zero convolutions"
    if name.startswith("input_hint_block"):
        return "end of the encoder" if name.startswith("input_hint_block.14") else "encoder"
    return "copy"


def test_gradients_reach_zero_convolutions_then_the_copy_then_the_condition_encoder(unet, inputs):
    """Two zero layers lie between the loss and the condition encoder. Each optimizer step makes one
    of them non-zero."""
    x, t, context, hint, noise = inputs
    locked = copy.deepcopy(unet.state_dict())
    control = ControlNet.from_unet(unet)
    optimizer = torch.optim.AdamW(control.parameters(), 1e-3)
    expected = [
        {"zero convolutions"},
        {"zero convolutions", "copy", "end of the encoder"},
        {"zero convolutions", "copy", "end of the encoder", "encoder"},
    ]
    for groups in expected:
        optimizer.zero_grad()
        F.mse_loss(unet(x, t, context, control(x, hint, t, context)), noise).backward()
        for name, parameter in control.named_parameters():
            reached = parameter.grad is not None and parameter.grad.abs().max() > 0
            assert reached == (group_of(name) in groups), (name, groups)
        optimizer.step()
    assert all(parameter.grad is None for parameter in unet.parameters())
    assert all(torch.equal(tensor, locked[name]) for name, tensor in unet.state_dict().items())


def test_the_copy_is_a_copy(unet):
    control = ControlNet.from_unet(unet)
    own, theirs = control.state_dict(), unet.state_dict()
    shared = [name for name in own if name in theirs]
    expected = sum(not name.startswith(("output_blocks", "out.")) for name in theirs)
    assert len(shared) == expected
    for name in shared:
        assert torch.equal(own[name], theirs[name])
        assert own[name].data_ptr() != theirs[name].data_ptr()
    assert all(parameter.requires_grad for parameter in control.parameters())


def test_a_control_block_wraps_any_block():
    """Equation 2, on a plain convolution block."""
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3, stride=2, padding=1), torch.nn.SiLU())
    block.requires_grad_(False)  # as load_sd does
    x, c, target = torch.randn(2, 8, 6, 6), torch.randn(2, 8, 6, 6), torch.randn(2, 16, 3, 3)
    plain = block(x)
    control = ControlBlock(block, 8, 16)
    assert torch.equal(control(x, c), plain)
    trained = [parameter for parameter in control.parameters() if parameter.requires_grad]
    assert len(trained) == len(list(control.parameters())) - len(list(block.parameters()))
    optimizer = torch.optim.SGD(trained, 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(control(x, c), target).backward()
        optimizer.step()
    assert torch.equal(control.locked(x), plain)
    assert not torch.equal(control(x, c), plain)
    assert not torch.equal(control(x, c), control(x, -c))  # the condition has an effect


def table(docstring: str) -> list[list[str]]:
    lines = [line.strip() for line in docstring.splitlines() if line.strip().startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_docstring_tables_match_the_modules():
    with torch.device("meta"):
        unet, control = UNet(), ControlNet()
        x, t, context = torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, 77, 768)
        outputs = unet.encode(x, unet.embed_time(t), context)
        encoder = [*unet.input_blocks, unet.middle_block]
        rows = table(UNetEncoder.__doc__)
        assert len(rows) == len(encoder) == len(outputs) == len(control.zero_convs) + 1
        for row, block, output in zip(rows, encoder, outputs):
            modules = ", ".join(type(module).__name__ for module in block)
            assert row[1:] == [modules, str(output.shape[1]), str(output.shape[2])], row

        *skips, h = outputs
        rows = table(UNet.__doc__)
        assert len(rows) == len(unet.output_blocks)
        for row, block, skip in zip(rows, unet.output_blocks, reversed(skips)):
            h = block(torch.cat([h, skip], dim=1), unet.embed_time(t), context)
            modules = ", ".join(type(module).__name__ for module in block)
            assert row[1:] == [modules, str(h.shape[1]), str(h.shape[2])], row

        h, rows = torch.empty(1, 3, 512, 512), table(condition_encoder.__doc__)
        for i, module in enumerate(control.input_hint_block):
            h = module(h)
            if i % 2 == 0:
                name, stride, channels, size = rows[i // 2]
                assert name == f"input_hint_block.{i}" and stride == str(module.stride[0])
                assert [channels, size] == [str(h.shape[1]), str(h.shape[2])]


def test_attention_in_fp16_does_not_overflow():
    """Products of Stable Diffusion 2's queries and keys exceed fp16's maximum of 65504. PyTorch's
    attention accumulates them in a wider type."""
    torch.manual_seed(0)
    attention = CrossAttention(64, 64, CONFIGS["sd2"])
    for projection in (attention.to_q, attention.to_k):
        torch.nn.init.normal_(projection.weight, std=12.0)
    x = torch.randn(1, 16, 64)
    products = attention.to_q(x) @ attention.to_k(x).transpose(1, 2)
    assert products.abs().max() > 2 * 65504
    exact, half = attention(x, x), attention.half()(x.half(), x.half())
    assert half.isfinite().all()
    assert (half - exact).abs().mean() < 0.05 * exact.abs().mean()
