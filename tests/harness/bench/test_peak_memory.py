import json
import subprocess
import sys

# In a process of its own: the server that copies are made of is one a process, and other tests
# start it with what they need.
LOOK = """
import json, os
from concurrent.futures import ProcessPoolExecutor
from trinity.harness.bench import peak_memory

seen = []
for _ in range(2):
    with ProcessPoolExecutor(1, mp_context=peak_memory._copies()) as pool:
        parent = pool.submit(os.getppid).result()
        seen.append((parent, pool.submit(eval, "list(__import__('sys').modules)").result()))
print(json.dumps([os.getpid(), seen]))
"""


def test_processes_that_weigh_are_copies_of_one_that_has_the_libraries() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    own, ((first, libraries), (second, _)) = json.loads(done.stdout.splitlines()[-1])
    assert first == second != own
    needed = {"torch", "iree.runtime", "transformers.modeling_utils"}
    assert needed | {"trinity.harness.modules.module_stages"} <= set(libraries)
