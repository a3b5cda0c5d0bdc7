"""The run that the page shows while its models load: a drawing, its pictures and the insides.

    python -m nanocontrol.page.record

writes it to static/first.json. The drawing is made of strokes, as a user makes it.
"""

import json

from nanocontrol.page.app import STATIC
from nanocontrol.page.making import made
from nanocontrol.page.models import Models
from nanocontrol.plumbing.errors import one_sentence, say
from nanocontrol.plumbing.files import write_atomically
from nanocontrol.plumbing.flags import Parser
