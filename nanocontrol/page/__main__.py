"""A page in which one draws a hint and watches the ControlNet work.

python -m nanocontrol.page
    nano with its bundled ControlNets; the page's address is printed
python -m nanocontrol.page --run RUN
    with a slider over the weights that a run keeps (train.py --keep all), also while it trains
python -m nanocontrol.page --base FILE --control FILE
    another base with its ControlNet
"""

import argparse
import socket
import sys
import time
from pathlib import Path

from nanocontrol.plumbing.errors import InputError, one_sentence, say
from nanocontrol.plumbing.flags import Parser, at_least, device
from nanocontrol.plumbing.machine import default_device, keep_freed_memory

LOCAL = "127.0.0.1"
PATIENCE = 20  # seconds until a run has to have begun
OPEN = (
    "note: with --host everybody who can reach {host} can use this page, without a password: "
    "draw, let this machine compute, and save hints in {out}"
)


def listening(host: str, port: int) -> socket.socket:
    """A socket at this address. Port 0 is any free one. Raises InputError if it is taken."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise InputError(f"--host {host} --port {port}: cannot be listened to ({error})") from None


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("page", description=__doc__, formatter_class=formatter)
    add, on = parser.add_argument, "a GPU if there is one"
    add("--host", default=LOCAL, help=f"address to listen on (default: {LOCAL}, this machine only)")
    add("--port", type=at_least(0), default=8000, help="default: 8000; 0: any free one")
    add("--run", type=Path, metavar="RUN", help="folder of a run of train.py, to look into")
    add("--base", type=Path, metavar="FILE", help="default: the run's, else nano")
    control = "a ControlNet for the base; may be repeated (default: those bundled)"
    add("--control", type=Path, action="append", default=[], metavar="FILE", help=control)
    add("--device", type=device, default=default_device(), help=f"default: {on}")
    add("--out", type=Path, default=Path("out/page"), metavar="DIR", help="for hints of commands")
    args = parser.parse_args(argv)
    try:
        import uvicorn

        from nanocontrol.page.app import Page, own_hosts, served_at
        from nanocontrol.page.models import Models
    except ModuleNotFoundError as error:
        sys.exit(f'page: {error}: pip install -e ".[page]"')
    keep_freed_memory()
    with one_sentence("page"):
        if args.run:
            await_run(args.run)
        models = Models(args.base, args.control, args.run, args.device)
        with listening(args.host, args.port) as found:
            port, page = found.getsockname()[1], Page(models, args.out)
            if args.host != LOCAL:
                say(OPEN.format(host=args.host, out=args.out), sys.stderr)
            name = f"[{args.host}]" if ":" in args.host else args.host
            print(f"http://{name}:{port}  (Ctrl-C ends it)", flush=True)
            try:
                uvicorn.Server(served_at(page, own_hosts(name, port))).run([found])
            finally:
                page.worker.pool.shutdown(cancel_futures=True)


def await_run(run: Path) -> None:
    """A training that was started together with the page has no folder for some seconds."""
    for _ in range(PATIENCE):
        if (run / "settings.json").exists():
            return
        time.sleep(1)


if __name__ == "__main__":
    main()
