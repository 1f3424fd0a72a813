"""The sources of code objects, and what is in them.  (`device` must not load torch.)"""

from trinity.lowering.kernels.lanes.decoder import DECODER
from trinity.lowering.kernels.lanes.launch import ENTRIES

SOURCES = {"lanes": ENTRIES, "decoder": DECODER}
