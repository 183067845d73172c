"""No code from files is executed; nothing is written outside the run's folder and the cache."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import faults
import pytest

SOURCES = sorted((faults.ROOT / "kd_jax").rglob("*.py")) + sorted(
    (faults.ROOT / "experiments").rglob("*.py")
)
# The only module that reads pickles: as data, restricted to a list of allowed types.
UNPICKLER = faults.ROOT / "kd_jax" / "pretrained" / "unpickle.py"
FORBIDDEN = {
    "pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal",
}  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(faults.ROOT)))
def test_no_module_executes_code_from_files(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module.partition(".")[0]]
        if path != UNPICKLER:
            assert not FORBIDDEN & set(names), f"{path}:{node.lineno}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "torch.load", "os.system"}, node.lineno
            for keyword in node.keywords:
                harmless = isinstance(keyword.value, ast.Constant) and not keyword.value.value
                assert keyword.arg not in {"allow_pickle", "shell"} or harmless, path


WATCHED = """
import json, os, sys
writing = []
def hook(event, args):
    if event == "open" and isinstance(args[0], str):
        mode, flags = args[1] or "", args[2] or 0
        if any(c in mode for c in "wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            writing.append(os.path.abspath(args[0]))
    elif event in ("os.mkdir", "os.remove", "os.rmdir") and args[-1] != -1:
        pass  # relative to a folder opened by shutil.rmtree, which is an event of its own
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
        writing.append(os.path.abspath(os.fspath(args[0])))
    elif event in ("os.rename", "os.link", "os.symlink"):
        writing.extend(os.path.abspath(os.fspath(a)) for a in args[:2])
sys.addaudithook(hook)
sys.dont_write_bytecode = True
from experiments import digits, harness
config = digits.get_config("tiny")
harness.execute(digits.EXPERIMENT, config, __import__("pathlib").Path(sys.argv[1]))
print("WRITTEN " + json.dumps(sorted(set(writing))))
"""


@pytest.mark.slow
def test_a_run_writes_only_to_its_folder_and_the_cache(tmp_path):
    from experiments import harness

    run = tmp_path / "run"
    result = subprocess.run(
        [sys.executable, "-c", WATCHED, str(run)],
        cwd=faults.ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**faults.os.environ, "MPLCONFIGDIR": str(tmp_path / "matplotlib")},
    )
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("WRITTEN ")]
    written = [Path(name) for name in json.loads(line.removeprefix("WRITTEN "))]
    assert any(path.is_relative_to(run / "seed0") for path in written)
    allowed = (run, harness.cache_dir().absolute(), tmp_path / "matplotlib", Path("/dev"))
    others = [p for p in written if not any(p == a or p.is_relative_to(a) for a in allowed)]
    assert [p for p in others if p != run.parent] == []
