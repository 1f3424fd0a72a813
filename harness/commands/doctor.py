"""`trinity doctor`: what this machine can do."""

from trinity.harness.commands.options import Debug, Json


def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Say what this machine can do and what it lacks.

    With what to run for each lack.
    """
    from trinity.harness.installed.doctor import diagnose
    from trinity.harness.terminal import printing

    found = diagnose()
    lacks = {f"{f.section}: {f.name}": f.answer.remedy for f in found if f.answer.lacks}
    if as_json:
        answers = {f"{f.section}: {f.name}": f.answer.value for f in found}
        printing.data({**answers, "remedies": lacks})
        return
    for section in dict.fromkeys(f.section for f in found):
        printing.text(section)
        answers_of = [(f.name, f.answer) for f in found if f.section == section]
        printing.facts([(name, a.value, a.remedy if a.lacks else "") for name, a in answers_of])
    printing.text(f"{len(lacks)} of {len(found)} are lacking, marked !; -> says what to do")
