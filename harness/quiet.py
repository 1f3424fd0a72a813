"""Keep the libraries' own progress bars and advice out of our output."""

import logging


def hush_libraries() -> None:
    """Only errors of transformers, datasets and the hub are shown; called once, by the command
    line.
    """
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    disable_progress_bars()
    for name in ("datasets", "lm_eval", "lm-eval", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
