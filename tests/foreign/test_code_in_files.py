"""Nothing in the package loads what can run code, but where a person says that the file is trusted."""

import ast
from pathlib import Path

import vita_audio_pl

UNSAFE = {"pickle", "joblib", "dill", "marshal", "shelve", "cloudpickle"}


def test_nothing_else_in_the_package_loads_what_can_run_code():
    """Every call that unpickles, runs TorchScript, evaluates text or builds objects of YAML is known here, with its guard."""
    allowed = {("voice_quality.py", "torch.jit.load"), ("fields.py", "yaml.load"), ("yaml_file.py", "yaml.load")}
    found = set()
    for path in Path(vita_audio_pl.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            module, _, function = name.rpartition(".")
            risky = (
                (name == "torch.load" and options.get("weights_only") != "True")
                or name
                in ("torch.jit.load", "eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system")
                or (module in UNSAFE and function in ("load", "loads", "Unpickler", "open"))
                or options.get("allow_pickle") == "True"
                or options.get("trust_remote_code") == "True"
                or options.get("shell") == "True"
                or (function == "Environment" and options.get("autoescape") != "True")
            )
            if risky:
                found.add((path.name, name))
    assert found == allowed
