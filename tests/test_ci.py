"""What `.ci/run` runs a second time: files that exist, and the tests that the first run skipped."""

import subprocess
import sys
from pathlib import Path

SKIPPED_IN_A_FILE = "tests.methods.test_wanda"
SKIPPED_FILE = "tests.methods.test_sparsegpt"
SKIPPED_IN_A_FOLDER = "tests.harness.texts.test_corpora"  # that folder runs whole
REPORT = f"""<testsuites><testsuite>
<testcase classname="{SKIPPED_IN_A_FILE}" name="test_of_data[a b]"><skipped message="no data"/>
</testcase>
<testcase classname="{SKIPPED_IN_A_FILE}" name="test_that_ran"/>
<testcase classname="{SKIPPED_IN_A_FOLDER}" name="test_of_a_hub"><skipped message="no hub"/>
</testcase>
<testcase classname="" name="{SKIPPED_FILE}"><skipped message="no package"/></testcase>
<testcase classname="" name="tests.harness.accuracy.test_tasks"><skipped message="no ray"/>
</testcase>
</testsuite></testsuites>"""


def test_the_second_run_names_paths_that_exist_and_what_was_skipped(
    project_root: Path, tmp_path: Path
) -> None:
    script = (project_root / ".ci/run").read_text(encoding="utf-8")
    choose = script.partition("<<'PY'")[2].partition("\n")[2].partition("\nPY\n")[0]
    (tmp_path / "report.xml").write_text(REPORT, encoding="utf-8")
    command = [sys.executable, "-", tmp_path / "report.xml", project_root]
    told = subprocess.run(command, input=choose, capture_output=True, encoding="utf-8", check=True)
    lines = told.stdout.splitlines()
    tests = [line for line in lines if "::" in line]
    missing = [line for line in lines if "::" not in line and not Path(line).exists()]
    assert missing == []
    assert lines.count(f"{project_root}/tests/methods/test_sparsegpt.py") == 1
    assert not any("test_tasks" in line for line in lines)  # in a folder that runs whole
    assert tests == [f"{project_root}/tests/methods/test_wanda.py::test_of_data[a b]"]
