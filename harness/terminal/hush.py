"""Keep the libraries' own progress bars and advice out of our output."""

import logging
import os
import sys
import warnings

# Read by each library when it is first imported: importing one to call its switch costs a second,
# and transformers' GGUF reader has no other switch than tqdm's. A value that is set already stays.
SWITCHES = {
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
CHATTY = ("datasets", "huggingface_hub", "lm_eval", "lm-eval", "httpx", "transformers")


def hush_libraries() -> None:
    """Only errors of the libraries are shown, and no warnings of Python; called once, by the
    command line, before any of them is imported if that can be.
    """
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:  # `python -W` and PYTHONWARNINGS are asked for
        warnings.simplefilter("ignore")
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    if "transformers" in sys.modules:  # it has read its variable already
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
