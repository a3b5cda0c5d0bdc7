"""Tensors of every type and layout that torch.save writes and torch.load gives."""

import warnings
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from strange.harness import WEIGHTS, loads, refused
from strange.networks import (
    BASE_FILE,
    BIAS,
    CONTROL,
    CONTROL_FILE,
    CONV,
    UNET,
    read_base_file,
    read_control_file,
)

in_control = partial(loads, read=read_control_file, weights=CONTROL)
refused_in_control = partial(refused, read=read_control_file)


def saved(tensors: dict, folder: Path) -> Path:
    torch.save(tensors, folder / "a.pth")
    return folder / "a.pth"


def rounded(dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype).float() for name, tensor in CONTROL.items()}


# --------------------------------------------------------------------------------------- types


@in_control
def weights_in_float32(folder: Path) -> Path:
    return saved(CONTROL_FILE, folder)


@in_control
def weights_in_float64(folder: Path) -> Path:
    return saved({name: tensor.double() for name, tensor in CONTROL_FILE.items()}, folder)


@in_control(weights=rounded(torch.float16))
def weights_in_float16(folder: Path) -> Path:
    return saved({name: tensor.half() for name, tensor in CONTROL_FILE.items()}, folder)


@in_control(weights=rounded(torch.bfloat16))
def weights_in_bfloat16(folder: Path) -> Path:
    return saved({name: tensor.bfloat16() for name, tensor in CONTROL_FILE.items()}, folder)


BIAS_IN_HALF = CONTROL["input_blocks.0.0.bias"].half()


@in_control(weights=CONTROL | {"input_blocks.0.0.bias": BIAS_IN_HALF.float()})
def weights_in_two_precisions(folder: Path) -> Path:
    return saved(CONTROL_FILE | {BIAS: BIAS_IN_HALF}, folder)


OTHER_TYPES = (
    *(torch.bool, torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32),
    *(torch.int64, torch.uint64, torch.complex32, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
)
for dtype in OTHER_TYPES:

    def a_weight(folder: Path, dtype: torch.dtype = dtype) -> Path:
        with warnings.catch_warnings(action="ignore"):  # complex32 is experimental
            weight = torch.zeros(32).to(dtype)
        return saved(CONTROL_FILE | {BIAS: weight}, folder)

    kind = str(dtype).removeprefix("torch.")
    a_weight.__name__ = f"a_weight_of_type_{kind}"
    refused_in_control(a_weight, says=f"input_blocks.0.0.bias is of type {kind}")


@refused_in_control(says="input_blocks.0.0.bias is of type float8_e8m0fnu")
def a_weight_that_is_an_exponent(folder: Path) -> Path:
    exponents = torch.zeros(32, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    return saved(CONTROL_FILE | {BIAS: exponents}, folder)


@refused_in_control(says="input_blocks.0.0.bias is of type float4_e2m1fn_x2")
def a_weight_with_two_numbers_per_byte(folder: Path) -> Path:
    pairs = torch.zeros(32, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    return saved(CONTROL_FILE | {BIAS: pairs}, folder)


POSITION_IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
in_base = partial(loads, read=read_base_file, weights=UNET)


@in_base
def integers_in_an_ignored_tensor(folder: Path) -> Path:
    return saved(BASE_FILE | {POSITION_IDS: torch.arange(77)[None]}, folder)


@in_base
def booleans_in_an_ignored_tensor(folder: Path) -> Path:
    return saved(BASE_FILE | {POSITION_IDS: torch.zeros(1, 77, dtype=torch.bool)}, folder)


@in_base
def an_update_count_next_to_the_weights(folder: Path) -> Path:
    return saved(BASE_FILE | {"model_ema.num_updates": torch.tensor(470000)}, folder)


# ------------------------------------------------------------------------------------- layouts


def instead(kind: str, says: str):
    """A refused case: a tensor of another layout instead of a weight."""

    def add(make):
        def write(folder: Path) -> Path:
            with warnings.catch_warnings(action="ignore"):  # many are in beta state
                return saved(WEIGHTS | {"linear.weight": make(torch.eye(16, 8))}, folder)

        write.__name__ = f"a_tensor_that_is_{kind}"
        return refused(write, says=says)

    return add


instead("sparse_by_coordinates", "linear.weight is sparse")(Tensor.to_sparse_coo)
instead("sparse_by_rows", "linear.weight is sparse")(Tensor.to_sparse_csr)
instead("sparse_by_columns", "linear.weight is sparse")(Tensor.to_sparse_csc)
instead("sparse_by_blocks", "linear.weight is sparse")(lambda t: t.to_sparse_bsr((2, 2)))
instead("sparse_by_columns_of_blocks", "is sparse")(lambda t: t.to_sparse_bsc((2, 2)))
instead("on_meta", "linear.weight is without numbers")(lambda t: t.to("meta"))
instead("nested", "linear.weight is nested")(lambda t: torch.nested.nested_tensor([t, t[:3]]))
instead("jagged", "")(
    lambda t: torch.nested.nested_tensor([t, t[:3]], layout=torch.jagged)  # a subclass of Tensor
)
instead("quantized", "linear.weight is quantized")(
    lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)
)
instead("quantized_by_channels", "linear.weight is quantized")(
    lambda t: torch.quantize_per_channel(t, torch.ones(16), torch.zeros(16), 0, torch.qint8)
)
instead("one_number_repeated", "linear.weight is repeated numbers")(
    lambda t: torch.zeros(1).expand(16, 8)
)
instead("a_terabyte_of_one_number", "linear.weight is repeated numbers")(
    lambda t: torch.zeros(1).expand(2**19, 2**19)
)
instead("an_uninitialised_parameter", "")(lambda t: nn.UninitializedParameter())


class Subclass(Tensor):
    pass


instead("of_a_subclass", "asks for strange.tensors.Subclass")(lambda t: t.as_subclass(Subclass))
instead("a_list", "other things than named tensors")(Tensor.tolist)
instead("an_array", "")(Tensor.numpy)
instead("a_storage", "other things than named tensors")(Tensor.untyped_storage)
instead("nothing", "other things than named tensors")(lambda t: None)
instead("a_python_number", "other things than named tensors")(lambda t: 1.5)


@refused(says="over four times as large")
def a_thousand_tensors_of_one_storage(folder: Path) -> Path:
    place = torch.zeros(1000)
    return saved({f"weight.{i}": place.view(1000) for i in range(1000)}, folder)


# ------------------------------------------------------- dense tensors in unusual storages


@loads
def a_tensor_that_requires_grad(folder: Path) -> Path:
    bias = WEIGHTS["conv.bias"].clone().requires_grad_()
    return saved(WEIGHTS | {"conv.bias": bias}, folder)


@in_control
def parameters(folder: Path) -> Path:
    return saved({name: nn.Parameter(tensor) for name, tensor in CONTROL_FILE.items()}, folder)


@loads
def a_buffer(folder: Path) -> Path:
    return saved(WEIGHTS | {"conv.bias": nn.Buffer(WEIGHTS["conv.bias"])}, folder)


@loads
def a_transposed_tensor(folder: Path) -> Path:
    return saved(WEIGHTS | {"linear.weight": WEIGHTS["linear.weight"].T.contiguous().T}, folder)


@in_control
def a_tensor_in_channels_last(folder: Path) -> Path:
    conv = CONTROL_FILE[CONV].to(memory_format=torch.channels_last)
    return saved(CONTROL_FILE | {CONV: conv}, folder)


@loads
def every_other_number_of_a_storage(folder: Path) -> Path:
    wide = torch.stack([WEIGHTS["conv.bias"], torch.zeros(8)], dim=1)
    return saved(WEIGHTS | {"conv.bias": wide[:, 0]}, folder)


@loads
def tensors_that_are_parts_of_one_storage(folder: Path) -> Path:
    floats = {name: t for name, t in WEIGHTS.items() if t.dtype == torch.float32}
    together = torch.cat([tensor.flatten() for tensor in floats.values()])
    parts = together.split([tensor.numel() for tensor in floats.values()])
    views = {name: part.view(floats[name].shape) for name, part in zip(floats, parts)}
    return saved(WEIGHTS | views, folder)


@loads(weights=WEIGHTS | {"again": WEIGHTS["conv.bias"]})
def a_tensor_under_two_names(folder: Path) -> Path:
    return saved(WEIGHTS | {"again": WEIGHTS["conv.bias"]}, folder)


@refused(says="windows is repeated numbers")
def a_tensor_that_overlaps_itself(folder: Path) -> Path:
    return saved({"windows": torch.arange(12.0).unfold(0, 6, 3)}, folder)


@refused(says="conv.bias notes signs apart from its numbers")
def a_tensor_with_a_lazy_negation(folder: Path) -> Path:
    imaginary = torch.complex(torch.zeros(8), -WEIGHTS["conv.bias"]).conj().imag
    assert imaginary.is_neg()
    return saved(WEIGHTS | {"conv.bias": imaginary}, folder)


CONJUGATE = torch.complex(torch.ones(4), torch.ones(4)).conj()


@refused(says="conjugate notes signs apart from its numbers")
def a_tensor_with_a_lazy_conjugate(folder: Path) -> Path:
    return saved({"conjugate": CONJUGATE}, folder)


@loads(weights=WEIGHTS | {"none": torch.zeros(0, 3), "number": torch.tensor(2.5)})
def an_empty_tensor_and_a_scalar(folder: Path) -> Path:
    return saved(WEIGHTS | {"none": torch.zeros(0, 3), "number": torch.tensor(2.5)}, folder)


@refused_in_control(says="input_blocks.0.0.bias has no shape of at most 64 dimensions")
def a_tensor_of_a_thousand_dimensions(folder: Path) -> Path:
    return saved(CONTROL_FILE | {BIAS: CONTROL_FILE[BIAS].view([32] + [1] * 999)}, folder)


@refused_in_control(says="input_blocks.0.0.bias has the shape []")
def a_number_instead_of_a_bias(folder: Path) -> Path:
    return saved(CONTROL_FILE | {BIAS: torch.tensor(1.0)}, folder)


@refused_in_control(says="unknown architecture")
def a_number_instead_of_a_convolution(folder: Path) -> Path:
    return saved(CONTROL_FILE | {CONV: torch.tensor(1.0)}, folder)


@refused_in_control(says="unknown architecture")
def a_convolution_of_no_channels(folder: Path) -> Path:
    return saved(CONTROL_FILE | {CONV: torch.zeros(0, 4, 3, 3)}, folder)


@refused_in_control(says="")
def a_convolution_of_2_to_the_60_channels_of_no_size(folder: Path) -> Path:
    return saved(CONTROL_FILE | {CONV: torch.zeros(2**60, 4, 0, 3)}, folder)


@loads
def a_tensor_with_a_python_attribute(folder: Path) -> Path:
    bias = WEIGHTS["conv.bias"].clone()
    bias.note = "of a stranger"  # such a tensor is saved in another way
    return saved(WEIGHTS | {"conv.bias": bias}, folder)
