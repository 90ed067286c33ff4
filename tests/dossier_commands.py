"""The commands that stand in dossiers and docs."""

import re


def commands(text):
    """Lines of the text's shell blocks, without comments."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if command := re.sub(r"\s#.*|^#.*", "", line).strip():
                yield command


def small_commands(readme):
    """Those behind **In small**, up to how to read the result."""
    return list(commands(readme.partition("**In small**")[2].partition("**How to read it.**")[0]))
