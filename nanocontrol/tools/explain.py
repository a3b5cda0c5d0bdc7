"""Say what a checkpoint holds and how it can be used:

    python -m nanocontrol.tools.explain FILE

prints a fact a line: contents, base, flags, layout, precision, size, metadata and what was checked.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

from nanocontrol.checkpoint import load_sd, read_control
from nanocontrol.formats.checks import first_three
from nanocontrol.formats.diffusers_names import is_diffusers
from nanocontrol.formats.original_names import (
    BASE_KEYS,
    CONTROL_KEYS,
    holds_base,
    holds_control,
    missing_parts,
    other_kind,
)
from nanocontrol.formats.tensors import SMALL, TensorFile, Tensors, open_tensors
from nanocontrol.nano.model import name_of
from nanocontrol.plumbing.errors import InputError, one_line, one_sentence, say
from nanocontrol.plumbing.flags import Parser


def explain(path: Path, check: bool = False) -> str:
    """The contents of a checkpoint and its use, a fact a line. Its tensors are loaded into their
    networks, so "use as" never names a flag that would refuse the file.

    check: read every byte; files of up to 1 GB always are.
    Raises InputError, naming the file, if it is no file of tensors.
    """
    path, tensors, _ = file = open_tensors(path, check)
    facts = {"file": str(path), "holds": content(tensors)}
    facts |= use(file)
    known = (*BASE_KEYS, CONTROL_KEYS)
    prefixes = [prefix for prefix in known if any(name.startswith(prefix) for name in tensors)]
    facts["layout"] = "diffusers'" if is_diffusers(tensors) else "the original's"
    if not (holds_base(tensors) or holds_control(tensors)):
        facts["layout"] = f"unknown here: {first_three(tensors)} ..."
    facts["prefixes"] = ", ".join(prefixes) or "none"
    kinds = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    facts["precision"] = ", ".join(f"{kind} ({n} tensors)" for kind, n in kinds.most_common())
    size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    numbers = sum(tensor.numel() for tensor in tensors.values())
    facts["tensors"] = f"{len(tensors)}, of {numbers:,} numbers, {size:,.1f} MB"
    facts["metadata"] = metadata_in(path)
    facts["checked"] = what_was_checked(path, check)
    return "\n".join(f"{name + ':':<11}{one_line(value, 500)}" for name, value in facts.items())


def content(tensors: Tensors) -> str:
    found = []
    if kind := other_kind(tensors):
        return kind
    if holds_base(tensors):
        missing = " and ".join(missing_parts(tensors))
        whole = "a base model (U-Net, VAE and text encoder)"
        found.append(f"a U-Net without {missing}" if missing else whole)
    if holds_control(tensors):
        found.append("a ControlNet")
    return " and ".join(found) or "neither a base model nor a ControlNet"


def use(file: TensorFile) -> dict[str, str]:
    """The base that it belongs to, and the flags that take it, found by loading it."""
    facts = {}
    try:
        if holds_base(file.tensors):
            sd = load_sd(file)
            name = name_of(sd.unet.config)
            facts["base"] = f"{name}, predicts {sd.prediction}"
            facts["use as"] = f"--base, with ControlNets for {name}"
        if holds_control(file.tensors):
            config = read_control(file).config
            facts["control"] = f"for {name_of(config)}"
            flags = "--control (sample.py), --init-control (train.py)"
            alone = "; without --base the base inside is used" if facts.get("base") else ""
            facts["use as"] = f"{flags}, with bases of {name_of(config)}{alone}"
    except InputError as error:
        facts["use as"] = f"nothing: {error}"
    return facts or {"use as": "nothing: expected a base model or a ControlNet"}


def what_was_checked(path: Path, check: bool) -> str:
    if path.stat().st_size > SMALL and not check:
        return "form, names and shapes; not the numbers, for which --check reads every byte"
    sums = "the archive's checksums are right" if is_zipfile(path) else "it has no checksum"
    return f"every byte: all weights are finite; {sums}"


def metadata_in(path: Path) -> str:
    try:
        with safe_open(path, "pt") as file:
            return json.dumps(file.metadata() or {}, sort_keys=True)
    except SafetensorError:
        return "none (only safetensors files have it)"


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("explain", description=__doc__, formatter_class=formatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="a checkpoint")
    every = "read every byte (default: only of files up to 1 GB)"
    parser.add_argument("--check", action="store_true", help=every)
    args = parser.parse_args(argv)
    with one_sentence("explain"):
        for line in explain(args.file, args.check).splitlines():
            say(line)


if __name__ == "__main__":
    main()
