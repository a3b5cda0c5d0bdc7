"""A page in which one draws a hint and watches the ControlNet work.

python -m nanocontrol.page
    nano with its bundled ControlNets; the page's address is printed
python -m nanocontrol.page --run RUN
    with a slider over the weights that a run keeps (train.py --keep all), also while it trains
python -m nanocontrol.page --base FILE --control FILE
    another base with its ControlNet
"""

import argparse
import sys
from pathlib import Path

from nanocontrol.plumbing.errors import one_sentence, say
from nanocontrol.plumbing.flags import Parser, at_least, device
from nanocontrol.plumbing.machine import default_device, keep_freed_memory

LOCAL = "127.0.0.1"
MISSING = 'the extra `page` is not installed: pip install -e ".[page]"'
OPEN = (
    "note: whoever can reach {host} can use this page without a password: draw, let this machine "
    "compute, and save hints in {out}"
)


def parse_page_flags(argv: list[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("page", description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    host = f"address to listen on (default: {LOCAL}, this machine only)"
    add("--host", default=LOCAL, help=host)
    add("--port", type=at_least(1), default=8000, help="default: 8000")
    add("--run", type=Path, metavar="RUN", help="folder of a run of train.py, to look into")
    add("--base", type=Path, metavar="FILE", help="default: the run's, or nano")
    control = "a ControlNet for the base; may be repeated (default: those bundled)"
    add("--control", type=Path, action="append", default=[], metavar="FILE", help=control)
    on = default_device()
    add("--device", type=device, default=on, help="default: a GPU if there is one")
    add("--out", type=Path, default=Path("out/page"), metavar="DIR", help="for hints of commands")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_page_flags(argv)
    try:
        import uvicorn

        from nanocontrol.page.app import Page, known_host, page_app
        from nanocontrol.page.models import Models
    except ModuleNotFoundError as error:
        if error.name not in ("uvicorn", "starlette"):
            raise
        sys.exit(f"page: {MISSING}")
    keep_freed_memory()
    with one_sentence("page"):
        page = Page(Models(args.base, args.control, args.run, args.device), args.out)
        if args.host != LOCAL:
            say(OPEN.format(host=args.host, out=args.out), sys.stderr)
        say(f"http://{args.host}:{args.port}  (Ctrl-C ends it)")
        app = page_app(page, known_host(args.host, args.port))
        uvicorn.run(app, host=args.host, port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
