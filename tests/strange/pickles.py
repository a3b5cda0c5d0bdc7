"""Pickles: files of torch.save, damaged pickles, and pickles with code."""

import io
import struct
import tarfile
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from strange.harness import WEIGHTS, loads, refused
from strange.making import (
    END,
    FILES,
    FOLDER,
    NUMBERS,
    START,
    W,
    archive,
    call,
    dictionary,
    integer,
    integers,
    named,
    storage,
    tensor,
    text,
    touch,
    tuple_of,
    write_old,
    write_w,
    write_with_extra,
    write_zip,
)

# ------------------------------------------------------------------------- what torch.save writes


@loads
def a_zip_as_torch_saves_it(folder: Path) -> Path:
    torch.save(WEIGHTS, folder / "a.pth")
    return folder / "a.pth"


@loads
def a_file_from_before_torch_1_6(folder: Path) -> Path:
    torch.save(WEIGHTS, folder / "a.ckpt", _use_new_zipfile_serialization=False)
    return folder / "a.ckpt"


for protocol in range(6):
    for old in (False, True):

        def of_protocol(folder: Path, protocol: int = protocol, old: bool = old) -> Path:
            options = {"_use_new_zipfile_serialization": not old, "pickle_protocol": protocol}
            torch.save(WEIGHTS, folder / "a.pth", **options)
            return folder / "a.pth"

        of_protocol.__name__ = f"{'an_old_file' if old else 'a_zip'}_of_protocol_{protocol}"
        if protocol:
            loads(of_protocol)
        else:  # this protocol has only text for persistent ids
            refused(of_protocol, says="uses the operation PERSID and is refused")


@loads(weights=W)
def the_smallest_pickle_of_a_tensor(folder: Path) -> Path:
    return write_w(folder, tensor())


@loads(weights=W)
def the_smallest_old_file_of_a_tensor(folder: Path) -> Path:
    return write_old(folder)


@loads(weights={})
def an_empty_dict(folder: Path) -> Path:
    torch.save({}, folder / "a.pth")
    return folder / "a.pth"


@loads
def a_training_state_next_to_the_weights(folder: Path) -> Path:
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.ones(2, 3)}
    optimizer = {"state": {0: moments}, "param_groups": [{"betas": (0.9, 0.999), "params": [0]}]}
    extra = {"optimizer": optimizer, "step": 7, "losses": [0.5, None, True]}
    extra |= {"network": nn.Linear(3, 2).state_dict(), "seen": {1, 2}, "words": Counter("aab")}
    extra |= {"device": torch.device("cpu"), "shape": torch.Size([1]), "dtype": torch.float16}
    torch.save({"state_dict": OrderedDict(WEIGHTS)} | extra, folder / "a.ckpt")
    return folder / "a.ckpt"


@refused(says="asks for torch.nn.modules.linear.Linear")
def a_whole_network_as_an_object(folder: Path) -> Path:
    torch.save(nn.Linear(3, 2), folder / "a.pth")
    return folder / "a.pth"


@refused(says="is a TorchScript program")
def a_torchscript_program(folder: Path) -> Path:
    with warnings.catch_warnings(action="ignore"):  # deprecated, but still common
        torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3)), folder / "a.pt")
    return folder / "a.pt"


@refused(says="is cut off or not a checkpoint")
def a_torch_package(folder: Path) -> Path:
    with warnings.catch_warnings(action="ignore"):  # it uses deprecated functions of torch
        with torch.package.PackageExporter(str(folder / "a.pt")) as package:
            package.save_pickle("weights", "weights.pkl", WEIGHTS)
    return folder / "a.pt"


@refused(says="is cut off or not a checkpoint")
def a_torch_0_1_tar_archive(folder: Path) -> Path:
    with tarfile.open(folder / "a.pth", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = START + call("posix.system", text(touch(folder))) + END
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return folder / "a.pth"


# ------------------------------------------------------------- cycles and exponential growth


@refused(says="holds other things than named tensors")
def a_state_dict_that_contains_itself(folder: Path) -> Path:
    itself = b"}q\1" + text("state_dict") + b"h\1s"
    return write_zip(folder, archive(START + itself + END, {}))


@loads
def a_list_that_contains_itself_next_to_weights(folder: Path) -> Path:
    return write_with_extra(folder, b"]r\0\0\1\0j\0\0\1\0a")


@loads
def a_dict_that_contains_itself_next_to_weights(folder: Path) -> Path:
    return write_with_extra(folder, b"}r\0\0\1\0" + text("again") + b"j\0\0\1\0s")


@refused(says="is cut off or not a checkpoint")
def a_parameter_that_contains_itself(folder: Path) -> Path:
    parameter = named("torch._utils._rebuild_parameter") + b"h\1Rq\2"
    extra = {"list": b"]q\1", "call": parameter, "list again": b"h\1h\2a"}
    pickle = dictionary(**extra, state_dict=dictionary(w=b"h\2"))
    return write_zip(folder, archive(START + pickle + END, {}))


LEVELS = 20_000


@loads
def lists_in_20000_levels_next_to_weights(folder: Path) -> Path:
    return write_with_extra(folder, b"]" * LEVELS + b"a" * (LEVELS - 1))


@loads
def tuples_in_20000_levels_next_to_weights(folder: Path) -> Path:
    return write_with_extra(folder, b")" + b"\x85" * LEVELS)


@refused(says="holds other things than named tensors")
def state_dicts_in_20000_levels(folder: Path) -> Path:
    opened = (b"}" + text("state_dict")) * LEVELS
    return write_zip(folder, archive(START + opened + b"}" + b"s" * LEVELS + END, {}))


@refused(says="is cut off or not a checkpoint")
def parameters_in_20000_levels(folder: Path) -> Path:
    parameter = named("torch._utils._rebuild_parameter")
    return write_w(folder, parameter * LEVELS + tensor() + b"\x85R" * LEVELS)


def billion_laughs(begin: bytes, more: bytes) -> bytes:
    """100 nested values, each of which holds the one before ten times."""
    levels = [begin + b"r\0\0\1\0"]
    for level in range(100):
        last = b"j" + struct.pack("<I", 0x10000 + level)
        levels.append(more.replace(b"?", last * 10) + b"r" + struct.pack("<I", 0x10001 + level))
    return b"".join(levels)


@loads
def a_googol_of_lists_next_to_weights(folder: Path) -> Path:
    return write_with_extra(folder, tuple_of(billion_laughs(b"]", b"](?e")))


@loads
def a_googol_of_tuples_next_to_weights(folder: Path) -> Path:
    return write_with_extra(folder, tuple_of(billion_laughs(b")", b"(?t")))


@loads
def a_googol_of_dicts_next_to_weights(folder: Path) -> Path:
    return write_with_extra(folder, tuple_of(billion_laughs(b"}", b"}" + text("a") + b"](?es")))


def googol_inside(before: bytes, after: bytes) -> bytes:
    """Build a tuple of a googol of tuples, and fetch it between two operations."""
    return tuple_of(billion_laughs(b")", b"(?t"), before, b"j" + struct.pack("<I", 0x10064), after)


@refused(says="is cut off or not a checkpoint")
def a_googol_of_tuples_as_a_name(folder: Path) -> Path:
    return write_with_extra(folder, googol_inside(b"}", b"Ns"))


@refused(says="is cut off or not a checkpoint")
def a_googol_of_tuples_as_the_key_of_a_storage(folder: Path) -> Path:
    begin = b"(" + text("storage") + named("torch.FloatStorage")
    return write_with_extra(folder, googol_inside(begin, text("cpu") + integer(8) + b"tQ"))


@refused(says="is cut off or not a checkpoint")
def a_googol_of_tuples_as_the_length_of_a_storage(folder: Path) -> Path:
    begin = b"(" + text("storage") + named("torch.FloatStorage") + text("9") + text("cpu")
    return write_with_extra(folder, googol_inside(begin, b"tQ"))


@refused(says="is refused")
def a_googol_of_tuples_as_a_module(folder: Path) -> Path:
    return write_with_extra(folder, googol_inside(b"", text("load") + b"\x93"))


@refused(says="w has no numbers")
def a_googol_of_tuples_as_the_arguments_of_another_storage(folder: Path) -> Path:
    bomb = b"j" + struct.pack("<I", 0x10064)
    other = named("torch.Size") + b"(" + bomb + b"tR"
    bombs = tuple_of(billion_laughs(b")", b"(?t"))
    extra = dictionary(googol=bombs, state_dict=dictionary(w=tensor(other)))
    return write_zip(folder, archive(START + extra + END, {}))


@refused(says="is cut off")
def a_googol_of_tuples_among_the_keys_of_an_old_file(folder: Path) -> Path:
    keys = b"]" + googol_inside(b"", b"") + b"a"
    own = integer(0x1950A86A20F9469CFC6C), integer(1001), dictionary(little_endian=b"\x88")
    return write_old(folder, *own, dictionary(w=tensor()), keys)


@refused(says="w has a shape that is none")
def a_googol_of_tuples_as_a_shape(folder: Path) -> Path:
    shape = googol_inside(b"", b"")
    extra = {"googol": shape, "state_dict": dictionary(w=tensor(shape=b"j\x64\0\1\0\x85"))}
    extra["state_dict"] = dictionary(w=tensor(shape=b"j\x64\0\1\0\x85", strides=integers(1)))
    return write_zip(folder, archive(START + dictionary(**extra) + END, {"0": NUMBERS}))


@loads
def arguments_of_ordered_dict_are_not_traversed(folder: Path) -> Path:
    values = googol_inside(named("collections.OrderedDict"), b"\x85R")
    return write_with_extra(folder, values)


# ------------------------------------------------------------------------------ damaged pickles


def pickled(name: str, pickle: bytes, ends=refused, says: str = "is cut off or not a checkpoint"):
    """A case: this pickle in an archive with the data of one tensor."""

    def write(folder: Path) -> Path:
        numbers = {"0": NUMBERS} if b"FloatStorage" in pickle else {}
        return write_zip(folder, archive(pickle, numbers))

    write.__name__ = name
    ends(write, **({"weights": W} if ends is loads else {"says": says}))


GOOD = dictionary(w=tensor())
put_far = START + dictionary(w=tensor() + b"r\xff\xff\xff\xff") + END
get_far = START + dictionary(w=b"j\xff\xff\xff\xff") + END
pickled("a_memo_at_index_4294967295", put_far, loads)
pickled(
    "a_memo_at_a_number_of_4000_digits",
    START + dictionary(w=tensor() + b"p" + b"9" * 4000 + b"\n") + END,
    loads,
)
pickled(
    "a_memo_at_a_number_of_5000_digits",
    START + dictionary(w=tensor() + b"p" + b"9" * 5000 + b"\n") + END,
)
pickled("a_memo_at_a_negative_index", START + dictionary(w=tensor() + b"p-1\n") + END, loads)
pickled("a_value_that_was_never_memoised", get_far)
pickled("an_empty_pickle", b"")
pickled("a_pickle_that_only_ends", END)
pickled("a_pickle_without_an_end", START + GOOD)
pickled("a_pickle_cut_in_a_name", (START + GOOD + END)[:9])
pickled("two_pickles_in_a_row", (START + GOOD + END) * 2)
pickled("words_after_the_pickle", START + GOOD + END + b"words")
pickled("a_byte_that_is_no_operation", START + b"\xff" + GOOD + END)
pickled("a_protocol_of_the_future", b"\x80\xff" + GOOD + END, loads)
pickled("a_frame_longer_than_the_file", START + b"\x95" + b"\xff" * 8 + GOOD + END, loads)
pickled("a_text_of_4_gb_that_is_not_there", START + dictionary(w=b"X\xff\xff\xff\xffab") + END)
pickled(
    "a_text_of_4_eb_that_is_not_there", START + dictionary(w=b"\x8d" + b"\xff" * 7 + b"\0ab") + END
)
pickled(
    "bytes_of_8_eb_that_are_not_there",
    START + dictionary(w=b"\x8e" + b"\xff" * 7 + b"\x7fab") + END,
)
pickled("a_number_of_minus_1_bytes", START + dictionary(w=b"\x8b\xff\xff\xff\xffab") + END)
pickled("a_text_that_is_not_utf_8", START + dictionary(w=b"X\2\0\0\0\xff\xfe") + END)
pickled("an_empty_stack", START + b"t" + END)
pickled("an_operation_without_its_operands", START + b"K\1\x87" + END)
pickled("a_mark_that_is_never_closed", START + b"(" + GOOD + END, loads)
pickled("an_entry_without_a_value", START + b"}(" + text("w") + b"u" + END)
pickled("entries_added_to_a_number", START + b"K\1(" + text("w") + tensor() + b"u" + END)
pickled("a_value_appended_to_a_number", START + b"K\1" + tensor() + b"a" + END)
pickled("entries_added_to_a_call", START + call("torch.Size") + text("w") + tensor() + b"s" + END)
pickled("a_tensor_alone", START + tensor() + END, says="holds other things than named tensors")
pickled("a_list_of_tensors", START + b"]" + tensor() + b"a" + END, says="holds other things")
pickled("a_number_alone", START + integer(7) + END, says="holds other things")
pickled("a_million_operations_and_one", START + b"N" * 1_000_000 + END, says="is too long a pickle")
pickled("a_pickle_of_17_mb", START + text("a" * 17_000_000) + END, says="is too long a pickle")
pickled("a_duplicate_name", START + b"}(" + (text("w") + tensor()) * 2 + b"u" + END)
pickled("a_duplicate_name_in_two_steps", START + b"}" + (text("w") + tensor() + b"s") * 2 + END)
pickled("a_number_as_a_name", START + b"}K\1" + tensor() + b"s" + END, says="other things")
pickled(
    "a_function_instead_of_a_tensor",
    START + dictionary(w=named("torch.Size")) + END,
    says="other things",
)
pickled("a_storage_instead_of_a_tensor", START + dictionary(w=storage()) + END, says="other things")
pickled("a_list_instead_of_a_tensor", START + dictionary(w=b"]") + END, says="other things")
pickled(
    "a_parameter_of_a_text",
    START + dictionary(w=call("torch._utils._rebuild_parameter", text("w"))) + END,
    says="other things",
)
pickled(
    "a_shape_instead_of_a_tensor",
    START + dictionary(w=call("torch.Size", integers(1))) + END,
    says="other things",
)
pickled(
    "state_dict_is_a_tensor", START + dictionary(state_dict=tensor()) + END, says="other things"
)
pickled(
    "a_tensor_called_state_dict_next_to_others",
    START + dictionary(w=tensor(), state_dict=tensor()) + END,
    says="other things",
)


@refused(says="is cut off or not a checkpoint")
def numbers_of_a_million_digits(folder: Path) -> Path:
    return write_with_extra(folder, b"L" + b"9" * 1_000_000 + b"L\n")


# ------------------------------------------------------------------------------- payloads


PAYLOADS: dict[str, Callable[[str], bytes]] = {}  # test_strange.py checks that they would run
SYSTEM = "posix.system"
asks = "asks for {} and is refused".format


def payload(name: str, value: Callable[[str], bytes], says: str, tail: bytes = b"u" + END) -> None:
    """A case: weights, and a value that runs a command if the pickle is executed."""

    def write(folder: Path) -> Path:
        return write_with_extra(folder, value(touch(folder)), tail)

    write.__name__, PAYLOADS[name] = name, value
    refused(write, says=says)


def a_call(command: str) -> bytes:
    return call(SYSTEM, text(command))


def os_module() -> bytes:
    return call("importlib.import_module", text("os"))


def python(command: str) -> bytes:
    return text(f"__import__('os').system({command!r})")


def in_bytes(pickle: bytes) -> bytes:
    data = START + pickle + END
    return b"B" + struct.pack("<I", len(data)) + data


def mapped(command: str) -> bytes:
    """A call that runs when somebody iterates over the result."""
    return call("builtins.map", named(SYSTEM), tuple_of(text(command)))


def with_state(command: str) -> bytes:
    """A harmless call whose function BUILD replaces."""
    state = tuple_of(named(SYSTEM), tuple_of(text(command)), b"}", b"N")
    return call("functools.partial", named("builtins.len")) + state + b"b)R"


for name, value, says in (
    ("a_call_of_system", a_call, asks(SYSTEM)),
    ("a_call_of_system_by_its_other_name", lambda c: call("os.system", text(c)), asks("os.system")),
    ("inst", lambda c: b"(" + text(c) + b"iposix\nsystem\n", "uses the operation INST"),
    ("obj", lambda c: b"(" + named("builtins.bytes") + mapped(c) + b"o", asks("builtins.bytes")),
    (
        "newobj",
        lambda c: named("builtins.bytes") + tuple_of(mapped(c)) + b"\x81",
        asks("builtins.bytes"),
    ),
    (
        "newobj_ex",
        lambda c: named("builtins.bytes") + tuple_of(mapped(c)) + b"}\x92",
        asks("builtins.bytes"),
    ),
    (
        "stack_global",
        lambda c: text("posix") + text("system") + b"\x93" + tuple_of(text(c)) + b"R",
        asks(SYSTEM),
    ),
    ("build", with_state, asks("functools.partial")),
    (
        "a_function_hidden_in_functools",
        lambda c: call("functools.partial", named(SYSTEM), text(c)) + b")R",
        asks("functools.partial"),
    ),
    (
        "a_call_hidden_in_reduce",
        lambda c: call(
            "functools.reduce", named("operator.call"), tuple_of(named(SYSTEM), text(c))
        ),
        asks("functools.reduce"),
    ),
    (
        "a_method_hidden_in_operator",
        lambda c: (
            call("operator.methodcaller", text("system"), text(c)) + tuple_of(os_module()) + b"R"
        ),
        asks("operator.methodcaller"),
    ),
    (
        "a_function_got_by_operator",
        lambda c: (
            call("operator.attrgetter", text("system"))
            + tuple_of(os_module())
            + b"R"
            + tuple_of(text(c))
            + b"R"
        ),
        asks("operator.attrgetter"),
    ),
    (
        "a_function_got_by_getattr",
        lambda c: call("builtins.getattr", os_module(), text("system")) + tuple_of(text(c)) + b"R",
        asks("builtins.getattr"),
    ),
    ("eval", lambda c: call("builtins.eval", python(c)), asks("builtins.eval")),
    ("exec", lambda c: call("builtins.exec", python(c)), asks("builtins.exec")),
    ("runpy", lambda c: call("runpy._run_code", python(c), b"}"), asks("runpy._run_code")),
    (
        "a_pickle_in_a_pickle",
        lambda c: call("pickle.loads", in_bytes(a_call(c))),
        asks("pickle.loads"),
    ),
    (
        "a_torch_file_in_a_pickle",
        lambda c: call("torch.storage._load_from_bytes", in_bytes(a_call(c))),
        asks("torch.storage._load_from_bytes"),
    ),
    (
        "a_command_run_by_torch",
        lambda c: call("torch.utils.collect_env.run", text(c)),
        asks("torch.utils.collect_env.run"),
    ),
    (
        "a_command_in_the_state_of_a_known_object",
        lambda c: call("collections.OrderedDict") + tuple_of(b"N", dictionary(x=a_call(c))) + b"b",
        asks(SYSTEM),
    ),
    (
        "a_command_in_the_arguments_of_a_known_function",
        lambda c: call("torch.Size", a_call(c)),
        asks(SYSTEM),
    ),
    ("a_command_as_a_name", lambda c: b"}" + a_call(c) + b"Ns", asks(SYSTEM)),
):
    payload(name, value, says)

payload("a_payload_before_a_broken_tail", a_call, asks(SYSTEM), b"\xff\xff")
payload("a_payload_before_a_cut", a_call, asks(SYSTEM), b"")

# More functions that a file could ask for. None is imported.
for function in (
    *("nt.system", "subprocess.Popen", "subprocess.check_output", "os.popen", "os.execv"),
    *("builtins.open", "builtins.compile", "builtins.__import__", "builtins.breakpoint"),
    *("importlib.import_module", "runpy.run_path", "code.interact", "pty.spawn", "types.CodeType"),
    *("shutil.rmtree", "os.remove", "socket.create_connection", "webbrowser.open", "ctypes.CDLL"),
    *("pydoc.pipepager", "copyreg._reconstructor", "collections.defaultdict", "numpy.load"),
    *("torch.load", "torch.save", "torch.hub.load", "torch.jit.load", "torch.classes.load_library"),
    *("torch.package.PackageImporter", "torch.utils.cpp_extension.load", "torch.ops.load_library"),
    *("torch.serialization.load", "torch.UntypedStorage.from_file", "torch.from_file"),
    *("torch._utils._rebuild_device_tensor_from_numpy", "torch._utils._import_dotted_name"),
    *("torch._utils", "torch._utils._rebuild_tensor_v2.__globals__", "torch.storage._StorageBase"),
    *("torch.fx.graph_module.reduce_graph_module", "torch.nn.modules.container.Sequential"),
):

    def asks_for(folder: Path, function: str = function) -> Path:
        return write_with_extra(folder, call(function, text(touch(folder))))

    asks_for.__name__ = f"a_call_of_{function}"
    refused(asks_for, says=asks(function))


# ------------------------------------------------------------------------ operations and objects


def next_to_weights(name: str, value: bytes, says: str = "", ends=refused) -> None:
    """A case: weights, and this value as well."""

    def write(folder: Path) -> Path:
        return write_with_extra(folder, value)

    write.__name__ = name
    ends(write) if ends is loads else refused(write, says=says)


uses = "uses the operation {} and is refused".format
OPERATIONS = {
    "INST": b"(icollections\nOrderedDict\n",
    "OBJ": b"(" + named("collections.OrderedDict") + b"o",
    "NEWOBJ_EX": named("collections.OrderedDict") + b")}\x92",
    "EXT1": b"\x82\1",
    "EXT2": b"\x83\1\0",
    "EXT4": b"\x84\1\0\0\0",
    "PERSID": b"Pwhat\n",
    "BYTEARRAY8": b"\x96" + b"\0" * 8,
    "NEXT_BUFFER": b"\x97",
    "READONLY_BUFFER": b"N\x98",
    "DUP": b"N2",
    "POP": b"NN0",
    "POP_MARK": b"N(N1",
    "EMPTY_SET": b"\x8f",
    "ADDITEMS": b"](N\x90",
    "FROZENSET": b"(N\x91",
    "STRING": b"S'x'\n",
    "BINSTRING": b"T\1\0\0\0x",
    "SHORT_BINSTRING": b"U\1x",
}
for operation, value in OPERATIONS.items():
    next_to_weights(f"the_operation_{operation}", value, uses(operation))

Size = named("torch.Size")
next_to_weights("an_object_that_is_made_by_newobj", Size + b")\x81", ends=loads)
next_to_weights("an_object_with_a_state", Size + b")R}b", ends=loads)
next_to_weights("a_number_that_is_called", b"K\1)R", "calls what is no function")
next_to_weights("a_list_that_is_called", b"])R", "calls what is no function")
next_to_weights("a_call_that_is_called", Size + b")R)R", "calls what is no function")
next_to_weights(
    "a_tensor_that_is_called", tensor(storage("0", 288)) + b")R", "calls what is no function"
)
next_to_weights("a_storage_that_is_called", storage("0", 288) + b")R", "calls what is no function")
next_to_weights(
    "a_tensor_with_a_state", tensor(storage("0", 288)) + b"}b", "gives attributes to what is no"
)
next_to_weights(
    "a_storage_with_a_state", storage("0", 288) + b"}b", "gives attributes to what is no object"
)
next_to_weights("a_list_with_a_state", b"]}b", "gives attributes to what is no object")
next_to_weights("a_persistent_id_that_is_a_text", text("storage") + b"Q")
next_to_weights("a_persistent_id_that_is_a_call", a_call("echo") + b"Q", asks(SYSTEM))
next_to_weights(
    "a_persistent_id_without_a_type",
    tuple_of(text("storage"), b"N", text("0"), text("cpu"), integer(8)) + b"Q",
)
next_to_weights(
    "a_function_whose_module_is_a_number", b"K\1" + text("x") + b"\x93", "calls what is no function"
)
next_to_weights("a_function_without_a_name", b"c\n\n", asks("."))
next_to_weights(
    "a_function_with_a_line_break_in_its_name", text("a\nb") + text("\x1b[2J") + b"\x93", "asks for"
)
next_to_weights(
    "a_function_with_a_name_of_5_mb", text("a" * 5_000_000) + text("b") + b"\x93", "asks for aaa"
)


# ------------------------------------------------------------------- tensors that do not fit


def w(name: str, value: bytes, says: str = "is cut off", numbers: bytes = NUMBERS) -> None:
    """A case: a file that holds {"w": value}, and these bytes as data."""

    def write(folder: Path) -> Path:
        return write_w(folder, value, numbers)

    write.__name__ = name
    refused(write, says=says)


none, outside, repeated = "w has a shape that is none", "w lies outside", "w is repeated numbers"
w("a_shape_of_negative_numbers", tensor(shape=integers(-2, -4)), none)
w("negative_strides", tensor(strides=integers(-4, -1), offset=integer(7)), none)
w("a_negative_offset", tensor(offset=integer(-1)), none)
w("an_offset_past_the_end", tensor(offset=integer(1)), outside)
w("an_offset_that_overflows", tensor(offset=integer(2**63 - 4)), outside)
w("an_offset_of_100_bits", tensor(offset=integer(2**100)), none)
w("an_offset_that_wraps_around_in_bytes", tensor(offset=integer(2**62)), outside)
w("strides_past_the_end", tensor(strides=integers(5, 1)), outside)
w("strides_that_overflow", tensor(strides=integers(2**62, 1), shape=integers(5, 4)), outside)
w("a_shape_that_is_too_large", tensor(shape=integers(3, 4)), outside)
w("a_shape_whose_product_overflows", tensor(shape=integers(2**32, 2**32)), repeated)
w("a_shape_of_100_bits", tensor(shape=integers(2**100, 1)), none)
w("a_shape_of_a_million_bits", tensor(shape=integers(2**1_000_000, 1)), none)
w(
    "a_shape_that_is_a_list",
    tensor(shape=b"](" + integer(2) + integer(4) + b"e"),
    "w has no shape of",
)
w("a_shape_of_fractions", tensor(shape=tuple_of(b"G@\0\0\0\0\0\0\0", integer(4))), none)
w("a_shape_of_booleans", tensor(shape=tuple_of(b"\x88", b"\x88")), none)
w("a_shape_of_texts", tensor(shape=tuple_of(text("2"), text("4"))), none)
w("a_shape_of_other_length_than_strides", tensor(shape=integers(8)), "w has no shape of")
w(
    "a_shape_of_65_dimensions",
    tensor(shape=integers(*[1] * 65), strides=integers(*[1] * 65)),
    "has no shape",
)
w("a_shape_of_100000_dimensions", tensor(shape=integers(*[1] * 100_000)), "w has no shape of")
w("one_number_repeated", tensor(strides=integers(0, 0)), repeated)
w("rows_that_overlap", tensor(strides=integers(2, 1)), repeated)
w("an_empty_tensor_far_past_the_end", tensor(shape=integers(0, 4), offset=integer(2**40)), outside)
w("numbers_that_are_a_text", tensor(text("0")))
w("numbers_that_are_a_tensor", tensor(tensor()), "w has no numbers")
w("numbers_without_a_record", tensor(storage("1")))
w("numbers_under_the_key_of_a_folder_above", tensor(storage("../data.pkl")))
w(
    "numbers_of_an_unknown_type",
    tensor(storage(kind="torch.FileStorage")),
    asks("torch.FileStorage"),
)
w("numbers_of_the_type_of_a_function", tensor(storage(kind="torch.Size")))
w("numbers_of_negative_length", tensor(storage(length=-8)))
w("numbers_of_a_length_of_2_to_the_62", tensor(storage(length=2**62)))
w("numbers_of_half_the_length", tensor(storage(length=4)))
w("numbers_of_twice_the_length", tensor(storage(length=16)))
w("numbers_of_wider_type_than_the_record", tensor(storage(kind="torch.DoubleStorage")))
w("numbers_of_narrower_type_than_the_record", tensor(storage(kind="torch.HalfStorage")))
w("a_record_that_is_cut", tensor(), numbers=NUMBERS[:-1])
w("a_record_that_is_longer", tensor(), numbers=NUMBERS + b"\0")
w("a_record_of_nothing", tensor(), numbers=b"")
w("a_tensor_without_arguments", call("torch._utils._rebuild_tensor_v2"))
w("a_tensor_of_one_argument", call("torch._utils._rebuild_tensor_v2", storage()))
w("a_tensor_whose_arguments_are_a_dict", named("torch._utils._rebuild_tensor_v2") + b"}R")
w("a_parameter_of_nothing", call("torch._utils._rebuild_parameter"))
w(
    "a_tensor_of_an_invalid_type",
    call(
        "torch._utils._rebuild_tensor_v3",
        *(
            storage(),
            integer(0),
            integers(8),
            integers(1),
            b"\x89",
            b"}",
            named("torch.Size"),
            b"}",
        ),
    ),
)


@refused(says="describes the numbers of a tensor in two ways")
def numbers_of_two_types(folder: Path) -> Path:
    return write_w(folder, tuple_of(tensor(), storage(kind="torch.IntStorage")))


@refused(says="describes the numbers of a tensor in two ways")
def numbers_of_two_lengths(folder: Path) -> Path:
    return write_w(folder, tuple_of(tensor(), storage(length=2)))


@refused(says="is cut off or not a checkpoint")
def numbers_that_are_a_view_of_others(folder: Path) -> Path:
    """torch 0.3 wrote views like this."""
    part = (text("storage"), named("torch.FloatStorage"), text("0"), text("cpu"), integer(8))
    return write_w(
        folder, tensor(tuple_of(*part, tuple_of(text("1"), integer(0), integer(4))) + b"Q")
    )


@refused(says="over four times as large as what it holds")
def fifty_thousand_tensors_of_one_storage(folder: Path) -> Path:
    numbers = 50_000
    values = {f"w{i}": b"h\1" for i in range(numbers)}
    pickle = dictionary(w=tensor() + b"q\1", **values)
    return write_zip(folder, archive(START + pickle + END, {"0": NUMBERS}))


# ------------------------------------------------------------------ files from before torch 1.6


def old(name: str, says: str = "is cut off", *pickles: bytes, numbers: bytes | None = None) -> None:
    def write(folder: Path) -> Path:
        return write_old(folder, *pickles, numbers=numbers)

    write.__name__ = f"an_old_file_{name}"
    refused(write, says=says)


MAGIC, VERSION = integer(0x1950A86A20F9469CFC6C), integer(1001)
SYSTEM_INFO, LENGTH = dictionary(little_endian=b"\x88"), struct.pack("<q", 8)
FIRST = (MAGIC, VERSION, SYSTEM_INFO)
old("of_another_magic_number", "is cut off", integer(7))
old("of_another_version", "is cut off", MAGIC, integer(1002))
old("without_a_byte_order", "is cut off", MAGIC, VERSION, b"}")
old("of_the_other_byte_order", "another order", MAGIC, VERSION, dictionary(little_endian=b"\x89"))
old("that_names_no_storages", "is cut off", *FIRST, dictionary(w=tensor()), b"]")
old(
    "that_names_another_storage",
    "is cut off",
    *FIRST,
    dictionary(w=tensor()),
    b"]" + text("1") + b"a",
)
old(
    "that_names_a_storage_twice",
    "is cut off",
    *FIRST,
    dictionary(w=tensor()),
    b"](" + text("0") * 2 + b"e",
)
old("that_names_a_list_as_storage", "is cut off", *FIRST, dictionary(w=tensor()), b"]]a")
old("without_numbers", numbers=b"")
old("cut_in_its_numbers", numbers=LENGTH + NUMBERS[:-1])
old("with_bytes_after_its_numbers", numbers=LENGTH + NUMBERS + b"\0")
old("of_another_length", numbers=struct.pack("<q", 7) + NUMBERS)
old("of_negative_length", numbers=struct.pack("<q", -1) + NUMBERS)
old("of_a_length_of_2_to_the_62", numbers=struct.pack("<q", 2**62) + NUMBERS)


@refused(says=asks(SYSTEM))
def an_old_file_with_a_payload_in_its_first_pickle(folder: Path) -> Path:
    return write_old(folder, a_call(touch(folder)))


@refused(says=asks(SYSTEM))
def an_old_file_with_a_payload_in_its_system_information(folder: Path) -> Path:
    return write_old(folder, MAGIC, VERSION, a_call(touch(folder)))


@refused(says=asks(SYSTEM))
def an_old_file_with_a_payload_next_to_its_weights(folder: Path) -> Path:
    values = dictionary(state_dict=dictionary(w=tensor()), extra=a_call(touch(folder)))
    return write_old(folder, *FIRST, values)


@refused(says=asks(SYSTEM))
def an_old_file_with_a_payload_in_its_list_of_storages(folder: Path) -> Path:
    return write_old(folder, *FIRST, dictionary(w=tensor()), a_call(touch(folder)))


@refused(says=asks(SYSTEM))
def a_pickle_without_torch(folder: Path) -> Path:
    (folder / "a.pth").write_bytes(START + a_call(touch(folder)) + END)
    return folder / "a.pth"


# -------------------------------------------------------------------------- NaN and infinity

for value in (float("nan"), float("inf"), -float("inf")):
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):

        def not_finite(folder: Path, value: float = value, dtype: torch.dtype = dtype) -> Path:
            numbers = torch.zeros(16, 8, dtype=dtype)
            numbers[15, 7] = value
            torch.save(WEIGHTS | {"linear.weight": numbers}, folder / "a.pth")
            return folder / "a.pth"

        kind = str(dtype).removeprefix("torch.")
        not_finite.__name__ = f"a_{kind}_that_is_{value}"
        refused(not_finite, says="linear.weight holds NaN or infinity")


@refused(says="linear.weight holds NaN or infinity")
def an_old_file_with_nan(folder: Path) -> Path:
    weights = WEIGHTS | {"linear.weight": torch.full((16, 8), float("nan"))}
    torch.save(weights, folder / "a.pth", _use_new_zipfile_serialization=False)
    return folder / "a.pth"


@loads(weights=(LARGEST := {"w": torch.tensor([3.4028234e38, -3.4028234e38, 1e-45])}))
def the_largest_float32_numbers(folder: Path) -> Path:
    torch.save(LARGEST, folder / "a.pth")
    return folder / "a.pth"


# --------------------------------------------------------------------- more pickles in an archive


@loads
def a_second_pickle_next_to_the_first(folder: Path) -> Path:
    payload = START + a_call(touch(folder)) + END
    return write_zip(
        folder, FILES | {f"{FOLDER}other.pkl": payload, f"{FOLDER}data.pickle": payload}
    )


@refused(says="is outside of")
def a_second_pickle_in_another_folder(folder: Path) -> Path:
    return write_zip(folder, FILES | {"other/data.pkl": START + a_call(touch(folder)) + END})


@refused(says="is cut off or not a checkpoint")
def a_second_pickle_among_the_numbers(folder: Path) -> Path:
    return write_zip(
        folder, FILES | {f"{FOLDER}data/data.pkl": START + a_call(touch(folder)) + END}
    )


@loads(weights={"w\ud800": W["w"]})
def a_name_that_ends_in_half_a_surrogate(folder: Path) -> Path:
    pickle = START + dictionary(**{"w\ud800": tensor()}) + END
    return write_zip(folder, archive(pickle, {"0": NUMBERS}))
