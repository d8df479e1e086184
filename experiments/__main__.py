"""`python -m experiments`: what each command does."""

import ast
import pathlib

FOLDER = pathlib.Path(__file__).parent


def overview() -> str:
    """A line for each command, from the first sentence of its file."""
    lines = []
    for path in sorted([*FOLDER.glob("*.py"), *FOLDER.glob("*/command.py")]):
        text = path.read_text(encoding="utf-8")
        if "run_command(main" not in text or path.name in ("cli.py", "__main__.py"):
            continue
        name = path.parent.name if path.name == "command.py" else path.stem
        first_line = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        about = first_line.partition(": `")[0].rstrip(".")
        lines.append(f"  python -m experiments.{name:<12} {about}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"The commands; --help behind one shows its flags:\n{overview()}")
