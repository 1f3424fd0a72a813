"""How much text and how many questions suites read: for estimates before anything is fetched.

Tokens of texts and of a task's example (question, then every answer), by SmolLM2's tokenizer: the
mean of 200 examples.  Other tokenizers differ by a tenth.
"""

TEXT_TOKENS = {"wikitext2": 300_000, "c4": 524_288, "ptb": 100_000, "pydoc": 150_000}
TASK_EXAMPLES = {
    "mmlu": (14_042, 84),
    "piqa": (1_838, 59),
    "arc_easy": (2_376, 46),
    "arc_challenge": (1_172, 54),
    "winogrande": (1_267, 45),
    "openbookqa": (500, 26),
    "boolq": (3_270, 151),
    "hellaswag": (10_042, 161),
    "lambada_openai": (5_153, 83),
}
OTHER_TASK = (2_000, 100)
OTHER_TEXT = 2_000
UNKNOWN = OTHER_TASK[0] * OTHER_TASK[1]
